"""Crops of one image with how to distort each, and views of a batch of them: what DINO and all that are built like it train on.

crop, distortion = random_crop(image, 224, (0.4, 1.0), generator, blur=1.0)      # where the image is read
drawn = draw_crop(image, (0.4, 1.0), generator, blur=1.0); drawn.cut(image, 224)   # the same, its box kept
sample = collect("global", [(crop, distortion), ...], 224)
views = make_views(batch, device)["global"]                                        # on the device, [b, views, 3, size, size]
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64, UInt8
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode

from densewalk.data.augmentation.colors import distort
from densewalk.data.augmentation.crops import Box, random_resized_crop_box, resized_crop
from densewalk.data.augmentation.draws import Distortion, draw_distortion, draw_jitter, maybe, to_rows, uniform


def first_frame(image: Tensor) -> UInt8[Tensor, "3 height width"]:
    """An image as `open_images` gives it, without the axis of frames that one of a video has."""
    return image[0] if image.ndim == 4 else image


def collect(kind: str, crops: list[tuple[Tensor, Distortion]], size: int) -> dict[str, Tensor]:
    """Crops and their distortions as tensors, of which there may be none."""
    images = torch.stack([crop for crop, _ in crops]) if crops else torch.empty(0, 3, size, size, dtype=torch.uint8)
    return {kind: images, f"{kind}_distortions": to_rows([distortion for _, distortion in crops])}


class DrawnCrop(NamedTuple):
    """Where a crop is, and how to distort it."""

    box: Box
    distortion: Distortion

    def cut(self, image: UInt8[Tensor, "3 height width"], size: int) -> tuple[UInt8[Tensor, "3 size size"], Distortion]:
        """The crop, resized and not yet distorted."""
        return resized_crop(image, self.box, size, InterpolationMode.BICUBIC), self.distortion


def draw_crop(
    image: UInt8[Tensor, "3 height width"], scale: tuple[float, float], generator: Generator, *, blur: float, solarize: float = 0.0
) -> DrawnCrop:
    """A box, flip, colors, blur with probability `blur`, solarization with probability `solarize`."""
    return DrawnCrop(sample_box(image, scale, generator), draw_flip_and_colors(generator, blur=blur, solarize=solarize))


def random_crop(
    image: UInt8[Tensor, "3 height width"],
    size: int,
    scale: tuple[float, float],
    generator: Generator,
    *,
    blur: float,
    solarize: float = 0.0,
) -> tuple[UInt8[Tensor, "3 size size"], Distortion]:
    """One crop and how to distort it, as `draw_crop` draws it."""
    return draw_crop(image, scale, generator, blur=blur, solarize=solarize).cut(image, size)


def draw_flip_and_colors(generator: Generator, *, blur: float, solarize: float = 0.0) -> Distortion:
    """A flip with probability 1/2, then colors, and solarization with probability `solarize`."""
    flip = maybe(0.5, generator)
    colors = draw_colors(generator, blur=blur)
    return colors._replace(flip=flip, solarize=maybe(solarize, generator))


def sample_box(image: Tensor, scale: tuple[float, float], generator: Generator) -> Box:
    """A crop of a share in `scale` and an aspect ratio of 3/4 to 4/3."""
    height, width = image.shape[-2:]
    return random_resized_crop_box(height, width, scale, (3 / 4, 4 / 3), generator)


def draw_colors(generator: Generator, *, blur: float) -> Distortion:
    """Jitter (0.4, 0.4, 0.2, 0.1) with probability 0.8, gray with 0.2, blur of radius U(0.1, 2) with probability `blur`."""
    drawn = draw_jitter(0.4, 0.4, 0.2, 0.1, generator) if maybe(0.8, generator) else Distortion()
    gray = maybe(0.2, generator)
    return drawn._replace(gray=gray, blur=uniform(0.1, 2.0, generator) if maybe(blur, generator) else 0.0)


def make_views(batch: dict[str, Tensor], device: torch.device, kinds: tuple[str, ...] = ("global", "local")) -> dict[str, Tensor]:
    """Views of a batch of crops, normalized: each kind [b, views, 3, size, size]."""
    return {kind: distort(batch[kind].to(device, non_blocking=True), batch[f"{kind}_distortions"]) for kind in kinds}


def draw_clip_view(height: int, width: int, scale: tuple[float, float], generator: Generator) -> tuple[Box, Distortion]:
    """Draw crop, colors, blur and flip, once for all frames of a clip (Time-Tuning, MoSiC)."""
    box = random_resized_crop_box(height, width, scale, (3 / 4, 4 / 3), generator)
    drawn = draw_distortion(generator)
    return box, drawn._replace(flip=maybe(0.5, generator))


def distort_clips(
    clips: UInt8[Tensor, "clips frames 3 height width"], rows: Float64[Tensor, "clips columns"], *statistics: Sequence[float]
) -> Float[Tensor, "clips frames 3 height width"]:
    """Change all frames of a clip as its row says, and normalize them."""
    return distort(clips, rows[:, None].expand(-1, clips.shape[1], -1), *statistics)
