"""Prepared data sets by their receipts, opened as images or clips."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from densewalk.core.errors import UserError
from densewalk.data.frame_folders import FrameClips, FrameFolders
from densewalk.data.image_folder import ImageFolder
from densewalk.data.video.clips import VideoClips


@dataclass(frozen=True)
class Source:
    """One prepared data set: a transcoded video or a checked image folder, with its receipt (jobs/prepare.py)."""

    name: str
    kind: str  # "video", "images" or "sequences"
    path: Path
    receipt: dict[str, Any]


def open_images(source: Source) -> "Dataset[Tensor]":
    """The images of a source, uint8 [3, height, width] or, from a video or sequences of frames, [1, 3, height, width]."""
    if source.kind == "video":
        return VideoClips(source.path, source.receipt, frames=1, spacing_seconds=1.0)
    if source.kind == "sequences":
        return FrameClips(FrameFolders(source.path, only=source.receipt.get("chosen")), frames=1, stride=1)
    return ImageFolder(source.path, receipt=source.receipt)


def open_clips(source: Source, frames: int, spacing_seconds: float) -> "Dataset[Tensor]":
    """The clips of a source, uint8 [frames, 3, height, width].

    Args:
        frames: per clip. spacing_seconds: from one frame of a clip to the next.

    Raises:
        UserError: no clip fits, or folders of frames of which nobody has said how fast they are.
    """
    if source.kind == "video":
        return VideoClips(source.path, source.receipt, frames, spacing_seconds)
    fps = source.receipt.get("fps")
    if fps is None:
        raise UserError(
            f"images.{source.name}.fps is not given, but a clip's frames are {spacing_seconds:g} s apart",
            todo="give the sequences' frames a second (DAVIS: 24)",
        )
    stride = round(spacing_seconds * fps)
    if stride < 1 and frames > 1:
        raise UserError(f"{source.name} has a frame every {1 / fps:g} s: {spacing_seconds:g} s between frames is less")
    return FrameClips(FrameFolders(source.path, only=source.receipt.get("chosen")), frames, stride)
