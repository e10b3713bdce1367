"""Crops of images, or whole images."""

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode

from densewalk.data.augmentation.crops import resized_crop
from densewalk.data.augmentation.draws import Distortion, maybe
from densewalk.data.augmentation.views import collect, first_frame, sample_box
from densewalk.methods.distill.settings import DistillSettings
from densewalk.training.sampler import Item


class DistillCrops(Dataset[dict[str, Tensor]]):
    """One crop of each image, or the whole of it, in the larger of the sizes that networks take.

    A sample is a dict of `crop` [1, 3, side, side], uint8, `crop_distortions`, whether it is flipped (data/augmentation/draws.py), and
    `index`, the image's number.
    """

    def __init__(self, images: "Dataset[Tensor]", settings: DistillSettings) -> None:
        self.images, self.settings = images, settings
        self.side = max(settings.size, settings.teachers_size)

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(item.seed)
        image = first_frame(self.images[item.index])
        box, flip = (0, 0, *image.shape[-2:]), Distortion()
        if self.settings.augmentation == "crops":
            box, flip = sample_box(image, self.settings.scale, generator), Distortion(flip=maybe(0.5, generator))
        crop = resized_crop(image, box, self.side, InterpolationMode.BICUBIC)
        return {**collect("crop", [(crop, flip)], self.side), "index": torch.tensor(item.index)}
