"""Global and local views of an image."""

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from densewalk.data.augmentation import Box, color_jitter, gaussian_blur, grayscale, maybe, random_resized_crop_box, resized_crop, uniform
from densewalk.data.images import normalize
from densewalk.methods.dino.settings import DinoSettings
from densewalk.training.sampler import Item


class DinoViews(Dataset[dict[str, Tensor]]):
    """DINO's multi-crop views: dict of `global` [2, 3, size, size] and `local` [crops, 3, size, size], normalized."""

    def __init__(self, images: "Dataset[Tensor]", settings: DinoSettings) -> None:
        self.images, self.settings = images, settings

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(item.seed)
        image = self.images[item.index]
        image = image[0] if image.ndim == 4 else image
        s = self.settings
        first = random_view(image, s.global_size, s.global_scale, generator, blur=1.0)
        second = random_view(image, s.global_size, s.global_scale, generator, blur=0.1, solarize=0.2)
        crops = [random_view(image, s.local_size, s.local_scale, generator, blur=0.5) for _ in range(s.local_crops)]
        local = torch.stack(crops) if crops else torch.empty(0, 3, s.local_size, s.local_size)
        return {"global": torch.stack([first, second]), "local": local}


def random_view(
    image: Tensor, size: int, scale: tuple[float, float], generator: Generator, *, blur: float, solarize: float = 0.0
) -> Float[Tensor, "3 size size"]:
    """One view: crop, flip, colors, blur with probability `blur`, solarization with probability `solarize`."""
    x = resized_crop(image, sample_box(image, scale, generator), size, InterpolationMode.BICUBIC)
    x = x.flip(-1) if maybe(0.5, generator) else x
    x = distort_colors(x, generator, blur=blur)
    if maybe(solarize, generator):
        x = tv.solarize(x, 128 / 255)
    return normalize(x)


def sample_box(image: Tensor, scale: tuple[float, float], generator: Generator) -> Box:
    """A crop of a share in `scale` and an aspect ratio of 3/4 to 4/3."""
    height, width = image.shape[-2:]
    return random_resized_crop_box(height, width, scale, (3 / 4, 4 / 3), generator)


def distort_colors(image: UInt8[Tensor, "3 height width"], generator: Generator, *, blur: float) -> Float[Tensor, "3 height width"]:
    """Jitter (0.4, 0.4, 0.2, 0.1) with probability 0.8, gray with 0.2, blur of radius U(0.1, 2) with probability `blur`; in 0..1."""
    x = image.contiguous() / 255  # channel after channel is the fastest layout for what follows
    if maybe(0.8, generator):
        x = color_jitter(x, 0.4, 0.4, 0.2, 0.1, generator)
    if maybe(0.2, generator):
        x = grayscale(x)
    if maybe(blur, generator):
        x = gaussian_blur(x, uniform(0.1, 2.0, generator))
    return x
