"""Groups of parameters that share schedules."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from densewalk.training.schedules import Schedule


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
