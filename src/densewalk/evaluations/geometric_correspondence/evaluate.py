"""Geometric correspondence on NAVI (https://arxiv.org/abs/2306.09109), as Probe3D and DINOv3 measure it.

    densewalk evaluate --spec results/specs/HASH.json --backbone backbone.safetensors --state DIR --out FILE

Both views of a pair show one object. Each place of the object in the first view (matching.py) is matched to the most similar place in the
second; the best 1,000 matches are scored by the distance of their points, which depth and pose give (views.py). A recall is the share of
matches that are less than 1, 2 or 5 cm off, mean over the pairs; `recall` is the mean of the three, as DINOv3 reports it.

Two floors need no backbone: the same place of the square that is cut out around the object, and a random place of the object, both for all
places. `ceiling` in the details is what perfect features can have: hidden points have no right match.

    job.out/strip.png       some pairs and some of their matches
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.core.progress import Progress
from densewalk.data.benchmarks.object_views import ObjectView, read_view_depth, read_views
from densewalk.data.image_files import read_image
from densewalk.data.images import normalize
from densewalk.evaluations.common.base import Job, Result, load_network, require_finite
from densewalk.evaluations.common.shares import owned, shared_map
from densewalk.evaluations.geometric_correspondence import matching
from densewalk.evaluations.geometric_correspondence.matching import Matches, Shares
from densewalk.evaluations.geometric_correspondence.pairs import ViewPair, choose_pairs
from densewalk.evaluations.geometric_correspondence.settings import THRESHOLDS, GeometricCorrespondenceSettings
from densewalk.evaluations.geometric_correspondence.views import SeenObject, cut_image, see_object
from densewalk.evidence.statistics import MeanOfUnits
from densewalk.evidence.units import Units
from densewalk.models.feature_cache import Dense
from densewalk.models.interface import Network
from densewalk.visualization.matches import Matches as DrawnMatches
from densewalk.visualization.matches import write_match_strip

ANGLES = (0.0, 30.0, 60.0, 90.0, 120.0)  # degrees
RIGHT = THRESHOLDS.index(0.02)  # of the matches that are drawn, and of the table by angle
LEAST_COMMON = 0.1  # of the best possible matches within 5 cm; about 0.9 where cameras and depths are right
SHOWN, DRAWN = 8, 12  # pairs in `strip.png`, and matches of each


@dataclass(frozen=True)
class Scored:
    """The shares of a pair's matches that are right, of its floors and of the best possible matches; how many matches; some to be drawn."""

    recall: Shares
    position: Shares
    chance: Shares
    ceiling: Shares
    matches: int
    drawn: DrawnMatches | None


@dataclass(frozen=True)
class Viewer:
    """What turns views into features. side, padded: of the square that is cut out, and with zeros to whole patches."""

    settings: GeometricCorrespondenceSettings
    network: Network
    dense: Dense
    side: int
    padded: int
    device: str

    def features(self, view: ObjectView, seen: SeenObject) -> Float[Tensor, "dim rows columns"]:
        """The map of a view."""
        pixels = TF.to_tensor(cut_image(view, seen.square, self.side))
        before = (self.padded - self.side) // 2
        after = self.padded - self.side - before
        images = F.pad(normalize(pixels, self.network.statistics)[None], (before, after, before, after))
        with torch.inference_mode():
            maps = self.dense(images.to(self.device))
        require_finite(maps, [view.image], self.network.source)
        return maps[0].float()

    def at_places(self, maps: Float[Tensor, "dim rows columns"], seen: SeenObject) -> Float[Tensor, "places dim"]:
        """The features of the places that show the object."""
        with torch.inference_mode():
            crop = bool(self.settings.crop_padding)
            return matching.sample_map(maps, seen.shares, self.side, self.padded, crop_padding=crop)


def evaluate(settings: GeometricCorrespondenceSettings, backbone_path: Path, job: Job) -> Result:
    """Match and score all pairs."""
    settings = settings.resolved()
    pairs, alone = choose_pairs(read_views(settings.root), settings)
    viewer = make_viewer(settings, backbone_path, job)
    groups = [list(members) for _, members in groupby(pairs, key=lambda pair: pair.source.thing)]
    shown = {pairs[round(i)].name for i in np.linspace(0, len(pairs) - 1, SHOWN)}
    seen: dict[str, SeenObject] = {}
    mine = sum(len(groups[i]) for i in owned([*map(len, groups)]))
    progress = Progress("depth of pairs", mine)
    shared_map(lambda group: see_objects(group, viewer.side, settings, seen, progress), groups, cost=len)  # before any features
    progress.close()
    progress = Progress("geometric correspondence", mine)
    scored = shared_map(lambda group: match_pairs(viewer, group, seen, shown, progress), groups, cost=len)
    progress.close()
    found = [one for group in scored for one in group]
    require_overlap(pairs, found)
    if distributed.rank() == 0:
        write_match_strip(job.out / "strip.png", [one.drawn for one in found if one.drawn is not None])
    return summarize(settings, pairs, found, alone)


def describe_data(settings: GeometricCorrespondenceSettings) -> dict[str, int]:
    """Count what `evaluate` would read, and open a sample of it."""
    views = read_views(settings.root)
    pairs, _ = choose_pairs(views, settings)
    read_image(views[0].image)
    read_view_depth(views[0])
    return {"objects": len({view.thing for view in views}), "views": len(views), "pairs": len(pairs)}


def make_viewer(settings: GeometricCorrespondenceSettings, backbone_path: Path, job: Job) -> Viewer:
    """The network, and the size of what it sees."""
    network = load_network(settings, backbone_path, job)
    side = settings.side(getattr(network.arch, "patch", None))
    padded = -(-side // network.multiple) * network.multiple
    network.require_size(padded, padded)

    def last_block(images: Tensor) -> Tensor:
        return network.levels(images, [network.depth - 1], norm=False)[0]

    compute, kind = (network.dense, "") if settings.final_norm else (last_block, "last block without final norm")
    return Viewer(settings, network, job.cached(compute, backbone_path, "views", kind), side, padded, job.device)


def see_objects(
    pairs: Sequence[ViewPair], side: int, settings: GeometricCorrespondenceSettings, seen: dict[str, SeenObject], progress: Progress
) -> None:
    """Read the depth maps of an object's pairs, each once, and keep its points in `seen`."""
    for pair in pairs:
        for view in (pair.source, pair.target):
            if view.name not in seen:
                seen[view.name] = see_object(view, side, settings)
        progress.advance()


def match_pairs(
    viewer: Viewer, pairs: Sequence[ViewPair], seen: dict[str, SeenObject], shown: set[str], progress: Progress
) -> list[Scored]:
    """Score the pairs of an object; no view's features are computed twice, and no other object's are in memory."""
    maps: dict[str, Tensor] = {}
    found = []
    for pair in pairs:
        for view in (pair.source, pair.target):
            if view.name not in maps:
                maps[view.name] = viewer.features(view, seen[view.name])
        source, target = seen[pair.source.name], seen[pair.target.name]
        features = [viewer.at_places(maps[view.name], seen[view.name]) for view in (pair.source, pair.target)]
        matches = matching.match_places(features[0], features[1], viewer.settings.matches, viewer.settings.weight)
        found.append(score(pair, source, target, matches, viewer.settings.matches, viewer.side if pair.name in shown else None))
        progress.advance()
    return found


def score(pair: ViewPair, source: SeenObject, target: SeenObject, matches: Matches, count: int, drawn: int | None) -> Scored:
    """Compare the points of all matches. drawn: side of the squares that are drawn; None: the pair is not."""
    errors = matching.distances_3d(source.points, target.points, matches)
    same_place = matching.by_position(source.shares, target.shares)
    return Scored(
        recall=matching.shares_below(errors),
        position=matching.shares_below(matching.distances_3d(source.points, target.points, same_place)),
        chance=matching.by_chance(source.points, target.points),
        ceiling=matching.at_most(source.points, target.points, count),
        matches=len(errors),
        drawn=None if drawn is None else draw(pair, source, target, matches, errors, drawn),
    )


def draw(
    pair: ViewPair, source: SeenObject, target: SeenObject, matches: Matches, errors: Float[np.ndarray, " matches"], side: int
) -> DrawnMatches:
    """Some matches, from the best to the last one, on the squares that the network saw."""
    some = np.unique(np.linspace(0, len(errors) - 1, DRAWN).round().astype(int))
    rays, _ = pair.target.project(source.points[matches.source[some]].astype(np.float64))
    right = errors < THRESHOLDS[RIGHT]
    return DrawnMatches(
        title=f"{pair.source.thing}, {pair.angle:.0f} degrees: {100 * right.mean():.0f} % right",
        left=cut_image(pair.source, source.square, side),
        right=cut_image(pair.target, target.square, side),
        points=side * source.shares[matches.source[some]],
        found=side * target.shares[matches.target[some]],
        truth=side * np.clip(target.square.shares_of(rays), 0, 1),
        correct=right[some],
    )


def require_overlap(pairs: Sequence[ViewPair], found: Sequence[Scored]) -> None:
    """Refuse cameras that do not fit the depths: then views of one object hardly have points in common.

    Raises:
        UserError: of the matches, less than a tenth could be within 5 cm, mean over the pairs.
    """
    common = float(np.mean([one.ceiling[-1] for one in found]))
    if common < LEAST_COMMON:
        cameras = pairs[0].source.image.parents[1] / "annotations.json"
        raise UserError(
            f"views of one object have {100 * common:.1f} % of their points within 5 cm of each other: the cameras do not fit the depths "
            f"(of the first pair: {cameras})",
            allowed="q as w, x, y, z and t in millimeters, from the object to the camera",
            todo="download the data again",
        )


def summarize(settings: GeometricCorrespondenceSettings, pairs: Sequence[ViewPair], found: Sequence[Scored], alone: int) -> Result:
    """The recalls in percent with their floors; in the details by angle and by object, and what perfect features can have."""
    recall, position, chance, ceiling = (
        np.stack([getattr(one, kind) for one in found]) for kind in ("recall", "position", "chance", "ceiling")
    )
    names = [f"{100 * threshold:g}cm" for threshold in THRESHOLDS]
    values = {"recall": recall.mean(1)} | {f"recall@{name}": recall[:, i] for i, name in enumerate(names)}
    values |= {"recall_position": position.mean(1), "recall_chance": chance.mean(1)}
    things = [pair.source.thing for pair in pairs]
    bins = matching.means_of_bins(recall[:, RIGHT], np.array([pair.angle for pair in pairs]), ANGLES)
    details: dict[str, Any] = {
        "objects": len(set(things)),
        "views_without_partner": alone,
        "pairs_with_fewer_matches": sum(one.matches < settings.matches for one in found),
        "ceiling": {name: 100 * float(ceiling[:, i].mean()) for i, name in enumerate(names)},
        "position": {name: 100 * float(position[:, i].mean()) for i, name in enumerate(names)},
        "chance": {name: 100 * float(chance[:, i].mean()) for i, name in enumerate(names)},
        f"recall@{names[RIGHT]}_by_angle": {
            f"{low:g}-{high:g}": {"recall": round(100 * mean, 4), "pairs": count}
            for (low, high), (mean, count) in zip(pairwise(ANGLES), bins, strict=True)
            if count
        },
        "recall_by_object": {
            thing: round(100 * float(values["recall"][np.array(things) == thing].mean()), 4) for thing in sorted(set(things))
        },
    }
    statistics = {name: MeanOfUnits(of_pairs, 100.0) for name, of_pairs in values.items()}
    units = Units([pair.name for pair in pairs], "pair", statistics, things, "object")
    metrics = {name: 100 * float(of_pairs.mean()) for name, of_pairs in values.items()}
    return Result(metrics=metrics, n=len(pairs), unit="pairs", details=details, units=units)
