"""Write the learning curve of a training while it grows, and warn if it shows a collapse."""

import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from densewalk.core import distributed
from densewalk.core.errors import TrainingError
from densewalk.core.files import atomic_write
from densewalk.core.progress import log
from densewalk.training.progress_files import Point, append_whole, as_line, read_points
from densewalk.training.tensorboard import EventFile, newest_event_file

# logged quantity -> at or below which value a training has collapsed, and what that means
COLLAPSED = {
    "feature_rank": (1.1, "the features of all images are nearly the same"),
    "patch_rank": (1.1, "the features of all patches are nearly the same"),
    "teacher_mean_entropy": (math.log(2), "all images share fewer than two prototypes"),
    "patch_mean_entropy": (math.log(2), "all patches share fewer than two prototypes"),
    "smaller_side": (0.005, "the masks take all of the frames or nothing"),
}


class LearningCurve:
    """The learning curve, continued after a resume without repeated steps; process 0 writes it.

    path: of metrics.jsonl; TensorBoard's event files lie beside it. done: steps done; later points of an earlier attempt are dropped.
    settled: the step from which on a collapse is warned of: new weights give all images the same features, too.
    """

    def __init__(self, path: Path, done: int, *, every: int, tensorboard: bool = False, settled: int = 0) -> None:
        self.path, self.every, self.latest_loss = path, every, float("nan")
        self.settled, self.warned = settled, set[str]()
        self.unwritten = ""  # points that a full disk has not taken yet
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
            self._write(point)
            self._warn(step, values)

    def _warn(self, step: int, values: Mapping[str, float]) -> None:
        """One warning for each quantity that shows a collapse."""
        for name, (least, meaning) in COLLAPSED.items():
            if step >= self.settled and name not in self.warned and values.get(name, math.inf) <= least:
                self.warned.add(name)
                log.warning("step %d: %s is %.3g: %s, the training has collapsed", step, name, values[name], meaning)

    def _write(self, point: Point) -> None:
        """Append a point; on a full disk it waits for the next one, since the training need not stop before its next checkpoint."""
        try:
            if self.events is not None:
                self.events.add(point)
            append_whole(self.path, self.unwritten + as_line(point))
        except OSError as error:
            if not self.unwritten:
                log.warning("%s cannot be written for now: %s", self.path, error.strerror)
            self.unwritten += as_line(point)
        else:
            self.unwritten = ""

    def close(self) -> None:
        """Write what a full disk has not taken, and close the event file."""
        try:
            if self.unwritten:
                append_whole(self.path, self.unwritten)
            if self.events is not None:
                self.events.close()
        except OSError as error:
            log.warning("%s lacks its last points: %s", self.path, error.strerror)


def copy_learning_curve(state: Path, out: Path, *, tensorboard: bool) -> None:
    """Copy metrics.jsonl, and the event file if asked for, over those of an earlier training."""
    with atomic_write(out / "metrics.jsonl") as temporary:
        shutil.copyfile(state / "metrics.jsonl", temporary)
    shutil.rmtree(out / "tensorboard", ignore_errors=True)
    if tensorboard:
        newest = newest_event_file(state / "tensorboard")
        with atomic_write(out / "tensorboard" / newest.name) as temporary:
            shutil.copyfile(newest, temporary)


def require_finite_loss(loss: Tensor, step: int, curve: Path) -> None:
    """Raise TrainingError if the loss is NaN or infinite."""
    if not torch.isfinite(loss):
        raise TrainingError(f"the loss is {loss.item()} at step {step}; {curve} has the steps before it")
