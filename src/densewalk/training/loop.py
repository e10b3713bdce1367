"""The one training loop: any method, any number of processes, resumable at every step.

    densewalk train --spec JSON --data RECEIPT... --init BACKBONE --state FOLDER --out FOLDER

A step's randomness depends on (run's seed, step) alone, and so does what it sees. Resuming therefore needs the networks, the
optimiser and the step, nothing else, and gives bit for bit what an uninterrupted run gives.
"""

import logging
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from densewalk.core import distributed
from densewalk.core.errors import Interrupted
from densewalk.core.hashing import derive_seed
from densewalk.core.progress import Progress
from densewalk.ops.cpu.memory import trim_heap
from densewalk.training.cost import Cost, Meter
from densewalk.training.execution import Execution
from densewalk.training.learning_curve import Curve, require_finite
from densewalk.training.method import Method
from densewalk.training.optimizer import make_optimizer, plain, set_schedules, with_schedules
from densewalk.training.sampler import StepSampler
from densewalk.training.signals import leave_signals_to_parent, stop_signals
from densewalk.training.state import State

log = logging.getLogger("densewalk")


@dataclass(frozen=True)
class Trained:
    """What a finished training reports: steps, samples seen, the cost of this and all earlier attempts."""

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
        parts: in which a process passes its share of them, one after the other. The method's settings must allow it
            (`TrainingSettings.obstacle_to_parts`).

    Raises:
        UserError: the batch cannot be split evenly.
        Interrupted: a signal came; the state is saved.
        TrainingError: the loss is not finite.
    """
    meter = Meter(state.folder / "cost.json", device)
    method.to(device).train()
    optimizer = make_optimizer(method)
    done = resume(method, optimizer, state, device)
    sampler = StepSampler(len(data), batch_size, seed, done, method.total_steps)  # type: ignore[arg-type]
    loader = DataLoader(
        data, batch_sampler=sampler, num_workers=execution.workers, pin_memory=device.type == "cuda", worker_init_fn=leave_signals_to_parent
    )
    progress = Progress("train", method.total_steps, done=done, seconds=execution.log_seconds)
    saved = time.monotonic()
    curve = Curve(state.folder / "metrics.jsonl", done, every=execution.metrics_every, tensorboard=execution.tensorboard)

    with stop_signals() as stop, curve:
        for at, batch in enumerate(loader, start=done):
            loss, logs = one_step(method, optimizer, split(batch, parts), at, seed, execution, device)
            curve.add(at, loss, logs, optimizer)
            progress.advance(f"loss {curve.latest_loss:.4f}")
            stopping = distributed.any_process(stop.requested, device)
            due = distributed.any_process(time.monotonic() - saved >= 60 * execution.checkpoint_minutes, device)
            if stopping or due or at + 1 == method.total_steps:
                require_finite(loss, at, curve.path)
                save(method, optimizer, state, at + 1)
                meter.keep()
                saved = time.monotonic()
            if stopping and at + 1 < method.total_steps:
                raise Interrupted(f"stopped by a signal after step {at + 1} of {method.total_steps}; the state is saved in {state.folder}")
    progress.close()
    return Trained(method.total_steps, method.total_steps * batch_size, meter.keep())


def one_step(
    method: Method, optimizer: torch.optim.Optimizer, parts: list[Any], at: int, seed: int, execution: Execution, device: torch.device
) -> tuple[Tensor, dict[str, Tensor]]:
    """Schedules, loss, gradients averaged over the parts of the batch and over processes, update."""
    set_schedules(optimizer, at)
    # stochastic depth may differ between parts and processes, the method's own draws may not: they describe the whole batch
    torch.manual_seed(derive_seed(seed, "step", at, distributed.rank()))
    optimizer.zero_grad(set_to_none=True)
    results = []
    for part in parts:
        rng = torch.Generator(device=device).manual_seed(derive_seed(seed, "draws", at))
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=execution.precision == "bfloat16"):
            loss, logs = method.step(to_device(part, device), at, rng)
        trim_heap(device)  # here a step needs the most memory
        (loss / len(parts)).backward()
        results.append((loss.detach(), logs))
    distributed.average_gradients(p for group in optimizer.param_groups for p in group["params"])
    method.after_backward(at)
    optimizer.step()
    method.after_update(at)
    return mean_of([loss for loss, _ in results]), {name: mean_of([logs[name] for _, logs in results]) for name in results[0][1]}


def mean_of(scalars: list[Tensor]) -> Tensor:
    """Mean in float32, without gradient."""
    return torch.stack([x.detach().float() for x in scalars]).mean()


def to_device(batch: Any, device: torch.device) -> Any:
    """Every tensor of a nested batch on `device`."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {k: to_device(v, device) for k, v in batch.items()}
    if isinstance(batch, list | tuple):
        return [to_device(v, device) for v in batch]
    return batch


def split(batch: Any, parts: int) -> list[Any]:
    """A collated batch in equal parts: a tensor along its first axis, a nested batch tensor by tensor."""
    if parts == 1:
        return [batch]
    if isinstance(batch, Tensor):
        return list(batch.chunk(parts))
    if isinstance(batch, dict):
        pieces = {name: split(value, parts) for name, value in batch.items()}
        return [{name: piece[i] for name, piece in pieces.items()} for i in range(parts)]
    if isinstance(batch, list | tuple):
        return [list(piece) for piece in zip(*(split(value, parts) for value in batch), strict=True)]
    raise TypeError(f"a batch of {type(batch).__name__} has no parts")


# -- state -----------------------------------------------------------------------------------------------------------


def save(method: Method, optimizer: torch.optim.Optimizer, state: State, step: int) -> None:
    """Write the state after `step` steps; process 0 does."""
    if distributed.rank() == 0:
        content = {"step": step, "method": method.state_dict(), "optimizer": plain(optimizer.state_dict())}
        state.save(step, content)


def resume(method: Method, optimizer: torch.optim.Optimizer, state: State, device: torch.device) -> int:
    """Load the newest checkpoint; the number of steps done."""
    content = state.newest(map_location=device)
    if content is None:
        return 0
    method.load_state_dict(content["method"])
    optimizer.load_state_dict(with_schedules(content["optimizer"], optimizer))
    log.info("resuming after step %d", content["step"])
    return content["step"]
