"""Crops of RASA: turned and flipped, so that no row is up."""

from torch import Generator, Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from densewalk.data.augmentation.crops import random_resized_crop_box, resized_crop
from densewalk.data.augmentation.draws import draw_distortion, maybe, to_rows, uniform
from densewalk.methods.rasa.settings import RasaSettings
from densewalk.training.sampler import Item

NECO_STRENGTH = 0.8  # of `draw_distortion` at strength 1


class TurnedCrops(Dataset[dict[str, Tensor]]):
    """One crop of each image, uint8 [3, size, size], and how to color and flip it (data/augmentation/draws.py).

    Turned by up to `rotation` degrees half of the time; what lies outside of the crop is black.
    """

    def __init__(self, images: "Dataset[Tensor]", settings: RasaSettings) -> None:
        self.images, self.settings = images, settings

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        generator = Generator().manual_seed(item.seed)
        image = self.images[item.index]
        image = image[0] if image.ndim == 4 else image
        s = self.settings
        crop = resized_crop(image, random_resized_crop_box(image.shape[1], image.shape[2], s.scale, (3 / 4, 4 / 3), generator), s.size)
        if maybe(0.5, generator):
            crop = tv.rotate(crop, uniform(-s.rotation, s.rotation, generator), InterpolationMode.BILINEAR)
        if maybe(0.5, generator):
            crop = crop.flip(-2)
        drawn = draw_distortion(generator, strength=s.strength / NECO_STRENGTH)._replace(flip=float(maybe(0.5, generator)))
        return {"crops": crop.contiguous(), "distortions": to_rows([drawn])[0]}
