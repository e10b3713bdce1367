"""The learning curve of a training while it grows, and where it is kept."""

import shutil
import time
from pathlib import Path

import torch
from torch import Tensor

from densewalk.core import distributed
from densewalk.core.errors import TrainingError
from densewalk.core.files import atomic_write
from densewalk.training.metrics_file import append_point, as_line, read_points
from densewalk.training.tensorboard import Events, newest


class Curve:
    """The learning curve, continued after a resume without doubled steps; process 0 writes it. A context manager.

    metrics.jsonl                     JSON lines (metrics_file.py)
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
