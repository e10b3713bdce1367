"""AdamW over a method's parameter groups, and its schedules."""

from typing import Any

import torch

from densewalk.training.method import Method

# -- optimiser and schedules -----------------------------------------------------------------------------------------


def make_optimizer(method: Method) -> torch.optim.AdamW:
    """AdamW over the method's groups; each group carries its schedules.

    Raises:
        ValueError: a schedule does not have one value per step, or a parameter is in two groups.
    """
    groups = []
    for group in method.param_groups():
        for label, schedule in (("lr", group.lr), ("weight decay", group.weight_decay)):
            if len(schedule) < method.total_steps:
                raise ValueError(f"{label} of group '{group.name}' has {len(schedule)} values for {method.total_steps} steps")
        if group.params:
            groups.append({"params": group.params, "name": group.name, "schedules": (group.lr, group.weight_decay), **group.extra})
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def set_schedules(optimizer: torch.optim.Optimizer, at: int) -> None:
    """Learning rate and weight decay of step `at`."""
    for group in optimizer.param_groups:
        lr, decay = group["schedules"]
        group["lr"], group["weight_decay"] = float(lr[at]), float(decay[at])


def plain(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state without the schedules, which the configuration gives again."""
    groups = [{k: v for k, v in g.items() if k != "schedules"} for g in state["param_groups"]]
    return {**state, "param_groups": groups}


def with_schedules(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The inverse of `plain`."""
    groups = [{**g, "schedules": own["schedules"]} for g, own in zip(state["param_groups"], optimizer.param_groups, strict=True)]
    return {**state, "param_groups": groups}
