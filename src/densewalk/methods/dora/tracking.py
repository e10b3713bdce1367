"""Discover objects in the first frame and track them through a clip (DoRA, equations 2 to 7)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from densewalk.methods.dora.settings import DoraSettings
from densewalk.ops.sinkhorn import linear_sinkhorn, sinkhorn


@dataclass(frozen=True)
class TeacherFeatures:
    """The teacher's output for clips, in float32; everything but logits and keys is the first frame's."""

    logits: Float[Tensor, "batch frames protos"]
    patches: Float[Tensor, "batch patches dim"]
    query: Float[Tensor, "batch patches dim"]
    keys: Float[Tensor, "batch frames patches dim"]
    cls_attention: Float[Tensor, "batch heads patches"]
    grid: tuple[int, int]


def join_heads(x: Float[Tensor, "batch heads tokens head_dim"], prefix: int) -> Float[Tensor, "batch patches dim"]:
    """Queries or keys of the patches, heads side by side, in float32."""
    return x[:, :, prefix:].transpose(1, 2).flatten(2).float()


def object_prototypes(
    attention: Float[Tensor, "batch objects patches"], query: Float[Tensor, "batch patches dim"]
) -> Float[Tensor, "batch objects dim"]:
    """Equation 2: queries pooled by CLS's attention in each drawn head. The rows of `attention` sum to less than 1, as released."""
    return attention @ query


def refine_prototypes(
    prototypes: Float[Tensor, "batch objects dim"], patches: Float[Tensor, "batch patches dim"], settings: DoraSettings
) -> Float[Tensor, "batch objects dim"]:
    """Equations 4 and 5: share the patches out evenly among the objects, then pool the normalized patches by their shares.

    Raises:
        NonFiniteScores: patches or prototypes are not finite.
    """
    unit = F.normalize(patches, dim=-1)
    solve = linear_sinkhorn if settings.linear_sinkhorn else sinkhorn
    shares = solve(unit @ prototypes.transpose(1, 2), epsilon=settings.sinkhorn_epsilon, iterations=settings.sinkhorn_iterations)
    if not settings.n_fold_assignment:
        shares = shares / shares.shape[1]
    return shares.transpose(1, 2) @ unit


def track_objects(
    prototypes: Float[Tensor, "batch objects dim"], keys: Float[Tensor, "batch frames patches dim"]
) -> Float[Tensor, "batch objects frames patches"]:
    """Equation 6: cross-attention of the objects to each frame's patches, over the full width of all heads."""
    scores = torch.einsum("bkd,btnd->bktn", prototypes, keys) * keys.shape[-1] ** -0.5
    return scores.softmax(dim=-1)


def soft_masks(tracks: Float[Tensor, "batch objects frames patches"]) -> Float[Tensor, "batch objects frames patches"]:
    """Each map scaled to 0..1; NaN where a map is constant."""
    low, high = tracks.aminmax(dim=-1, keepdim=True)
    return (tracks - low) / (high - low)


def hard_masks(tracks: Float[Tensor, "batch objects frames patches"], *, per_batch: bool) -> Float[Tensor, "batch objects frames patches"]:
    """1 where a map, scaled to unit length, exceeds the mean over its patches, or over all patches of the batch; else 0."""
    unit = F.normalize(tracks, dim=-1)
    threshold = unit.mean(dim=(0, -1) if per_batch else -1, keepdim=True)
    return (unit > threshold).float()


def assign_argmax(tracks: Float[Tensor, "batch objects frames patches"]) -> Float[Tensor, "batch objects frames patches"]:
    """1 for the object whose attention to a patch is the largest, 0 for the others."""
    return F.one_hot(tracks.argmax(dim=1), tracks.shape[1]).movedim(-1, 1).float()


def apply_masks(
    views: Float[Tensor, "batch frames 3 height width"], masks: Float[Tensor, "batch objects frames patches"], grid: tuple[int, int]
) -> Float[Tensor, "batch objects frames 3 height width"]:
    """Equation 7: every frame times every object's mask, each patch as a whole."""
    rows, columns = grid
    patches = views.unflatten(-2, (rows, -1)).unflatten(-1, (columns, -1))[:, None]
    weights = masks.unflatten(-1, grid)[:, :, :, None, :, None, :, None]
    return (patches * weights).flatten(-2).flatten(-3, -2)


def mask_statistics(masks: Float[Tensor, "batch objects frames patches"]) -> dict[str, Tensor]:
    """Mean share of a frame that an object keeps, and mean share that two objects have in common."""
    pairs = torch.combinations(torch.arange(masks.shape[1], device=masks.device))
    common = torch.minimum(masks[:, pairs[:, 0]], masks[:, pairs[:, 1]])
    return {"mask_keep": masks.mean(), "object_overlap": common.mean() if len(pairs) else masks.new_zeros(())}
