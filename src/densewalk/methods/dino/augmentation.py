"""Global and local views of an image."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from densewalk.data.augmentation.views import collect, first_frame, random_crop
from densewalk.methods.dino.settings import SelfDistillationSettings
from densewalk.training.sampler import Item


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
        generator = torch.Generator().manual_seed(item.seed)
        image = first_frame(self.images[item.index])
        s = self.settings
        first = random_crop(image, s.global_size, s.global_scale, generator, blur=1.0)
        second = random_crop(image, s.global_size, s.global_scale, generator, blur=0.1, solarize=0.2)
        local = [random_crop(image, s.local_size, s.local_scale, generator, blur=0.5) for _ in range(s.local_crops)]
        return {**collect("global", [first, second], s.global_size), **collect("local", local, s.local_size)}
