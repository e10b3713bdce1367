"""Crops of images, and which of an image's patches are removed."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode

from densewalk.data.augmentation.crops import resized_crop
from densewalk.data.augmentation.draws import Distortion, maybe
from densewalk.data.augmentation.views import collect, first_frame, sample_box
from densewalk.methods.mae.settings import MaeSettings
from densewalk.training.sampler import Item


class MaeCrops(Dataset[dict[str, Tensor]]):
    """One crop of each image.

    A sample is a dict of `crop` [1, 3, size, size], uint8; `crop_distortions`, whether it is flipped (data/augmentation/draws.py); and
    `mask_seed`, from which `draw_noise` draws what is removed.
    """

    def __init__(self, images: "Dataset[Tensor]", settings: MaeSettings) -> None:
        self.images, self.settings = images, settings

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(item.seed)
        image = first_frame(self.images[item.index])
        s = self.settings
        crop = resized_crop(image, sample_box(image, s.scale, generator), s.size, InterpolationMode.BICUBIC)
        flip = Distortion(flip=maybe(0.5, generator))
        return {**collect("crop", [(crop, flip)], s.size), "mask_seed": torch.randint(2**62, (), generator=generator)}


def draw_noise(seeds: Int[Tensor, " batch"], patches: int) -> Float[Tensor, "batch patches"]:
    """Uniform numbers in 0..1 for each image's patches: those with the smallest are left, in the order of the numbers."""
    return torch.stack([torch.rand(patches, generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()])
