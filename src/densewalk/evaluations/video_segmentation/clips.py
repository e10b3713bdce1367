"""Annotated videos cut into clips, and the square frames, features and labels of one clip."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from densewalk.data.benchmarks.paths import read_list
from densewalk.data.benchmarks.video_objects import LabelledVideo, list_davis, list_youtube_vos
from densewalk.data.images import normalize, read_rgb
from densewalk.evaluations.common.base import require_finite
from densewalk.evaluations.video_segmentation.settings import ClipSettings
from densewalk.models.interface import Network

Points = Float[Tensor, "frames patches dim"]
Labels = Int[Tensor, "frames height width"]


@dataclass(frozen=True)
class Clip:
    """Some frames of a sequence. offset: the data set's number of the sequence's object 1, less 1."""

    sequence: LabelledVideo
    numbers: list[int]
    offset: int


@dataclass(frozen=True)
class View:
    """The frames of a clip as the backbone takes them. Labels have the data set's numbers; 0 is background."""

    images: UInt8[np.ndarray, "frames size size 3"]
    features: Points
    grid: tuple[int, int]
    labels: Labels
    small_labels: Int[Tensor, "frames small small"]


def find_clips(settings: ClipSettings) -> list[Clip]:
    """Every sequence cut into consecutive clips."""
    if settings.layout == "davis":
        year, split = settings.year, settings.split or "val"
        sequences = list_davis(settings.root, year=year, split=split, resolution=settings.resolution, only=settings.sequences)
    else:
        only = settings.sequences
        if settings.sequence_list is not None:
            only = read_list(Path(settings.root) / settings.sequence_list, todo="correct `sequence_list` or download it")
        sequences = list_youtube_vos(settings.root, split=settings.split or "train", only=only)
    clips, offset = [], 0
    for sequence in sequences:
        numbers = list(range(len(sequence)))
        clips += [Clip(sequence, numbers[i : i + settings.frames], offset) for i in range(0, len(numbers), settings.frames)]
        offset += max(int(sequence.mask(number).max()) for number in numbers)
    return clips


@torch.inference_mode()
def read_clip(backbone: Network, clip: Clip, size: int, small_size: int) -> View:
    """Square frames, their features and labels at both sizes."""
    device, frames = next(backbone.parameters()).device, [clip.sequence.frames[n] for n in clip.numbers]
    images = torch.stack([crop_square(read_rgb(frame), size, InterpolationMode.BILINEAR) for frame in frames])
    maps = backbone.dense(normalize(images.to(device).float() / 255, backbone.statistics))
    require_finite(maps, frames, backbone.source)
    masks = [torch.from_numpy(clip.sequence.mask(n))[None].long() for n in clip.numbers]
    large, small = (torch.cat([crop_square(mask, side, InterpolationMode.NEAREST) for mask in masks]) for side in (size, small_size))
    return View(
        images=images.permute(0, 2, 3, 1).numpy(),
        features=maps.flatten(2).transpose(1, 2).cpu(),
        grid=(maps.shape[2], maps.shape[3]),
        labels=torch.where(large > 0, large + clip.offset, 0),
        small_labels=torch.where(small > 0, small + clip.offset, 0),
    )


def crop_square(image: Tensor, size: int, interpolation: InterpolationMode) -> Tensor:
    """[channels, height, width] resized to a short side of `size`, and the middle of that."""
    return tv.center_crop(tv.resize(image, [size], interpolation, antialias=True), [size, size])
