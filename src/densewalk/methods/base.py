"""What the training loop asks of a method."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from densewalk.backbone import Backbone
from densewalk.schedules import Schedule
from densewalk.settings.base import TrainingSettings


@dataclass(frozen=True)
class Source:
    """One prepared data set: a transcoded video or a checked image folder, with its receipt (video.py, images.py)."""

    name: str
    kind: str  # "video", "images" or "sequences"
    path: Path
    receipt: dict[str, Any]


@dataclass(frozen=True)
class Item:
    """What a data set is indexed with. Equal items give equal samples, in any process and after any resume."""

    index: int
    seed: int  # of this very sample: derived from the run's seed, the epoch and the index


@dataclass
class ParamGroup:
    """Parameters that share schedules; both have one value per optimiser step."""

    name: str
    params: list[nn.Parameter]
    lr: Schedule
    weight_decay: Schedule
    extra: dict[str, Any] = field(default_factory=dict)


class Method(nn.Module, ABC):
    """The networks of one run. Its `state_dict`, the optimiser's and the step are the whole resumable state.

    A subclass's `step` is the method in five to fifteen lines. Whatever is random in it comes from `rng` or from torch's
    global generator, both of which the loop seeds before each step.
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
        """The optimiser's groups; what is in none is frozen."""

    @abstractmethod
    def step(self, batch: Any, at: int, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one batch at optimiser step `at`, and scalar tensors worth logging.

        Where the settings' `across_samples` is None, the batch may be one of several equal parts, each with the same `at` and
        the same draws from `rng`: what changes from step to step waits for `after_backward`.
        """

    def after_backward(self, at: int) -> None:
        """Once a step, between backward (gradients averaged over parts and processes) and the optimiser, e.g. clipping."""

    def after_update(self, at: int) -> None:
        """After the optimiser, e.g. the teacher's update."""

    def pictures(self, data: "Dataset[Any]", folder: Path) -> None:
        """Draw what the finished training has learnt into PNG files in `folder`, which the report shows; nothing by default.

        Called without gradients, in evaluation mode, by one process. The same weights must give the same files.

        Args:
            data: what `dataset` returned.
        """

    @abstractmethod
    def export(self) -> Backbone:
        """The network the method hands on: the one its paper evaluates."""


def decay_groups(name: str, named_params: Sequence[tuple[str, nn.Parameter]], lr: Schedule, decay: Schedule) -> list[ParamGroup]:
    """Two groups, with and without weight decay: biases and one-dimensional parameters are not decayed (all three papers)."""
    trainable = [(n, p) for n, p in named_params if p.requires_grad]
    plain = [p for n, p in trainable if n.endswith(".bias") or p.ndim == 1]
    decayed = [p for n, p in trainable if not (n.endswith(".bias") or p.ndim == 1)]
    zero = decay * 0.0
    return [ParamGroup(f"{name}/decay", decayed, lr, decay), ParamGroup(f"{name}/no_decay", plain, lr, zero)]
