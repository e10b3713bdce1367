"""The training views, their frozen features, and which views are nearest to which."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Integer
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import functional as TF

from densewalk.core.errors import UserError
from densewalk.core.hashing import derive_seed
from densewalk.core.imagenet import PixelStatistics
from densewalk.data.benchmarks.label_maps import Example
from densewalk.evaluations.common.base import scratch
from densewalk.evaluations.common.dense_features import DenseFeatures, read_pair, require_labelled, resize_and_normalize
from densewalk.evaluations.stego.head import drop_channels
from densewalk.evaluations.stego.settings import StegoSettings

IGNORED = -100  # of torch's cross-entropy
COLORS = 56  # side that images are reduced to for the CRF's loss
TILE = 1024  # views whose nearest ones are searched at once


@dataclass(frozen=True)
class Views:
    """Features, labels and nearest views of all training views; images: small, for the CRF's loss, None without it."""

    maps: Float[Tensor, "views dim rows columns"]
    labels: Int[Tensor, "views size size"]
    neighbors: Int[Tensor, "views knn"]
    images: Float[Tensor, "views 3 colors colors"] | None = None


@dataclass(frozen=True)
class TrainingView:
    """The transform of example number n: the whole image, or crop n mod 5 of it, squeezed to a square.

    The crops are the four corners and the middle, in this order.
    """

    settings: StegoSettings
    size: int
    statistics: PixelStatistics

    def __call__(self, image: Image.Image, mask: Integer[Tensor, "height width"], number: int) -> tuple[Tensor, Tensor]:
        """Normalized image [3, size, size] and mask [size, size]."""
        if self.settings.crops == "five":
            height, width = (max(1, round(self.settings.crop_ratio * side)) for side in mask.shape)
            down, right = mask.shape[0] - height, mask.shape[1] - width
            top, left = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)][number % self.settings.views]
            image, mask = TF.crop(image, top, left, height, width), mask[top : top + height, left : left + width]
        return resize_and_normalize(image, mask, number, size=self.size, statistics=self.statistics)


def require_views(settings: StegoSettings, images: int) -> None:
    """Refuse training images that fill no batch, or among which a view has too few others."""
    views = images * settings.views
    if settings.batch_size > views:
        raise UserError(f"batch_size {settings.batch_size} of {views} training views", todo="lower batch_size, or train on more images")
    left = (images - min(images, 2 * settings.knn_gap - 1)) * settings.views if settings.knn_gap else views - 1
    if settings.knn > left:
        found = f"knn {settings.knn} of {left} views that are knn_gap {settings.knn_gap} images away from a view in the middle"
        raise UserError(found, todo="lower knn or knn_gap, or train on more images")


def views_of(settings: StegoSettings, training: Sequence[Example]) -> list[Example]:
    """The example of each view."""
    return [example for example in training for _ in range(settings.views)]


def read_views(settings: StegoSettings, features: DenseFeatures, training: Sequence[Example]) -> Views:
    """Compute the features of all training views once, into scratch files of the job."""
    job, size, examples = features.job, features.size, views_of(settings, training)
    labels = scratch(job, (len(examples), size, size), torch.int16)
    images = scratch(job, (len(examples), 3, COLORS, COLORS)) if settings.weight_crf else None
    transform = TrainingView(settings, size, features.statistics)
    generator = torch.Generator().manual_seed(derive_seed(job.seed, "stego", "dropped channels"))
    stored: Tensor | None = None
    pooled = []
    for maps, mask, number in features.maps(examples, "training views", transform):
        stored = scratch(job, (len(examples), *maps.shape)) if stored is None else stored
        stored[number] = maps.cpu()
        labels[number] = (mask if settings.ignored is None else torch.where(mask == settings.ignored, IGNORED, mask)).cpu()
        if images is not None:
            view, _ = transform(*read_pair(examples[number]), number)
            images[number] = F.interpolate(view[None], (COLORS, COLORS), mode="bilinear")[0]
        kept = drop_channels(maps[None], settings.dropout, generator)[0] if settings.dropped_neighbors else maps
        pooled.append(kept.mean((1, 2)).cpu())
    assert stored is not None
    require_labelled(settings, bool((labels >= 0).any()), len(training), "training")
    return Views(stored, labels, nearest_views(settings, torch.stack(pooled)), images)


def nearest_views(settings: StegoSettings, pooled: Float[Tensor, "views dim"]) -> Int[Tensor, "views knn"]:
    """The nearest views of each view by cosine, the nearest first: never itself, nor those of images nearer than `knn_gap`."""
    directions, places = F.normalize(pooled, dim=1), torch.arange(len(pooled))
    image, found = places // settings.views, []
    for start in range(0, len(pooled), TILE):
        own = slice(start, start + TILE)
        cosine = directions[own] @ directions.T
        near = (image[own, None] - image).abs() < settings.knn_gap
        cosine[near | (places[own, None] == places)] = -torch.inf
        found.append(cosine.topk(settings.knn, dim=1).indices)
    return torch.cat(found)
