"""Write the learning curve of a training while it grows."""

import shutil
import time
from pathlib import Path

import torch
from torch import Tensor

from densewalk.core import distributed
from densewalk.core.errors import TrainingError
from densewalk.core.files import atomic_write
from densewalk.training.progress_files import append_point, as_line, read_points
from densewalk.training.tensorboard import EventFile, newest_event_file


class LearningCurve:
    """The learning curve, continued after a resume without repeated steps; process 0 writes it.

    path: of metrics.jsonl; TensorBoard's event files lie beside it. done: steps done; later points of an earlier attempt are dropped.
    """

    def __init__(self, path: Path, done: int, *, every: int, tensorboard: bool = False) -> None:
        self.path, self.every, self.latest_loss = path, every, float("nan")
        self.events: EventFile | None = None
        if distributed.rank() > 0:
            return
        kept = [point for point in read_points(self.path) if point["step"] < done]
        with atomic_write(self.path) as temporary:
            temporary.write_text("".join(map(as_line, kept)), encoding="utf-8")
        if tensorboard:
            self.events = EventFile(path.with_name("tensorboard"), kept)

    def add(self, step: int, loss: Tensor, logs: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Write a point if `step` is a multiple of `every`."""
        if step % self.every:  # reading the loss makes the device wait
            return
        require_finite_loss(loss, step, self.path)
        self.latest_loss = distributed.all_mean(loss).item()
        values = {name: distributed.all_mean(value.detach().float()).item() for name, value in sorted(logs.items())}
        point = {"step": step, "time": round(time.time(), 1), "loss": self.latest_loss, "lr": optimizer.param_groups[0]["lr"], **values}
        if distributed.rank() == 0:
            append_point(self.path, point)
        if self.events is not None:
            self.events.add(point)

    def close(self) -> None:
        """Close the event file."""
        if self.events is not None:
            self.events.close()


def copy_learning_curve(state: Path, out: Path, *, tensorboard: bool) -> None:
    """Copy metrics.jsonl, and the event file if asked for, over those of an earlier training."""
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(state / "metrics.jsonl", out / "metrics.jsonl")
    shutil.rmtree(out / "tensorboard", ignore_errors=True)
    if tensorboard:
        (out / "tensorboard").mkdir()
        shutil.copy(newest_event_file(state / "tensorboard"), out / "tensorboard")


def require_finite_loss(loss: Tensor, step: int, curve: Path) -> None:
    """Raise TrainingError if the loss is NaN or infinite."""
    if not torch.isfinite(loss):
        raise TrainingError(f"the loss is {loss.item()} at step {step}; {curve} has the steps before it")
