"""The exponential-moving-average teacher."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from densewalk.core.distributed import local_part

M = TypeVar("M", bound=nn.Module)


def make_teacher(student: M) -> M:
    """A frozen copy of the student in evaluation mode, without stochastic depth."""
    return copy.deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, for every parameter."""
    targets: list[Tensor] = list(teacher.parameters())
    sources: list[Tensor] = list(student.parameters())
    if len(targets) != len(sources):
        raise ValueError(f"teacher has {len(targets)} parameters, student {len(sources)}: they must be the same network")
    torch._foreach_lerp_([*map(local_part, targets)], [*map(local_part, sources)], 1 - momentum)
