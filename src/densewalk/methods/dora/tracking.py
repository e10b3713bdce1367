"""Discover objects in the first frame and track them through a clip (DoRA, equations 2 to 7)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from densewalk.methods.dino.self_distillation import BadBatch
from densewalk.methods.dora.settings import DoraSettings
from densewalk.ops.sinkhorn import linear_sinkhorn, sinkhorn

Prototypes = Float[Tensor, "batch objects dim"]
Maps = Float[Tensor, "batch objects frames patches"]


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


def object_prototypes(attention: Float[Tensor, "batch objects patches"], query: Float[Tensor, "batch patches dim"]) -> Prototypes:
    """Equation 2: queries pooled by CLS's attention in each drawn head. The rows of `attention` sum to less than 1, as released."""
    return attention @ query


def refine_prototypes(prototypes: Prototypes, patches: Float[Tensor, "batch patches dim"], settings: DoraSettings) -> Prototypes:
    """Equations 4 and 5: share the patches out evenly among the objects, then pool the normalized patches by their shares."""
    unit = F.normalize(patches, dim=-1)
    solve = linear_sinkhorn if settings.linear_sinkhorn else sinkhorn
    shares = solve(unit @ prototypes.transpose(1, 2), epsilon=settings.sinkhorn_epsilon, iterations=settings.sinkhorn_iterations)
    if not settings.n_fold_assignment:
        shares = shares / shares.shape[1]
    return shares.transpose(1, 2) @ unit


def track_objects(prototypes: Prototypes, keys: Float[Tensor, "batch frames patches dim"]) -> Maps:
    """Equation 6: cross-attention of the objects to each frame's patches, over the full width of all heads, of sum 1."""
    scores = torch.einsum("bkd,btnd->bktn", prototypes, keys) * keys.shape[-1] ** -0.5
    return scores.softmax(dim=-1)


def object_masks(tracks: Maps, settings: DoraSettings) -> Maps:
    """How much the student is shown of each patch, 0..1; NaN where soft masks have nothing to tell apart."""
    return hard_masks(tracks, per_batch=bool(settings.batch_threshold)) if settings.hard_masks else soft_masks(tracks)


def require_patches(masks: Maps) -> None:
    """Raise BadBatch if an object has no patch in some frame."""
    empty = ~(masks.amax(dim=-1) > 0)  # true for NaN, too
    if empty.any():
        raise BadBatch(f"{int(empty.sum())} of {empty.numel()} tracked objects have no patch to show")


def soft_masks(tracks: Maps) -> Maps:
    """Each map scaled to 0..1; NaN where a map is constant."""
    low, high = tracks.aminmax(dim=-1, keepdim=True)
    return (tracks - low) / (high - low)


def hard_masks(tracks: Maps, *, per_batch: bool) -> Maps:
    """1 where a map, scaled to unit length, exceeds the mean over its patches, or over all patches of the batch; else 0."""
    unit = F.normalize(tracks, dim=-1)
    threshold = unit.mean(dim=(0, -1) if per_batch else -1, keepdim=True)
    return (unit > threshold).float()


def assign_argmax(tracks: Maps) -> Maps:
    """1 for the object whose attention to a patch is the largest, 0 for the others."""
    return F.one_hot(tracks.argmax(dim=1), tracks.shape[1]).movedim(-1, 1).float()


def apply_masks(
    views: Float[Tensor, "batch frames 3 height width"], masks: Maps, grid: tuple[int, int]
) -> Float[Tensor, "batch objects frames 3 height width"]:
    """Equation 7: every frame times every object's mask, each patch as a whole."""
    rows, columns = grid
    patches = views.unflatten(-2, (rows, -1)).unflatten(-1, (columns, -1))[:, None]
    weights = masks.unflatten(-1, grid)[:, :, :, None, :, None, :, None]
    return (patches * weights).flatten(-2).flatten(-3, -2)


def mask_statistics(masks: Maps) -> dict[str, Tensor]:
    """Mean share of a frame that an object keeps, and mean share that two objects have in common."""
    pairs = torch.combinations(torch.arange(masks.shape[1], device=masks.device))
    common = torch.minimum(masks[:, pairs[:, 0]], masks[:, pairs[:, 1]])
    return {"mask_keep": masks.mean(), "object_overlap": common.mean() if len(pairs) else masks.new_zeros(())}
