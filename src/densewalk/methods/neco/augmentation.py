"""Multi-crop with the boxes in which crops overlap."""

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from densewalk.data.augmentation.colors import distort_levels
from densewalk.data.augmentation.crops import Crop, intersections, multi_crop
from densewalk.methods.neco.settings import NecoSettings
from densewalk.training.sampler import Item


class NecoCrops(Dataset[dict[str, Tensor]]):
    """Crops of images, before colors, and where they overlap.

    A sample is a dict of `global` [globals, 3, size, size] and `local` [locals, 3, size, size], uint8; `global_distortions` and
    `local_distortions`, a row for each (data/augmentation/draws.py); `in_global` [globals, views, 4] and `in_view` [views, globals, 4],
    boxes as left, top, right, bottom in pixels of the crop (data/augmentation/crops.py).
    """

    def __init__(self, images: "Dataset[Tensor]", settings: NecoSettings) -> None:
        self.images = images
        self.crops = [Crop(settings.global_size, settings.global_scale, True)] * settings.global_crops
        self.crops += [Crop(settings.local_size, settings.local_scale, False)] * settings.local_crops
        self.n_global, self.min_overlap = settings.global_crops, settings.min_overlap

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        image = self.images[item.index]
        image = image[0] if image.ndim == 4 else image
        crops, rows, boxes = multi_crop(image, self.crops, self.min_overlap, Generator().manual_seed(item.seed))
        in_global, in_view = intersections(boxes, [crop.size for crop in self.crops], self.n_global)
        n, size = self.n_global, self.crops[-1].size
        local = torch.stack(crops[n:]) if len(crops) > n else image.new_zeros(0, 3, size, size)
        pixels = {"global": torch.stack(crops[:n]), "local": local}
        return {**pixels, "global_distortions": rows[:n], "local_distortions": rows[n:], "in_global": in_global, "in_view": in_view}


def make_views(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Crops with other colors, still uint8, and the boxes."""
    views = {kind: distort_levels(batch[kind].to(device, non_blocking=True), batch[f"{kind}_distortions"]) for kind in ("global", "local")}
    return {**views, **{name: batch[name].to(device, non_blocking=True) for name in ("in_global", "in_view")}}
