"""Parts of an experiment one by one: its images, its preprocessing, and the head before the first step."""

from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import set_random_seed
from torch import Tensor

from densewalk.core.hashing import derive_seed
from densewalk.evaluations.mmlab import (
    segmentation,  # noqa: F401  registers LinearHead and the data sets
    vit,  # noqa: F401  registers DensewalkBackbone
)
from densewalk.evaluations.mmlab.data import SeededDataset
from densewalk.evaluations.mmlab.experiment import Experiment
from densewalk.training.sampler import Item


@dataclass(frozen=True)
class Pieces:
    """Images and head of a segmentation experiment, as `runner.run` makes them."""

    experiment: Experiment
    seed: int
    device: torch.device

    @cached_property
    def training(self) -> SeededDataset:
        """The training set with its augmentation."""
        return SeededDataset(self._build(DATASETS, self.experiment.training))

    @cached_property
    def test(self) -> Any:
        """The test set."""
        return self._build(DATASETS, self.experiment.test)

    @cached_property
    def preprocessor(self) -> Any:
        """Normalizes images, and pads those of a training batch."""
        return self._build(MODELS, self.experiment.model["data_preprocessor"]).to(self.device)

    def training_item(self, epoch: int, index: int) -> Any:
        """One augmented image of the stream of `data.ItemStream`."""
        return self.training[Item(index=index, seed=derive_seed(self.seed, "sample", epoch, index))]

    def batch(self, items: list[Any]) -> tuple[Tensor, Tensor]:
        """Normalized images [batch, 3, crop, crop] and masks [batch, crop, crop], 255 where nothing is learned."""
        found = self.preprocessor(collated(items), True)
        return found["inputs"], torch.stack([sample.gt_sem_seg.data[0] for sample in found["data_samples"]])

    def test_image(self, index: int) -> tuple[Tensor, tuple[int, int]]:
        """A normalized test image [1, 3, height, width], and height and width of its file."""
        found = self.preprocessor(collated([self.test[index]]), False)
        return found["inputs"], tuple(found["data_samples"][0].ori_shape)

    def first_head(self, outputs: int) -> dict[str, Tensor]:
        """The head's weights before the first step."""
        model = self.experiment.model
        head = model["decode_head"] | {"num_classes": outputs, "out_channels": outputs}
        set_random_seed(derive_seed(self.seed, "model") % 2**32)
        built = self._build(MODELS, model | {"decode_head": head})
        built.init_weights()
        return {name: value.clone() for name, value in built.decode_head.state_dict().items()}

    def _build(self, registry: Any, config: Any) -> Any:
        with DefaultScope.overwrite_default_scope(self.experiment.scope), redirect_stdout(None):
            return registry.build(ConfigDict(config))


def collated(items: list[Any]) -> dict[str, list[Any]]:
    """A batch of lists."""
    return {key: [item[key] for item in items] for key in items[0]}
