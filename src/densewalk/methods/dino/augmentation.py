"""Global and local views of an image."""

from typing import NamedTuple

import torch
from jaxtyping import UInt8
from torch import Generator, Tensor
from torch.utils.data import Dataset

from densewalk.data.augmentation.views import DrawnCrop, collect, draw_crop, first_frame
from densewalk.methods.dino.settings import SelfDistillationSettings
from densewalk.training.sampler import Item


class DrawnViews(NamedTuple):
    """The crops of an image, not yet cut out."""

    of_global: list[DrawnCrop]
    of_local: list[DrawnCrop]


class DinoCrops(Dataset[dict[str, Tensor]]):
    """DINO's multi-crop, before flips and colors.

    A sample is a dict of `global` [2, 3, size, size] and `local` [crops, 3, size, size], uint8, and `global_distortions`,
    `local_distortions`: a row for each (data/augmentation/draws.py).
    """

    def __init__(self, images: "Dataset[Tensor]", settings: SelfDistillationSettings) -> None:
        self.images, self.settings = images, settings

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        image = first_frame(self.images[item.index])
        return self.cut(image, self.draw(image, torch.Generator().manual_seed(item.seed)))

    def draw(self, image: UInt8[Tensor, "3 height width"], generator: Generator) -> DrawnViews:
        """Draw all crops."""
        s = self.settings
        first = draw_crop(image, s.global_scale, generator, blur=1.0)
        second = draw_crop(image, s.global_scale, generator, blur=0.1, solarize=0.2)
        local = [draw_crop(image, s.local_scale, generator, blur=0.5) for _ in range(s.local_crops)]
        return DrawnViews([first, second], local)

    def cut(self, image: UInt8[Tensor, "3 height width"], views: DrawnViews) -> dict[str, Tensor]:
        """The sample of drawn crops."""
        s = self.settings
        cut_global = [crop.cut(image, s.global_size) for crop in views.of_global]
        cut_local = [crop.cut(image, s.local_size) for crop in views.of_local]
        return {**collect("global", cut_global, s.global_size), **collect("local", cut_local, s.local_size)}
