"""What the training loop asks of a method."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from densewalk.data.sources import Source
from densewalk.models.backbone import Backbone
from densewalk.training.param_groups import ParamGroup
from densewalk.training.settings import TrainingSettings


class Method(nn.Module, ABC):
    """The networks of one run. Its `state_dict`, the optimizer's and the step are the whole resumable state.

    A subclass's `step` reads as its paper's algorithm, in twenty lines at most. Whatever is random in it comes from `generator` or
    from torch's global generator, both of which the loop seeds before each step.
    """

    diagnostics: Path | None = None
    """Folder for what a failing step wants to leave behind for inspection."""

    def __init__(self, settings: TrainingSettings, total_steps: int, steps_per_epoch: int) -> None:
        super().__init__()
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch

    @staticmethod
    @abstractmethod
    def dataset(settings: Any, sources: Sequence[Source]) -> "Dataset[Any]":
        """A map-style data set with `len()`, indexed with an `Item`; samples are collated by torch's default rule.

        Raises:
            UserError: the sources do not suit the method (before anything is decoded).
        """

    @abstractmethod
    def param_groups(self) -> list[ParamGroup]:
        """The optimizer's groups; what is in none is frozen."""

    @abstractmethod
    def step(self, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one batch at optimizer step `step`, and scalar tensors worth logging.

        Where the settings' `across_samples` is None, the batch may be one of several equal parts, each with the same `step` and
        the same draws from `generator`: what changes from step to step waits for `after_backward`.
        """

    def after_backward(self, step: int) -> None:
        """Once a step, between backward (gradients averaged over parts and processes) and the optimizer, e.g. clipping."""

    def after_update(self, step: int) -> None:
        """After the optimizer, e.g. the teacher's update."""

    def pictures(self, data: "Dataset[Any]", folder: Path) -> None:
        """Draw what the finished training has learnt into PNG files in `folder`, which the report shows; nothing by default.

        Called without gradients, in evaluation mode, by one process. The same weights must give the same files.

        Args:
            data: what `dataset` returned.
        """

    @abstractmethod
    def export(self) -> Backbone:
        """The network the method hands on: the one its paper evaluates."""
