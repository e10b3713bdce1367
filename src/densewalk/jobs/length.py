"""How many steps a training has whose length is a measured budget: decided once, before its first step.

results/state/{run}-s{seed}-{hash}/budget.json      PlannedLength

A training that goes on has the steps that are written in its state, on whatever machine, so that its schedules end where they were planned
to end. One that begins takes over the steps of another seed of the same run on the same kind of machine, if there is one, so that seeds
differ in nothing but their seed. Otherwise it measures. All of it happens before the state is opened, whose checkpoints are of this number
of steps or are not used.
"""

import copy
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.core.hashing import config_hash
from densewalk.core.progress import log
from densewalk.data.sources import Source
from densewalk.jobs.inputs import make_method
from densewalk.models.backbone import Backbone
from densewalk.models.interface import Network
from densewalk.ops.deterministic import deterministic_kernels
from densewalk.results.records import InputContents
from densewalk.study.registry import method_class
from densewalk.study.specs import RunSpec
from densewalk.training.budget import measure
from densewalk.training.budget.settings import Budget
from densewalk.training.execution import Execution
from densewalk.training.progress_files import PLANNED_LENGTH, PlannedLength, read_or_none
from densewalk.training.settings import TrainingSettings

SPEED = ("precision", "gradient_checkpointing", "deterministic", "shard", "compile", "workers")  # of `execution`: what decides it


def planned_length(
    spec: RunSpec,
    backbone: Backbone,
    sources: Sequence[Source],
    contents: InputContents,
    state: Path,
    execution: Execution,
    device: torch.device,
    teachers: Sequence[Network] = (),
) -> PlannedLength | None:
    """The steps that a run's budget pays for; None for a run of another length. All processes must call it.

    Args:
        state: folder of the run's state, beside those of others.

    Raises:
        UserError: the budget is in the unit of another device, or pays for no step or less than the warm-up.
    """
    assert isinstance(spec.settings, TrainingSettings)
    if (budget := spec.settings.budget) is None:
        return None
    unit = "gpu_hours" if device.type == "cuda" else "cpu_seconds"
    if budget.unit != unit:
        found = f"{spec.run}: a budget of {budget.text} for a training on {device.type}"
        raise UserError(found, allowed=f"{unit}, teraflop", todo="correct budget, or execution.device")
    data = method_class(spec.method).dataset(spec.settings, sources)
    what, machine = hash_of_what(spec, contents), measure.machine_name(device)
    speed = {name: getattr(execution, name) for name in SPEED} | {"parts": execution.parts_of(spec.run)}
    how = config_hash({"machine": machine, "processes": distributed.world_size(), **speed})
    known: PlannedLength | None = distributed.all_objects(known_length(state, budget, what, how))[0]
    if known is not None:
        log.info("%s: %s are %d steps, measured before on %s", spec.run, budget.text, known.steps, known.machine)
        return known
    seconds = measured(spec, spec.settings, backbone, data, budget, execution, device, teachers)
    steps = budget.steps(seconds, spec.run)
    log.info("%s: %s are %d steps of %.3g s, measured on %s", spec.run, budget.text, steps, seconds, machine)
    _, per_epoch = spec.settings.of_steps(steps).total_steps(len(data))  # type: ignore[arg-type]
    if (warmup := spec.settings.warmup_steps(per_epoch)) > steps:
        found = f"{spec.run}: {budget.text} are {steps} steps, fewer than the {warmup:g} of its warm-up"
        raise UserError(found, todo="raise the budget, or lower warmup_epochs")
    return PlannedLength(steps=steps, budget=budget, step_seconds=seconds, machine=machine, what=what, how=how)


def hash_of_what(spec: RunSpec, contents: InputContents) -> str:
    """Hash of what decides how much a step has to do: all but the seed and the weights that it begins with."""
    settings = spec.settings.model_dump(mode="json") if spec.settings else None
    return config_hash([spec.method, spec.version, spec.arch, spec.code, settings, contents.data])


def known_length(state: Path, budget: Budget, what: str, how: str) -> PlannedLength | None:
    """The length that is written in a state, or in that of another seed which was measured on such a machine."""
    own = read_or_none(state / PLANNED_LENGTH, PlannedLength)
    if own is not None and (own.budget, own.what) == (budget, what):
        return own
    others = (read_or_none(path, PlannedLength) for path in sorted(state.parent.glob(f"*/{PLANNED_LENGTH}")))
    return next((other for other in others if other and (other.budget, other.what, other.how) == (budget, what, how)), None)


def measured(
    spec: RunSpec,
    settings: TrainingSettings,
    backbone: Backbone,
    data: "torch.utils.data.Dataset[object]",
    budget: Budget,
    execution: Execution,
    device: torch.device,
    teachers: Sequence[Network],
) -> float:
    """What a step spends (`measure.step_seconds`), on copies of the networks: nothing of it is left, and the training seeds for itself."""
    samples = len(data)  # type: ignore[arg-type]
    most = measure.most_steps(execution, device)
    _, per_epoch = settings.of_steps(1).total_steps(samples)
    short = settings.of_steps(most + math.ceil(settings.warmup_steps(per_epoch)))
    with deterministic_kernels(execution.deterministic, device):
        method = make_method(spec, short, copy.deepcopy(backbone), samples, execution, copy.deepcopy(teachers))
        return measure.step_seconds(
            method,
            data,
            batch_size=settings.batch_size,
            seed=spec.seed,
            execution=execution,
            device=device,
            parts=execution.parts_of(spec.run),
            budget=budget.seconds,
        )
