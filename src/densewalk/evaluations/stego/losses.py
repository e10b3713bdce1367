"""STEGO's losses: correspondences of features distilled into codes, clusters of codes, and a contrastive CRF.

Source: STEGO (https://arxiv.org/abs/2203.08414), sections 3.1 to 3.3, and its released modules.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor
from torch.nn import functional as F

LARGEST = 0.8  # cosine of two codes, with `stabilize`
Maps = Float[Tensor, "batch dim rows columns"]
Codes = Float[Tensor, "batch code_dim rows columns"]
Points = Float[Tensor, "batch dim places"]
Pairs = Float[Tensor, "batch places others"]


class Centering(NamedTuple):
    """pointwise: subtract each place's mean. low, high: range that cosines of codes are cut to."""

    pointwise: bool = True
    low: float = 0.0
    high: float = float("inf")


class Places(NamedTuple):
    """Positions of an image, x and y in -1..1, and of those that it is compared with."""

    own: Float[Tensor, "batch samples samples 2"]
    other: Float[Tensor, "batch samples samples 2"]


class Losses(NamedTuple):
    """Of the pairs of an image with itself, with a nearest view and with random others; share of the pairs that lie above the shift."""

    own: Tensor
    knn: Tensor
    random: Float[Tensor, " negatives"]
    shares: Float[Tensor, "3"]


def sample_maps(maps: Maps, places: Float[Tensor, "batch samples samples 2"]) -> Points:
    """Values at positions (x, y), -1 and 1 being the centers of the outer cells; bilinear."""
    grid = places.transpose(1, 2)
    return F.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=True).flatten(2)


def cosines(points: Points, others: Points) -> Pairs:
    """n(x_p) . n(x'_r) of all pairs of places."""
    return F.normalize(points, dim=1, eps=1e-10).transpose(1, 2) @ F.normalize(others, dim=1, eps=1e-10)


def correspondences(points: Points, others: Points, *, pointwise: bool) -> Pairs:
    """F of features, without gradient.

    F = cos;  pointwise:  F_pr <- F_pr - mean_r F_pr,  F <- F - mean F + mean cos        means over the whole batch
    """
    found = cosines(points.detach(), others.detach())
    if not pointwise:
        return found
    before = found.mean()
    found = found - found.mean(dim=2, keepdim=True)
    return found - found.mean() + before


def pair_loss(features: Pairs, points: Points, others: Points, shift: float, centering: Centering) -> Tensor:
    """-mean_pr( clamp(S_pr) (F_pr - b) ),  S the cosines of codes, b the shift."""
    similar = cosines(points, others).clamp(centering.low, centering.high)
    return -(similar * (features - shift)).mean()


def correspondence_losses(
    features: tuple[Maps, Maps],
    codes: tuple[Codes, Codes],
    places: Places,
    negatives: Int[Tensor, "negatives batch"],
    shifts: tuple[float, float, float],
    centering: Centering,
) -> Losses:
    """The three losses of a batch.

    Args:
        features, codes: of the images and of their nearest views. negatives: the other image of each image, several times.
        shifts: b for an image itself, its nearest view and random others.
    """

    def compare(other_features: Maps, other_codes: Codes, at: Tensor, shift: float) -> tuple[Tensor, Tensor]:
        found = correspondences(own_features, sample_maps(other_features, at), pointwise=centering.pointwise)
        return pair_loss(found, own_codes, sample_maps(other_codes, at), shift, centering), (found > shift).float().mean()

    own_features, own_codes = sample_maps(features[0], places.own), sample_maps(codes[0], places.own)
    own = compare(features[0], codes[0], places.own, shifts[0])
    knn = compare(features[1], codes[1], places.other, shifts[1])
    random = [compare(features[0][chosen], codes[0][chosen], places.other, shifts[2]) for chosen in negatives]
    losses, shares = (torch.stack(column) for column in zip(*random, strict=True))
    return Losses(own[0], knn[0], losses, torch.stack([own[1], knn[1], shares.mean()]))


def sample_places(batch: int, samples: int, generator: Generator) -> Float[Tensor, "{batch} {samples} {samples} 2"]:
    """Random positions in -1..1."""
    return torch.rand(batch, samples, samples, 2, generator=generator) * 2 - 1


def sample_negatives(batch: int, generator: Generator) -> Int[Tensor, " {batch}"]:
    """Another image for each image: a random permutation, in which an image that stays is moved to the next one; so no permutation."""
    order, places = torch.randperm(batch, generator=generator), torch.arange(batch)
    return torch.where(order == places, (order + 1) % batch, order)


def cluster_scores(codes: Maps, centers: Float[Tensor, "clusters dim"]) -> Float[Tensor, "batch clusters rows columns"]:
    """Cosine of every code with every center."""
    return torch.einsum("bdrc,kd->bkrc", F.normalize(codes, dim=1), F.normalize(centers, dim=1))


def cluster_shares(
    scores: Float[Tensor, "batch clusters rows columns"], sharpness: float | None
) -> Float[Tensor, "batch clusters rows columns"]:
    """1 for the nearest center and 0 for the others, or with a sharpness softmax(sharpness cos)."""
    if sharpness is not None:
        return (sharpness * scores).softmax(dim=1)
    return torch.zeros_like(scores).scatter_(1, scores.argmax(dim=1, keepdim=True), 1.0)


def cluster_loss(codes: Maps, centers: Float[Tensor, "clusters dim"], sharpness: float | None = None) -> Tensor:
    """-mean over pixels of sum_k share_k cos(code, center_k); codes get no gradient."""
    scores = cluster_scores(codes.detach(), centers)
    return -(cluster_shares(scores, sharpness) * scores).sum(dim=1).mean()


class CrfWeights(NamedTuple):
    """Of `crf_loss`: scales of position and color (not squared), of position alone, weights of both kernels, and what is subtracted."""

    alpha: float = 0.5
    beta: float = 0.15
    gamma: float = 0.05
    both: float = 10.0
    near: float = 3.0
    shift: float = 0.0


RELEASED_CRF = CrfWeights()


def crf_loss(
    images: Float[Tensor, "batch 3 height width"],
    codes: Float[Tensor, "batch dim height width"],
    pixels: Int[Tensor, "2 samples"],
    weights: CrfWeights = RELEASED_CRF,
) -> Tensor:
    """-mean_ab( s_a . s_b k_ab ) over the pairs of some pixels.

        k_ab = both exp(-d^2 / 2 alpha - c^2 / 2 beta) + near exp(-d^2 / 2 gamma) - shift

    Args:
        pixels: their rows and columns. d: distance in pixels. c: distance of colors. codes: s, of unit length in training.
    """
    rows, columns = pixels
    colors, chosen = images[:, :, rows, columns], codes[:, :, rows, columns]
    distance = (pixels[:, :, None] - pixels[:, None, :]).square().sum(0).float()
    contrast = (colors[:, :, :, None] - colors[:, :, None, :]).square().sum(1)
    kernel = weights.both * torch.exp(-distance / (2 * weights.alpha) - contrast / (2 * weights.beta))
    kernel = kernel + weights.near * torch.exp(-distance / (2 * weights.gamma)) - weights.shift
    return -(torch.einsum("bda,bde->bae", chosen, chosen) * kernel).mean()
