"""The training loop: any method, any number of processes, resumable at every step.

A step's randomness and samples depend on the run's seed and the step alone. Resuming needs the networks, the optimizer's state and the
step, and gives bit for bit what an uninterrupted training gives.
"""

import logging
import time
from contextlib import closing, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import DataLoader, Dataset

from densewalk.core import distributed
from densewalk.core.errors import Interrupted
from densewalk.core.hashing import derive_seed
from densewalk.core.machine import usable_workers
from densewalk.core.progress import Progress
from densewalk.ops.cpu.memory import trim_heap
from densewalk.training.cost import Cost, Meter
from densewalk.training.execution import Execution
from densewalk.training.learning_curve import LearningCurve, require_finite_loss
from densewalk.training.method import Method
from densewalk.training.optimizer import load_state_without_schedules, make_optimizer, set_schedules, state_without_schedules
from densewalk.training.processes.gradients import GradientAverager
from densewalk.training.processes.sharding import (
    fill,
    give_gradients,
    load_whole_state,
    optimizer_state_here,
    shard,
    whole_optimizer_state,
    whole_state,
)
from densewalk.training.progress_files import newest_seal
from densewalk.training.sampler import StepSampler, pixels_ahead
from densewalk.training.signals import leave_signals_to_parent, stop_signals
from densewalk.training.state import State

log = logging.getLogger("densewalk")


@dataclass(frozen=True)
class Trained:
    """A finished training: the method, whole; steps, samples seen, the cost of this and all earlier attempts."""

    method: Method
    steps: int
    samples: int
    cost: Cost


def train(
    method: Method,
    data: "Dataset[Any]",
    *,
    batch_size: int,
    seed: int,
    state: State,
    execution: Execution,
    device: torch.device,
    parts: int = 1,
) -> Trained:
    """Train `method` to its last step, from the newest intact checkpoint if there is one.

    Args:
        batch_size: samples per step over all processes.
        parts: number of equal parts in which a process passes its samples; `TrainingSettings.obstacle_to_parts` must allow it.

    Raises:
        UserError: the batch cannot be split evenly.
        Interrupted: a signal came; the state is saved.
        TrainingError: the loss is not finite.
    """
    meter = Meter(state.folder / "cost.json", device, goes_on=newest_seal(state.folder) is not None)
    plain, optimizer, averager = ready(method, execution, device)
    done = resume(method, optimizer, state, device)
    sampler = StepSampler(len(data), batch_size, seed, done, method.total_steps)  # type: ignore[arg-type]
    loader = open_loader(data, sampler, usable_workers(execution.workers), device)
    progress = Progress("train", method.total_steps, done=done, seconds=execution.log_seconds)
    saved = time.monotonic()
    curve = open_curve(state, done, method.total_steps, execution)

    with stop_signals() as stop, closing(curve):
        for step, batch in enumerate(pixels_ahead(loader, device), start=done):
            loss, logs = one_step(method, optimizer, split(batch, parts), step, seed, execution, device, averager)
            curve.add(step, loss, logs, optimizer)
            progress.advance(f"loss {curve.latest_loss:.4f}")
            stopping = distributed.any_process(stop.requested, device)
            due = distributed.any_process(time.monotonic() - saved >= 60 * execution.checkpoint_minutes, device)
            if stopping or due or step + 1 == method.total_steps:
                require_finite_loss(loss, step, curve.path)
                save(method, optimizer, state, step + 1)
                meter.keep()
                saved = time.monotonic()
            if stopping and step + 1 < method.total_steps:
                raise Interrupted(f"step {step + 1} of {method.total_steps}", state.folder)
    progress.close()
    return Trained(fill(plain, method) if plain else method, method.total_steps, method.total_steps * batch_size, meter.keep(finished=True))


def ready(method: Method, execution: Execution, device: torch.device) -> tuple[Any, torch.optim.Optimizer, GradientAverager]:
    """Put a method on the device, ready for `one_step`: what `fill` needs if it is sharded, the optimizer, what averages gradients."""
    method.to(device).train()
    plain = shard(method, device) if execution.shard and distributed.world_size() > 1 else None
    optimizer = make_optimizer(method)
    # FSDP2 sends within the backward pass, too: the order of both would depend on the pass
    return plain, optimizer, GradientAverager(learned_parameters(method, optimizer), during_backward=plain is None)


def open_loader(data: "Dataset[Any]", sampler: StepSampler, workers: int, device: torch.device) -> "DataLoader[Any]":
    """Load the sampler's batches in so many processes, or in this one."""
    return DataLoader(
        data,
        batch_sampler=sampler,
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals_to_parent,
    )


def open_curve(state: State, done: int, total: int, execution: Execution) -> LearningCurve:
    """The learning curve of a training of `total` steps, after `done` of them; a collapse is warned of after a tenth."""
    path, every = state.folder / "metrics.jsonl", execution.metrics_every
    return LearningCurve(path, done, every=every, tensorboard=execution.tensorboard, settled=total // 10)


def one_step(
    method: Method,
    optimizer: torch.optim.Optimizer,
    parts: list[Any],
    step: int,
    seed: int,
    execution: Execution,
    device: torch.device,
    averager: GradientAverager | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Schedules, loss, gradients averaged over parts of the batch and processes (by `averager`, if there are several), update."""
    set_schedules(optimizer, step)
    # stochastic depth may differ between parts and processes; the method's own draws are for the whole batch and must not
    torch.manual_seed(derive_seed(seed, "step", step, distributed.rank()))
    optimizer.zero_grad(set_to_none=True)
    results = []
    for number, part in enumerate(parts, start=1):
        with torch.no_grad():
            inputs = method.prepare(part, device)
        generator = torch.Generator(device=device).manual_seed(derive_seed(seed, "draws", step))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=execution.precision == "bfloat16"):
            loss, logs = method.step(inputs, step, generator)
        trim_heap(device)  # a step needs the most memory here
        with averager if averager and number == len(parts) else nullcontext():
            (loss / len(parts)).backward()
        results.append((loss.detach(), logs))
    method.after_backward(step)
    give_gradients(optimizer)
    optimizer.step()
    method.after_update(step)
    return mean_of([loss for loss, _ in results]), {name: mean_of([logs[name] for _, logs in results]) for name in results[0][1]}


def learned_parameters(method: Method, optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The optimizer's parameters in the order of the network."""
    learned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [p for p in method.parameters() if id(p) in learned]


def mean_of(scalars: list[Tensor]) -> Tensor:
    """Mean in float32, without gradient."""
    return torch.stack([x.detach().float() for x in scalars]).mean()


def split(batch: Any, parts: int) -> list[Any]:
    """A nested batch of tensors in equal parts along the first axis of each."""
    if parts == 1:
        return [batch]
    leaves, structure = tree_flatten(batch)
    for leaf in leaves:
        if not isinstance(leaf, Tensor):
            raise TypeError(f"a batch of {type(leaf).__name__} has no parts")
    return [tree_unflatten(list(part), structure) for part in zip(*(leaf.chunk(parts) for leaf in leaves), strict=True)]


def save(method: Method, optimizer: torch.optim.Optimizer, state: State, step: int) -> None:
    """Write the state after `step` steps; process 0 does."""
    content = {
        "step": step,
        "method": whole_state(method),
        "optimizer": whole_optimizer_state(optimizer, state_without_schedules(optimizer)),
    }
    if distributed.rank() == 0:
        state.save(step, content)


def resume(method: Method, optimizer: torch.optim.Optimizer, state: State, device: torch.device) -> int:
    """Load the newest checkpoint and return the number of steps done."""
    content = state.newest(map_location=device)
    if content is None:
        return 0
    load_whole_state(method, content["method"])
    load_state_without_schedules(optimizer, optimizer_state_here(optimizer, content["optimizer"]))
    log.info("resuming after step %d", content["step"])
    return content["step"]
