"""Prepared data, opened as images or clips by their receipts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Generator, Tensor
from torch.utils.data import ConcatDataset, Dataset

from densewalk.core.errors import UserError
from densewalk.core.progress import log
from densewalk.data.frame_folders import FrameClips, FrameFolders
from densewalk.data.image_folder import open_image_folder
from densewalk.data.receipts import ImagesReceipt, SequencesReceipt, VideoReceipt
from densewalk.data.storage.places import archive_of
from densewalk.data.storage.staging import is_staging, local_copy
from densewalk.data.video.clips import VideoClips


@dataclass(frozen=True)
class Source:
    """A training copy, a folder of images or one of sequences, by its name in the study."""

    name: str
    receipt: VideoReceipt | ImagesReceipt | SequencesReceipt

    @property
    def kind(self) -> str:
        """`video`, `images` or `sequences`."""
        return self.receipt.kind


def stage_source(source: Source) -> None:
    """Copy a training copy or an archive to the node's own disk if the job is to; a folder of files is read where it lies.

    For a training on several GPUs: before its processes meet, since a copy may take longer than they wait for each other.
    """
    if isinstance(source.receipt, VideoReceipt):
        local_copy(source.receipt.path, source.receipt.sha256)
    elif found := archive_of(source.receipt.path):
        local_copy(found[0].path)
    elif is_staging():
        log.info("%s is a folder of %d files, which is not copied: make it an archive", source.receipt.path, source.receipt.files)


def open_images(source: Source) -> "Dataset[Tensor]":
    """Open single images, uint8 [3, height, width]; frames of a video [1, 3, height, width]."""
    match source.receipt:
        case VideoReceipt():
            return VideoClips(source.receipt, frames=1, spacing_seconds=1.0)
        case SequencesReceipt():
            return FrameClips(FrameFolders(source.receipt.path, only=source.receipt.chosen), frames=1, stride=1)
        case ImagesReceipt():
            return open_image_folder(source.receipt)


def open_clips(source: Source, frames: int, spacing_seconds: float) -> "Dataset[Tensor]":
    """Open clips of so many frames, so many seconds apart, uint8 [frames, 3, height, width].

    Raises:
        UserError: no clip fits, or folders of frames of which nobody has said how fast they are.
    """
    receipt = source.receipt
    if isinstance(receipt, VideoReceipt):
        return VideoClips(receipt, frames, spacing_seconds)
    if isinstance(receipt, ImagesReceipt) or receipt.fps is None:
        raise UserError(
            f"images.{source.name}.fps is not given, but a clip's frames are {spacing_seconds:g} s apart",
            todo="give the sequences' frames a second (DAVIS: 24)",
        )
    stride = round(spacing_seconds * receipt.fps)
    if stride < 1 and frames > 1:
        raise UserError(f"{source.name} has a frame every {1 / receipt.fps:g} s: {spacing_seconds:g} s between frames is less")
    return FrameClips(FrameFolders(receipt.path, only=receipt.chosen), frames, stride)


class SpacedImages:
    """Images of which no two are nearly the same: of a video one frame of each stretch, drawn when it is asked for.

    Stretches are cut at whole multiples of `seconds` of the video; 0 makes each frame one. Folders give all their images.

    Args:
        opened: the sources, each by `open_images`.
    """

    def __init__(self, opened: "Sequence[Dataset[Tensor]]", seconds: float) -> None:
        self.images: ConcatDataset[Tensor] = ConcatDataset(opened)
        begins, before = [], 0
        for images in opened:
            numbers = np.arange(len(images))  # type: ignore[arg-type]
            if isinstance(images, VideoClips) and seconds:
                stretch = images.starts // max(1, round(images.fps * seconds))
                numbers = numbers[np.diff(stretch, prepend=-1) != 0]
            begins.append(before + numbers)
            before += len(images)  # type: ignore[arg-type]
        self.begins = np.concatenate([*begins, [before]])

    def __len__(self) -> int:
        return len(self.begins) - 1

    def draw(self, index: int, generator: Generator) -> UInt8[Tensor, "3 height width"]:
        """An image, of a stretch of a video a random one."""
        first, end = int(self.begins[index]), int(self.begins[index + 1])
        image = self.images[first + int(torch.randint(end - first, (), generator=generator))]
        return image[0] if image.ndim == 4 else image
