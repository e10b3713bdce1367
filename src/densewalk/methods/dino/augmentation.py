"""Global and local views of an image."""

import torch
from jaxtyping import UInt8
from torch import Generator, Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode

from densewalk.data.augmentation.colors import distort
from densewalk.data.augmentation.crops import Box, random_resized_crop_box, resized_crop
from densewalk.data.augmentation.draws import Distortion, draw_jitter, maybe, to_rows, uniform
from densewalk.methods.dino.settings import DinoSettings
from densewalk.training.sampler import Item


class DinoCrops(Dataset[dict[str, Tensor]]):
    """DINO's multi-crop, before flips and colors.

    A sample is a dict of `global` [2, 3, size, size] and `local` [crops, 3, size, size], uint8, and `global_distortions`,
    `local_distortions`: a row for each (data/augmentation/draws.py).
    """

    def __init__(self, images: "Dataset[Tensor]", settings: DinoSettings) -> None:
        self.images, self.settings = images, settings

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(item.seed)
        image = self.images[item.index]
        image = image[0] if image.ndim == 4 else image
        s = self.settings
        first = random_crop(image, s.global_size, s.global_scale, generator, blur=1.0)
        second = random_crop(image, s.global_size, s.global_scale, generator, blur=0.1, solarize=0.2)
        local = [random_crop(image, s.local_size, s.local_scale, generator, blur=0.5) for _ in range(s.local_crops)]
        return {**collect("global", [first, second], s.global_size), **collect("local", local, s.local_size)}


def collect(kind: str, crops: list[tuple[Tensor, Distortion]], size: int) -> dict[str, Tensor]:
    """Crops and their distortions as tensors, of which there may be none."""
    images = torch.stack([crop for crop, _ in crops]) if crops else torch.empty(0, 3, size, size, dtype=torch.uint8)
    return {kind: images, f"{kind}_distortions": to_rows([distortion for _, distortion in crops])}


def random_crop(
    image: UInt8[Tensor, "3 height width"],
    size: int,
    scale: tuple[float, float],
    generator: Generator,
    *,
    blur: float,
    solarize: float = 0.0,
) -> tuple[UInt8[Tensor, "3 size size"], Distortion]:
    """One crop and how to distort it: flip, colors, blur with probability `blur`, solarization with probability `solarize`."""
    crop = resized_crop(image, sample_box(image, scale, generator), size, InterpolationMode.BICUBIC)
    flip = maybe(0.5, generator)
    colors = draw_colors(generator, blur=blur)
    return crop, colors._replace(flip=flip, solarize=maybe(solarize, generator))


def sample_box(image: Tensor, scale: tuple[float, float], generator: Generator) -> Box:
    """A crop of a share in `scale` and an aspect ratio of 3/4 to 4/3."""
    height, width = image.shape[-2:]
    return random_resized_crop_box(height, width, scale, (3 / 4, 4 / 3), generator)


def draw_colors(generator: Generator, *, blur: float) -> Distortion:
    """Jitter (0.4, 0.4, 0.2, 0.1) with probability 0.8, gray with 0.2, blur of radius U(0.1, 2) with probability `blur`."""
    drawn = draw_jitter(0.4, 0.4, 0.2, 0.1, generator) if maybe(0.8, generator) else Distortion()
    gray = maybe(0.2, generator)
    return drawn._replace(gray=gray, blur=uniform(0.1, 2.0, generator) if maybe(blur, generator) else 0.0)


def make_views(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Views of a batch of crops, normalized: `global` [b, 2, 3, size, size] and `local` [b, crops, 3, size, size]."""
    return {kind: distort(batch[kind].to(device, non_blocking=True), batch[f"{kind}_distortions"]) for kind in ("global", "local")}
