"""AdamW over a method's parameter groups, and its schedules."""

from typing import Any

import torch

from densewalk.training.method import Method
from densewalk.training.processes.sharding import parameter_here


def make_optimizer(method: Method) -> torch.optim.AdamW:
    """AdamW over the method's groups; each contains its schedules, one value per step."""
    groups = []
    for group in method.param_groups():
        for label, schedule in (("lr", group.lr), ("weight decay", group.weight_decay)):
            if len(schedule) < method.total_steps:
                raise ValueError(f"{label} of group '{group.name}' has {len(schedule)} values for {method.total_steps} steps")
        if group.params:
            params = [*map(parameter_here, group.params)]
            groups.append({"params": params, "name": group.name, "schedules": (group.lr, group.weight_decay), **group.extra})
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def set_schedules(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Set learning rate and weight decay of a step."""
    for group in optimizer.param_groups:
        lr, decay = group["schedules"]
        group["lr"], group["weight_decay"] = float(lr[step]), float(decay[step])


def state_without_schedules(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state without the schedules, which the settings determine."""
    state = optimizer.state_dict()
    return {**state, "param_groups": [{k: v for k, v in group.items() if k != "schedules"} for group in state["param_groups"]]}


def load_state_without_schedules(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load such a state; the schedules stay as they are."""
    schedules = [group["schedules"] for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, own in zip(optimizer.param_groups, schedules, strict=True):
        group["schedules"] = own
