"""Nearest neighbors of one view's places among those of another, which of them are trusted, and how far off they are."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn import functional as F

from densewalk.evaluations.geometric_correspondence.settings import THRESHOLDS
from densewalk.ops.search.nearest_neighbors import nearest

LEAST = 1e-9  # of a cosine distance
PIECE = 1 << 23  # values in float64 that exist at once
Points = Float[np.ndarray, "places 3"]
Others = Float[np.ndarray, "others 3"]
Shares = Float[np.ndarray, " thresholds"]  # of matches, for each of THRESHOLDS


@dataclass(frozen=True)
class Matches:
    """Places of the source and of the target that belong together, the best match first."""

    source: Int[np.ndarray, " matches"]
    target: Int[np.ndarray, " matches"]


def sample_map(
    maps: Float[Tensor, "dim rows columns"], shares: Float[np.ndarray, "places 2"], side: int, padded: int, *, crop_padding: bool
) -> Float[Tensor, "places dim"]:
    """Features at places of a square, bicubic between those of the patches.

        up = interpolate(maps, (grid, grid), mode="bicubic")        # align_corners=False, the same at the middles of its cells

    Args:
        shares: x and y in the square, from 0 to 1. side, padded: of the square in pixels, without and with the zeros around it.
        crop_padding: the map is that of the padded square; otherwise it is taken for that of the square.
    """
    at = torch.from_numpy(shares).to(maps)
    if crop_padding:
        at = ((padded - side) // 2 + at * side) / padded
    found = F.grid_sample(maps[None], 2 * at[None, None] - 1, mode="bicubic", padding_mode="border", align_corners=False)
    return found[0, :, 0].T


def match_places(
    source: Float[Tensor, "places dim"], target: Float[Tensor, "others dim"], count: int, weight: Literal["ratio", "similarity"]
) -> Matches:
    """The `count` best of the source's nearest neighbors by cosine; of equally good ones the first.

    for i in range(places):
        d = 1 - cosine(source[i], target[j]) for all j, ascending
        score[i] = 1 - d[0] / d[1]  or  1 - d[0]
    """
    source, target = F.normalize(source, dim=1), F.normalize(target, dim=1)
    _, index = nearest(target, source, 2)
    distances = exact_distances(source, target, index)
    distances, order = distances.sort(dim=1, stable=True)
    score = ratio_weights(distances) if weight == "ratio" else 1 - distances[:, 0]
    best = score.sort(descending=True, stable=True).indices[:count]
    return Matches(best.cpu().numpy(), index.gather(1, order)[best, 0].cpu().numpy())


def exact_distances(
    source: Float[Tensor, "places dim"], target: Float[Tensor, "others dim"], index: Int[Tensor, "places k"]
) -> Float[Tensor, "places k"]:
    """Cosine distances in float64: |a - b|^2 / 2 of vectors of length 1.

    1 - a.b in float32 is no better than 1e-7; near neighbors on a fine grid are closer than that, and their ratio would be noise.
    """
    rows = max(1, PIECE // (source.shape[1] * index.shape[1]))
    parts = []
    for places, neighbors in zip(source.split(rows), index.split(rows), strict=True):
        own, others = F.normalize(places.double(), dim=-1), F.normalize(target[neighbors].double(), dim=-1)
        parts.append((own[:, None] - others).square().sum(-1) / 2)
    return torch.cat(parts)


def ratio_weights(distances: Float[Tensor, "places 2"]) -> Float[Tensor, " places"]:
    """1 - d1 / d2 of the two smallest distances, both at least 1e-9: 0 where both are 0."""
    near, next_near = distances.clamp(min=LEAST).unbind(1)
    return 1 - near / next_near


def distances_3d(source: Points, target: Others, matches: Matches) -> Float[np.ndarray, " matches"]:
    """Distances in meters of the matched points, in the object's axes."""
    return np.linalg.norm(source[matches.source].astype(np.float64) - target[matches.target], axis=1)


def shares_below(errors: Float[np.ndarray, " errors"]) -> Shares:
    """Share of the errors below each threshold."""
    return np.array([(errors < threshold).mean() for threshold in THRESHOLDS])


def by_position(source: Float[np.ndarray, "places 2"], target: Float[np.ndarray, "others 2"]) -> Matches:
    """Each place of the source with the target's nearest to the same place of the square."""
    return Matches(np.arange(len(source)), cKDTree(target).query(source)[1])


def by_chance(source: Points, target: Others) -> Shares:
    """Share of all pairs of a source's and a target's point that are closer than each threshold: what random matches are expected to have.

    Points at a threshold's very distance count, too.
    """
    counts = cKDTree(source).count_neighbors(cKDTree(target), THRESHOLDS)
    return counts / (len(source) * len(target))


def at_most(source: Points, target: Others, count: int) -> Shares:
    """The largest shares that `count` matches can have: those of the places whose nearest point of the target is close enough."""
    nearest_points = cKDTree(target).query(source)[0]
    count = min(count, len(source))
    return np.array([min(count, int((nearest_points < threshold).sum())) / count for threshold in THRESHOLDS])


def means_of_bins(
    values: Float[np.ndarray, " pairs"], angles: Float[np.ndarray, " pairs"], edges: tuple[float, ...]
) -> list[tuple[float, int]]:
    """Mean and number of the values whose angle lies from each edge on and below the next; NaN of none."""
    found = []
    for low, high in pairwise(edges):
        inside = (angles >= low) & (angles < high)
        found.append((float(values[inside].mean()) if inside.any() else float("nan"), int(inside.sum())))
    return found
