"""Frames, and the prototype of each of their patches, or points that are followed through them."""

from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor
from torch.nn import functional as F

from densewalk.visualization.strips import write_rows

DISKS, LEAST = 100, 1.5  # radii of a point's disk in the side of a frame, and the smallest radius in pixels


def draw_prototypes(path: Path, clips: UInt8[Tensor, "clips frames 3 size size"], maps: Int[Tensor, "clips frames rows columns"]) -> None:
    """Draw each clip's frames, and below them the same with every patch in its prototype's color; frequent ones get the clearest."""
    _, prototype, count = maps.unique(return_inverse=True, return_counts=True)
    rank = count.argsort(descending=True, stable=True).argsort() + 1
    colors = rank[prototype].clamp(max=255)
    large = F.interpolate(colors.float(), clips.shape[-2:], mode="nearest").byte()
    rows = [(frames, labels) for frames, own in zip(clips.permute(0, 1, 3, 4, 2), large, strict=True) for labels in (0 * own, own)]
    write_rows(path, [(frames.numpy(), labels.numpy()) for frames, labels in rows])


def draw_tracks(
    path: Path,
    clips: UInt8[Tensor, "clips frames 3 size size"],
    points: Float[Tensor, "clips points frames 2"],
    visible: Bool[Tensor, "clips points frames"],
) -> None:
    """Draw each clip's frames, and below them the same with every visible point as a disk of its own color. points: x, y in pixels."""
    size, colors = clips.shape[-1], torch.arange(points.shape[1]) % 255 + 1
    middles, radius = torch.arange(size) + 0.5, max(LEAST, size / DISKS)
    rows: list[tuple[Tensor, Tensor]] = []
    for frames, own, seen in zip(clips.permute(0, 1, 3, 4, 2), points, visible, strict=True):
        labels = torch.zeros(frames.shape[:3], dtype=torch.uint8)
        for number, (color, track) in enumerate(zip(colors.tolist(), own, strict=True)):
            x, y = track.unbind(1)  # [frames]
            near = (middles - y[:, None]).square()[:, :, None] + (middles - x[:, None]).square()[:, None] < radius**2
            labels[near & seen[number, :, None, None]] = color
        rows += [(frames, torch.zeros_like(labels)), (frames, labels)]
    write_rows(path, [([*frames.numpy()], [*labels.numpy()]) for frames, labels in rows])
