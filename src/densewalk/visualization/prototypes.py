"""Frames, and the prototype of each of their patches."""

from pathlib import Path

from jaxtyping import Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from densewalk.visualization.strips import write_rows


def draw_prototypes(path: Path, clips: UInt8[Tensor, "clips frames 3 size size"], maps: Int[Tensor, "clips frames rows columns"]) -> None:
    """Draw each clip's frames, and below them the same with every patch in its prototype's color; frequent ones get the clearest."""
    _, prototype, count = maps.unique(return_inverse=True, return_counts=True)
    rank = count.argsort(descending=True, stable=True).argsort() + 1
    colors = rank[prototype].clamp(max=255)
    large = F.interpolate(colors.float(), clips.shape[-2:], mode="nearest").byte()
    rows = [(frames, labels) for frames, own in zip(clips.permute(0, 1, 3, 4, 2), large, strict=True) for labels in (0 * own, own)]
    write_rows(path, [(frames.numpy(), labels.numpy()) for frames, labels in rows])
