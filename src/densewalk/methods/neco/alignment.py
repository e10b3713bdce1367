"""Patches of two crops that show the same place, and their distances to references."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from densewalk.methods.neco.settings import NecoSettings
from densewalk.ops.roi_align import aligned_patches

InGlobal = Float[Tensor, "batch globals views 4"]  # boxes as left, top, right, bottom in patches
InView = Float[Tensor, "batch views globals 4"]
Maps = Float[Tensor, "batch crops out rows columns"]
Masks = Bool[Tensor, "batch crops rows columns"]
Aligned = Float[Tensor, "pairs batch patches out"]
Covered = Bool[Tensor, "batch globals views patches"]  # of the region that each global crop shares with each view
Learned = Bool[Tensor, "pairs batch patches"]


def crop_pairs(settings: NecoSettings) -> list[tuple[int, int]]:
    """(teacher's global crop, student's crop), for every two different crops."""
    crops = settings.global_crops + settings.local_crops
    return [(i, v) for i in range(settings.global_crops) for v in range(crops) if v != i]


def align(
    teacher: Maps, student: Sequence[Tensor], in_global: InGlobal, in_view: InView, settings: NecoSettings
) -> tuple[Aligned, Aligned]:
    """The teacher's and the student's patches of the region that the two crops of each pair share, resampled to one grid.

    for p, (i, v) in enumerate(pairs):
        targets[p] = RoIAlign(teacher[:, i], in_global[:, i, v])
        sources[p] = RoIAlign(student crop v, in_view[:, v, i])

    `student`: maps [batch, crops, out, rows, columns] of the global crops and, if there are any, of the local ones.
    """
    side, n = settings.aligned_patches, settings.global_crops
    targets = resample(teacher, without_diagonal(in_global), side)
    aligned = [resample(maps, boxes, side) for maps, boxes in zip(student, student_boxes(in_view).values(), strict=True)]
    sources = [aligned[0][:, v, i - (i > v)] if v < n else aligned[1][:, v - n, i] for i, v in crop_pairs(settings)]
    return targets.permute(1, 2, 0, 3, 4).flatten(0, 1), torch.stack(sources)


def student_boxes(in_view: InView) -> dict[str, Float[Tensor, "batch _ _ 4"]]:
    """The regions that the student's global crops share with the other global ones, and its local crops with all global ones."""
    n = in_view.shape[2]
    boxes = {"global": without_diagonal(in_view[:, :n])}
    return boxes if in_view.shape[1] == n else {**boxes, "local": in_view[:, n:]}


def without_diagonal(boxes: Float[Tensor, "batch crops others 4"]) -> Float[Tensor, "batch crops others-1 4"]:
    """Boxes of every crop with every other one, less those with itself."""
    kept = [[v for v in range(boxes.shape[2]) if v != i] for i in range(boxes.shape[1])]
    return torch.stack([boxes[:, i, others] for i, others in enumerate(kept)], dim=1)


def used_patches(boxes: Float[Tensor, "batch crops boxes 4"], side: int) -> Bool[Tensor, "batch crops side side"]:
    """The patches that RoIAlign of any box may read: it samples within half a patch left of the box, between two patches.

    for left, top, right, bottom in boxes:
        used[floor(top - 1/2) : floor(bottom - 1/2) + 2, floor(left - 1/2) : floor(right - 1/2) + 2] = True
    """
    cells = torch.arange(side, device=boxes.device)
    first, last = (boxes - 0.5).floor().chunk(2, dim=-1)
    inside = (cells >= first[..., None]) & (cells <= last[..., None] + 1)  # [batch, crops, boxes, (x, y), side]
    return (inside[..., 1, :, None] & inside[..., 0, None, :]).any(dim=2)


def resample(
    maps: Float[Tensor, "batch crops channels rows columns"], boxes: Float[Tensor, "batch crops boxes 4"], side: int
) -> Float[Tensor, "batch crops boxes patches channels"]:
    """RoIAlign of several boxes of each map, `side` squared patches each."""
    shape = boxes.shape[:3]
    numbers = torch.arange(shape[0] * shape[1], device=boxes.device).repeat_interleave(shape[2])
    return aligned_patches(maps.flatten(0, 1), numbers, boxes.flatten(0, 2), side).unflatten(0, shape)


def distances(
    patches: Float[Tensor, "*rows patches out"], references: Float[Tensor, "*rows refs out"], settings: NecoSettings
) -> Float[Tensor, "*rows patches refs"]:
    """Equation 1: cosine or Euclidean distance of each patch to each reference, to be sorted in ascending order.

    With `similarity_order`, the cosine similarity itself.
    """
    if settings.distance == "euclidean":
        return torch.cdist(patches, references)
    similarities = F.normalize(patches, dim=-1) @ F.normalize(references, dim=-1).transpose(-2, -1)
    return similarities if settings.similarity_order else 1 - similarities


def align_masks(masks: Masks, in_global: InGlobal, settings: NecoSettings) -> Covered:
    """The aligned patches that lie wholly within the mask, in the region that each global crop shares with each view.

    RoIAlign's weights sum to 1 but for rounding, which `exact_mask` does not allow for.
    """
    inside = resample(masks.float().unsqueeze(2), in_global, settings.aligned_patches).squeeze(-1)
    return inside >= 1 if settings.exact_mask else inside > 1 - 1e-5


def select_pairs(covered: Covered, pairs: Sequence[tuple[int, int]]) -> Learned:
    """The masks of each pair's region."""
    return torch.stack([covered[:, i, v] for i, v in pairs])
