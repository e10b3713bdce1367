"""Two views of each image, and what a method needs that finds one of them by the other: SimCLR and MoCo v3."""

from collections.abc import Sequence
from pathlib import Path
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor
from torch.utils.data import Dataset

from densewalk.core.errors import UserError
from densewalk.data.augmentation.crops import central_square
from densewalk.data.augmentation.draws import Distortion
from densewalk.data.augmentation.views import collect, make_views
from densewalk.data.images import normalize
from densewalk.data.sources import Source, SpacedImages, open_images
from densewalk.methods.simclr.settings import ContrastiveSettings
from densewalk.models.backbone import Backbone
from densewalk.training.method import Method
from densewalk.training.sampler import Item
from densewalk.visualization.neighbors import draw_neighbors

IMAGES_LOOKED_AT = 64  # by the image of a finished training
View = tuple[UInt8[Tensor, "3 size size"], Distortion]
S = TypeVar("S", bound=ContrastiveSettings)


def open_spaced(sources: Sequence[Source], settings: ContrastiveSettings) -> SpacedImages:
    """Every image, and a frame of every stretch of a video."""
    return SpacedImages([open_images(source) for source in sources], settings.frame_seconds)


class TwoViews(Dataset[dict[str, Tensor]], Generic[S]):
    """Two crops of each image: `views` [2, 3, size, size], uint8, and `views_distortions`, a row for each."""

    def __init__(self, images: SpacedImages, settings: S) -> None:
        self.images, self.settings = images, settings

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(item.seed)
        return collect("views", self.crops(self.images.draw(item.index, generator), generator), self.settings.size)

    def crops(self, image: UInt8[Tensor, "3 height width"], generator: Generator) -> list[View]:
        """The crops, and how each is distorted."""
        raise AssertionError("a method's own views say how they are drawn")

    def plain(self, index: int) -> UInt8[Tensor, "3 size size"]:
        """The middle of an image, the same at each call."""
        return central_square(self.images.draw(index, torch.Generator().manual_seed(0)), self.settings.size)


class Contrastive(Method):
    """A training run of a method on two views."""

    settings: ContrastiveSettings

    def warmup_steps(self) -> float:
        """Steps of the warm-up.

        Raises:
            UserError: they are more than the training has.
        """
        if obstacle := self.settings.warmup_obstacle(self.total_steps, self.steps_per_epoch):
            raise UserError(obstacle)
        return self.settings.warmup_epochs * self.steps_per_epoch

    def prepare(self, batch: dict[str, Tensor], device: torch.device) -> Float[Tensor, "batch 2 3 height width"]:
        """Flips, colors and blur."""
        return make_views(batch, device, ("views",))["views"]

    def pictures(self, data: "Dataset[dict[str, Tensor]]", folder: Path) -> None:
        """Draw some images with those that are most similar to each."""
        assert isinstance(data, TwoViews)
        count = min(IMAGES_LOOKED_AT, len(data))
        images = torch.stack([data.plain(i * len(data) // count) for i in range(count)])
        backbone = self.export()
        assert isinstance(backbone, Backbone)
        device = next(backbone.parameters()).device
        features = torch.cat([backbone.cls(normalize(image[None].to(device) / 255)) for image in images])
        draw_neighbors(folder / "neighbors.png", images, features)
