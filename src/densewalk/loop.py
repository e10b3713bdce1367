"""The one training loop: any method, any number of processes, resumable at every step.

    densewalk train --spec JSON --data RECEIPT... --init BACKBONE --state FOLDER --out FOLDER

A step's randomness depends on (run's seed, step) alone, and so does what it sees. Resuming therefore needs the networks, the
optimiser and the step, nothing else, and gives bit for bit what an uninterrupted run gives.
"""

import logging
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from densewalk import distributed
from densewalk.allocator import give_back
from densewalk.checkpoint import State, atomic_write
from densewalk.cost import Cost, Meter
from densewalk.curve import append_point, as_line, read_points
from densewalk.errors import Interrupted, TrainingError, UserError
from densewalk.events import Events, newest
from densewalk.methods.base import Item, Method
from densewalk.progress import Progress
from densewalk.provenance import derive_seed
from densewalk.settings.execution import Execution

log = logging.getLogger("densewalk")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


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
        if device.type == "cpu":  # here a step needs the most memory
            give_back()
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


# -- data ------------------------------------------------------------------------------------------------------------


class StepSampler(Sampler[list[Item]]):
    """The items of each step, from step `first` on: epoch e is a permutation drawn from (seed, e), the last incomplete batch is dropped.

    Each process takes its slice of the global batch, so the batch is the same for any number of processes.

    Raises:
        UserError: `batch_size` is not a multiple of the number of processes, or larger than the data set.
    """

    def __init__(self, length: int, batch_size: int, seed: int, first: int, total: int) -> None:
        world = distributed.world_size()
        if batch_size % world:
            raise UserError(f"batch_size {batch_size} cannot be shared evenly by {world} processes", todo="choose a multiple")
        if length < batch_size:
            raise UserError(f"batch_size {batch_size} is larger than the data set ({length} samples)", todo="lower batch_size")
        self.length, self.batch_size, self.seed, self.first, self.total = length, batch_size, seed, first, total
        share = batch_size // world
        self.share = slice(distributed.rank() * share, (distributed.rank() + 1) * share)

    def __len__(self) -> int:
        return self.total - self.first

    def __iter__(self) -> Iterator[list[Item]]:
        per_epoch = self.length // self.batch_size
        epoch, order = -1, torch.empty(0)
        for step in range(self.first, self.total):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = torch.randperm(self.length, generator=torch.Generator().manual_seed(derive_seed(self.seed, "epoch", epoch)))
            begin = step % per_epoch * self.batch_size
            chosen = order[begin : begin + self.batch_size][self.share].tolist()
            yield [Item(index=i, seed=derive_seed(self.seed, "sample", epoch, i)) for i in chosen]


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


def leave_signals_to_parent(_worker: int) -> None:
    """A terminal or a scheduler signals every process of a job; the step in progress still needs its data."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


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


def plain(state: dict[str, Any]) -> dict[str, Any]:
    """An optimiser's state without the schedules, which the configuration gives again."""
    groups = [{k: v for k, v in g.items() if k != "schedules"} for g in state["param_groups"]]
    return {**state, "param_groups": groups}


def with_schedules(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The inverse of `plain`."""
    groups = [{**g, "schedules": own["schedules"]} for g, own in zip(state["param_groups"], optimizer.param_groups, strict=True)]
    return {**state, "param_groups": groups}


class Curve:
    """The learning curve, continued after a resume without doubled steps; process 0 writes it. A context manager.

    metrics.jsonl                     JSON lines (curve.py)
    tensorboard/events.out.tfevents.* the same points, if the study asks for them (events.py)

    Args:
        path: of metrics.jsonl; event files lie beside it.
        done: steps done; later points of an interrupted attempt are dropped.
    """

    def __init__(self, path: Path, done: int, *, every: int, tensorboard: bool = False) -> None:
        self.path, self.every, self.latest_loss = path, every, float("nan")
        self.events: Events | None = None
        if distributed.rank() > 0:
            return
        kept = [point for point in read_points(self.path) if point["step"] < done]
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(map(as_line, kept)), encoding="utf-8")
        if tensorboard:
            self.events = Events(path.with_name("tensorboard"), kept)

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, at: int, loss: Tensor, logs: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Note step `at`, if it is one to note.

        Raises:
            TrainingError: the loss is not finite (looked at on noted steps and before saving: reading it makes the device wait).
        """
        if at % self.every:
            return
        require_finite(loss, at, self.path)
        self.latest_loss = distributed.all_mean(loss).item()
        values = {name: distributed.all_mean(value.detach().float()).item() for name, value in sorted(logs.items())}
        point = {"step": at, "time": round(time.time(), 1), "loss": self.latest_loss, "lr": optimizer.param_groups[0]["lr"], **values}
        if distributed.rank() == 0:
            append_point(self.path, point)
        if self.events is not None:
            self.events.add(point)

    def close(self) -> None:
        """No more steps come."""
        if self.events is not None:
            self.events.close()


def keep_curves(state: Path, out: Path, *, tensorboard: bool) -> None:
    """The learning curve, and TensorBoard's event file if it is asked for, in place of those of an earlier training."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(state / "metrics.jsonl", out / "metrics.jsonl")
    if (out / "tensorboard").is_dir():
        shutil.rmtree(out / "tensorboard")
    if tensorboard:
        (out / "tensorboard").mkdir()
        shutil.copy(newest(state / "tensorboard"), out / "tensorboard")


def require_finite(loss: Tensor, at: int, curve: Path) -> None:
    """Stop rather than go on, or save, with numbers that mean nothing."""
    if not torch.isfinite(loss):
        raise TrainingError(f"the loss is {loss.item()} at step {at}; {curve} has the steps before it")


# -- signals ---------------------------------------------------------------------------------------------------------


class StopRequest:
    """Set by the first signal."""

    requested = False

    def __call__(self, number: int, _frame: Any) -> None:
        """The signals' handler."""
        self.requested = True
        log.info("%s: saving after this step", signal.Signals(number).name)


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGINT and SIGUSR1 into a request for the length of the block."""
    stop = StopRequest()
    before = [signal.signal(number, stop) for number in STOP_SIGNALS]
    try:
        yield stop
    finally:
        for number, handler in zip(STOP_SIGNALS, before, strict=True):
            signal.signal(number, handler)
