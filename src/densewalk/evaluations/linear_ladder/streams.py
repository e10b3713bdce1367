"""Training crops and test images of either protocol, with the frozen features of each computed once for all heads that need them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.label_maps import Example, read_labels
from densewalk.evaluations.common import dense_features
from densewalk.evaluations.common.base import Job, require_finite
from densewalk.evaluations.common.dense_features import BATCH, DenseFeatures, read_pair, reduce_masks, resize
from densewalk.evaluations.linear_ladder.parts import Mixture
from densewalk.evaluations.linear_ladder.probe import NOTHING
from densewalk.evaluations.linear_segmentation.evaluate import TrainingImages, epoch_batches, list_splits
from densewalk.evaluations.linear_segmentation.settings import LinearSegmentationSettings
from densewalk.evaluations.segmentation.data import check_data
from densewalk.evaluations.segmentation.experiment import experiment
from densewalk.evaluations.segmentation.recipes import LinearSettings
from densewalk.models.interface import Network
from densewalk.training.signals import leave_signals_to_parent

FORWARD = 16  # crops of the toolbox in one forward pass
Maps = Float[Tensor, "batch dim rows columns"]


@dataclass(frozen=True)
class TestImage:
    """Features of one test image. sizes: to which its logits are interpolated, one after the other, to be those of every pixel."""

    number: int
    maps: Maps
    sizes: tuple[tuple[int, int], ...]


class Source:
    """Both protocols' images of one data set and their features by one backbone.

    Attributes:
        validation: the scored images. pieces: of the toolbox's experiment.
    """

    def __init__(self, toolbox: LinearSettings, own: LinearSegmentationSettings, backbone_path: Path, job: Job) -> None:
        self.toolbox, self.own, self.job = toolbox, own.resolved(), job
        self.training, self.validation = require_same_images(check_data(toolbox), list_splits(self.own, job.seed))
        self.network: Network
        self.features: DenseFeatures
        self.network, self.features = dense_features.load_features(self.own, self.own.input_size, backbone_path, job)
        # imported late: the toolboxes take seconds, and errors in the data have been found by now
        from densewalk.evaluations.mmlab.pieces import Pieces
        from densewalk.evaluations.mmlab.vit import pad

        self.pad = pad
        made = experiment(toolbox, str(backbone_path), self.network.arch, self.training, self.validation)
        self.pieces = Pieces(made, job.seed, torch.device(job.device))
        values = torch.full((256,), NOTHING)
        values[: len(toolbox.rule.values)] = torch.tensor(toolbox.rule.values)
        self.values = values.to(job.device)  # label of each class of the toolbox

    def batches(self, *, own_amount: bool) -> list[list[tuple[int, int]]]:
        """Epoch and number of the images of each step."""
        images = len(self.training)
        if own_amount:
            return [b for epoch in range(self.own.epochs) for b in epoch_batches(self.own, images, epoch, self.job.seed)]
        from densewalk.evaluations.mmlab.data import ItemStream

        size = self.toolbox.batch_size
        numbers = ItemStream(images, self.job.seed, batch_size=size).numbers()
        return [list(islice(numbers, size)) for _ in range(self.toolbox.iterations)]

    def crops(self, batches: list[list[tuple[int, int]]], *, own: bool) -> Iterator[tuple[Maps, Int[Tensor, "batch height width"]]]:
        """Features and labels of the crops of each step; `NOTHING` where none is learned."""
        size, statistics = self.features.size, self.features.statistics
        one = TrainingImages(self.own, self.training, size, statistics, self.job.seed).__getitem__ if own else self._toolbox_item
        options: dict[str, Any] = {"num_workers": self.job.workers, "worker_init_fn": leave_signals_to_parent, "collate_fn": list}
        for items, numbers in zip(DataLoader(Numbered(one), batch_sampler=batches, **options), batches, strict=True):
            if own:
                images, labels = (torch.stack(list(values)).to(self.job.device) for values in list(zip(*items, strict=True))[:2])
                labels = labels.long() if self.own.ignored is None else torch.where(labels == self.own.ignored, NOTHING, labels).long()
            else:
                images, masks = self.pieces.batch(items)
                labels = self.values[masks.to(self.job.device).long()]
            names = [self.training[i].image for _, i in numbers]
            yield self.maps(images, names, own=own), labels

    def _toolbox_item(self, number: tuple[int, int]) -> Any:
        return self.pieces.training_item(*number)

    @torch.no_grad()
    def maps(self, images: Float[Tensor, "batch 3 height width"], names: list[Any], *, own: bool) -> Maps:
        """Frozen features: `Network.dense`, or, as in the toolbox, the last level of the image padded evenly to whole patches."""
        size = BATCH if own else FORWARD
        parts = images.split(size)
        found = torch.cat([self.network.dense(part) if own else self._padded(part) for part in parts])
        require_finite(found, names, self.features.backbone)
        return found

    def _padded(self, images: Tensor) -> Tensor:
        return self.network.levels(self.pad(images, self.network.multiple, "center"), [self.network.depth - 1], norm=True)[0]

    def test_images(self, *, own: bool) -> Iterator[TestImage]:
        """Features of every scored image, one by one."""
        if own:
            for maps, _, number in self.features.maps(self.validation, "validation"):
                yield TestImage(number, maps[None], (read_shape(self.validation[number]),))
            return
        for number, example in enumerate(self.validation):
            image, shape = self.pieces.test_image(number)
            size = (image.shape[-2], image.shape[-1])
            yield TestImage(number, self.maps(image, [example.image], own=False), (size, shape))

    def targets(self, number: int) -> dict[bool, Int[Tensor, "rows columns"]]:
        """The labels of a scored image: of every pixel (False), and on reduced masks (True)."""
        example = self.validation[number]
        whole = torch.from_numpy(read_labels(example.mask, example.rule, example.still).astype(np.int32)).to(self.job.device)
        square = resize(*read_pair(example), self.features.size)[1].to(self.job.device)
        return {False: whole, True: reduce_masks(square[None], self.own.mask_size)[0]}


class Numbered(Dataset[Any]):
    """Items made by a function of (epoch, number)."""

    def __init__(self, one: Callable[[tuple[int, int]], Any]) -> None:
        self.one = one

    def __getitem__(self, number: tuple[int, int]) -> Any:  # type: ignore[override]
        return self.one(number)


def read_shape(example: Example) -> tuple[int, int]:
    """Height and width of an image's mask."""
    height, width = read_labels(example.mask, example.rule, example.still).shape
    return height, width


def require_same_images(toolbox: tuple[list[Example], list[Example]], own: tuple[list[Example], list[Example]]) -> Any:
    """The images of the own protocol; UserError that names the first that the toolbox's lists have otherwise."""
    for split, theirs, ours in zip(("training", "validation"), toolbox, own, strict=True):
        for number, (one, other) in enumerate(zip(theirs, ours, strict=False)):  # lengths are compared below
            if one.image != other.image:
                raise UserError(f"{split} image {number + 1} is {one.image} in one protocol and {other.image} in the other")
        if len(theirs) != len(ours):
            raise UserError(f"{len(theirs)} {split} images in one protocol and {len(ours)} in the other", allowed="the same images")
    return own


def is_reduced(mixture: Mixture) -> bool:
    """Whether a probe is scored on reduced masks."""
    return mixture.is_own("scoring") and mixture.own.scoring == "reduced"
