"""DINOv2's crops, and further local crops of which each lies in one of the global ones."""

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor
from torch.utils.data import Dataset

from densewalk.data.augmentation.colors import distort
from densewalk.data.augmentation.crops import MAX_DRAWS, Box, intersections, random_resized_crop_box
from densewalk.data.augmentation.draws import Distortion, to_rows
from densewalk.data.augmentation.views import DrawnCrop, collect, draw_flip_and_colors, first_frame
from densewalk.methods.dino.augmentation import DinoCrops, DrawnViews
from densewalk.methods.ibot.augmentation import MaskedCrops
from densewalk.methods.paka.settings import PakaSettings
from densewalk.training.sampler import Item


class AlignedCrops(DinoCrops):
    """The samples of `DinoCrops`, and crops to align.

    `aligned` [crops, 3, size, size], uint8, with `aligned_distortions`: crop j lies in global crop j mod 2. `in_global` and `in_aligned`
    [crops, 4]: what the two share, as left, top, right, bottom in pixels of either, before flips.
    """

    settings: PakaSettings

    def __init__(self, images: "Dataset[Tensor]", settings: PakaSettings) -> None:
        super().__init__(images, settings)

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        image, generator, s = first_frame(self.images[item.index]), torch.Generator().manual_seed(item.seed), self.settings
        views = self.draw(image, generator)
        crops = self.draw_aligned(image, views, generator)
        in_global, in_aligned = shared_boxes(views, crops, s)
        sample = {**self.cut(image, views), **collect("aligned", [crop.cut(image, s.local_size) for crop in crops], s.local_size)}
        return {**sample, "in_global": in_global, "in_aligned": in_aligned}

    def draw_aligned(self, image: UInt8[Tensor, "3 height width"], views: DrawnViews, generator: Generator) -> list[DrawnCrop]:
        """Draw the crops to align, with the colors of local ones."""
        s, size = self.settings, (image.shape[-2], image.shape[-1])
        assert s.min_inside is not None
        crops = []
        for number in range(s.aligned_crops):
            outer = views.of_global[number % 2].box
            box = draw_inside(outer, size, s.aligned_scale, s.min_inside, generator)
            crops.append(DrawnCrop(box, draw_flip_and_colors(generator, blur=0.5)))
        return crops


class PakaCrops(MaskedCrops):
    """The samples of `AlignedCrops` with the masks of `MaskedCrops`."""

    def __init__(self, images: "Dataset[Tensor]", settings: PakaSettings) -> None:
        super().__init__(images, settings)
        self.crops = AlignedCrops(images, settings.resolved())


def draw_inside(outer: Box, size: tuple[int, int], scale: tuple[float, float], least: float, generator: Generator) -> Box:
    """Draw a crop of a share in `scale` of another one, anywhere in the image where `least` of its area is in the other one."""
    top, left, height, width = outer
    y, x, h, w = random_resized_crop_box(height, width, scale, (3 / 4, 4 / 3), generator)
    if least == 1:
        return top + y, left + x, h, w
    over_y, over_x = int((1 - least) * h), int((1 - least) * w)  # it may stick out so far
    for _ in range(MAX_DRAWS):
        y = draw_offset(top - over_y, top + height - h + over_y, size[0] - h, generator)
        x = draw_offset(left - over_x, left + width - w + over_x, size[1] - w, generator)
        inside = (min(y + h, top + height) - max(y, top)) * (min(x + w, left + width) - max(x, left))
        if inside >= least * h * w:
            break
    return y, x, h, w


def draw_offset(first: int, last: int, most: int, generator: Generator) -> int:
    """Draw a whole number from `first` to `last`, of those from 0 to `most`."""
    first, last = max(first, 0), min(last, most)
    return int(torch.randint(first, last + 1, (1,), generator=generator))


def shared_boxes(
    views: DrawnViews, crops: list[DrawnCrop], settings: PakaSettings
) -> tuple[Float[Tensor, "crops 4"], Float[Tensor, "crops 4"]]:
    """What each crop shares with its global one, in pixels of the global crop and in its own."""
    every = [crop.box for crop in (*views.of_global, *crops)]
    corners = torch.tensor([[left, top, left + w, top + h] for top, left, h, w in every], dtype=torch.float32)
    n = len(views.of_global)
    in_global, in_view = intersections(corners, [settings.global_size] * n + [settings.local_size] * len(crops), n)
    numbers = torch.arange(len(crops))
    return in_global[numbers % n, n + numbers], in_view[n + numbers, numbers % n]


def plain_views(batch: dict[str, Tensor], device: torch.device) -> Float[Tensor, "batch 2 3 size size"]:
    """The global crops without any change but their flips, normalized."""
    flips = batch["global_distortions"][..., 0]
    rows = to_rows([Distortion()]).expand(*flips.shape, -1).clone()
    rows[..., 0] = flips
    return distort(batch["global"].to(device, non_blocking=True), rows)
