"""The interface between the training loop and a method."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.data import Dataset

from densewalk.data.sources import Source
from densewalk.models.backbone import Backbone
from densewalk.models.heads import Clusterer
from densewalk.training.schedules import Schedule
from densewalk.training.settings import TrainingSettings


@dataclass
class ParamGroup:
    """Parameters that share schedules; both have one value per optimizer step."""

    name: str
    params: list[nn.Parameter]
    lr: Schedule
    weight_decay: Schedule
    extra: dict[str, Any] = field(default_factory=dict)


def decay_groups(name: str, named_params: Sequence[tuple[str, nn.Parameter]], lr: Schedule, decay: Schedule) -> list[ParamGroup]:
    """Two groups: biases and one-dimensional parameters have no weight decay (all papers)."""
    trainable = [(n, p) for n, p in named_params if p.requires_grad]
    plain = [p for n, p in trainable if n.endswith(".bias") or p.ndim == 1]
    decayed = [p for n, p in trainable if not (n.endswith(".bias") or p.ndim == 1)]
    return [ParamGroup(f"{name}/decay", decayed, lr, decay), ParamGroup(f"{name}/no_decay", plain, lr, decay * 0.0)]


def clusterer_groups(student: Clusterer, lr: Schedule, backbone_lr: Schedule, decay: Schedule) -> list[ParamGroup]:
    """Prototypes and head, and the blocks of the backbone that learn, by a rate of their own."""
    return [
        *decay_groups("prototypes", [("prototypes", student.prototypes)], lr, decay),
        *decay_groups("head", list(student.head.named_parameters()), lr, decay),
        *decay_groups("backbone", list(student.backbone.named_parameters()), backbone_lr, decay),
    ]


class Method(nn.Module, ABC):
    """The networks of one run; with the optimizer and the step, the whole resumable state.

    All randomness of a step comes from `generator` or from torch's global generator; the loop seeds both before each step.
    """

    diagnostics: Path | None = None  # folder where a failing step leaves its batch for inspection

    def __init__(self, settings: TrainingSettings, total_steps: int, steps_per_epoch: int) -> None:
        super().__init__()
        self.total_steps = total_steps
        self.steps_per_epoch = steps_per_epoch

    @staticmethod
    @abstractmethod
    def dataset(settings: Any, sources: Sequence[Source]) -> "Dataset[Any]":
        """A map-style data set with `len()`, indexed with an `Item`, collated by torch's rule.

        Raises UserError, before anything is decoded, if the sources do not suit the method.
        """

    @abstractmethod
    def param_groups(self) -> list[ParamGroup]:
        """The optimizer's groups; parameters in no group are frozen."""

    def prepare(self, batch: Any, device: torch.device) -> Any:
        """What `step` takes, on `device`, from a collated batch or a part of one: for instance views from crops.

        Pixels (uint8) are on the device already, the rest is on the CPU. Called in float32, without gradients. All randomness was
        drawn by the data set, from each item's seed. By default the batch itself, moved.
        """
        return tree_map_only(Tensor, lambda x: x.to(device, non_blocking=True), batch)

    @abstractmethod
    def step(self, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of one prepared batch at optimizer step `step`, and scalar tensors to log.

        If the settings' `across_samples` is None, the batch may be one of several equal parts, each with the same `step` and the
        same draws from `generator`. State that changes from step to step is updated in `after_backward`.
        """

    def after_backward(self, step: int) -> None:
        """Called once a step, when gradients are averaged over parts and processes."""

    def after_update(self, step: int) -> None:
        """Called once a step, after the optimizer; for instance to update the teacher."""

    def pictures(self, data: "Dataset[Any]", folder: Path) -> None:
        """Draw what the finished training has learned into PNG files in `folder`, for the report.

        Called without gradients, in evaluation mode, by one process. The same weights must give the same files.
        """

    @abstractmethod
    def export(self) -> Backbone:
        """The backbone that the method's paper evaluates."""
