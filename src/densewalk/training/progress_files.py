"""What a training leaves in its state folder for `densewalk status`, the page and its next attempt. Free of torch.

results/state/{run}-s{seed}-{hash}/
    inputs.json           name -> fingerprint of everything that the state was made from
    plan.json             TrainingPlan
    budget.json           PlannedLength, of a training whose length is a measured budget
    step-00001200.json    Seal of step-00001200.pt
    cost.json             CostSoFar, up to the newest checkpoint
    metrics.jsonl         {"step": 20, "time": 1760000000.0, "loss": 8.1, "lr": 0.0004, ...}, a point of the learning curve each

A point is written at once; the last line may be cut off: the writer was killed, or has not finished. A damaged file stops nothing:
what can be made again or done without is passed over with a warning.
"""

import errno
import json
import math
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from densewalk.core.errors import UserError
from densewalk.core.files import ABANDONED, is_alive
from densewalk.core.progress import log
from densewalk.core.provenance import UNKNOWN, Provenance
from densewalk.core.settings import Settings
from densewalk.core.typed_files import Model, read_model
from densewalk.training.budget.settings import Budget

NotNegative = Annotated[float, Field(ge=0)]
PLAN = "plan.json"
PLANNED_LENGTH = "budget.json"
HOLDER = ".holder"  # who works in the folder


class TrainingPlan(Settings):
    """Steps in all, and on how many GPUs."""

    steps: int = Field(ge=0)
    gpus: int = Field(ge=0)


class PlannedLength(Settings):
    """The steps that a measured budget pays for, written once, before the first of them.

    step_seconds: of one step, in the budget's unit: CPU seconds of all processes, or seconds times GPUs. machine: where they were
    measured. what: hash of all that decides what a step does, but for the seed. how: hash of machine, processes and execution.
    """

    steps: int = Field(ge=1)
    budget: Budget
    step_seconds: NotNegative
    machine: str
    what: str
    how: str


class How(Settings):
    """How steps are made, which changes no hash. processes: of one launch. execution: the study's section, with the precision."""

    device: str = UNKNOWN
    processes: int = Field(default=1, ge=1)
    execution: dict[str, Any] = {}


class Attempt(Provenance, How):
    """Steps that were made in one go: by which code, how, and how many were done at its end (`until`)."""

    until: int = Field(ge=0)

    def same_maker(self, other: "Attempt") -> bool:
        """True if the steps of both were made by the same code in the same way."""
        return self.model_copy(update={"until": 0}) == other.model_copy(update={"until": 0})


class Seal(Settings):
    """A checkpoint's step, and the checksum of its file: one that does not match is passed over.

    inputs: hash of what the state was made from. made: who made the steps up to it, in order. None in seals of earlier versions.
    """

    step: int = Field(ge=0)
    sha256: str
    inputs: str | None = None
    made: tuple[Attempt, ...] | None = None

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Who made the steps; of a seal that does not say it, somebody unknown."""
        nobody = Attempt(commit=UNKNOWN, dirty=False, versions={}, host=UNKNOWN, until=self.step)
        return (nobody,) if self.made is None else self.made


def joined(earlier: Sequence[Attempt], latest: Attempt) -> tuple[Attempt, ...]:
    """The attempts up to the latest one; one that continues in the same way is not listed again."""
    before = earlier[:-1] if earlier and earlier[-1].same_maker(latest) else earlier
    return (*before, latest)


def holder(state: Path) -> str | None:
    """Who works in a state folder now; None if nobody does.

    A process of this machine is looked for. One of another machine is believed while the folder is younger than an hour.
    """
    path = state / HOLDER
    try:
        text, written = path.read_text(), path.stat().st_mtime
    except OSError:
        return None
    found = re.match(r"process (\d+) on ([^,]+)", text)
    if found and found[2] == os.uname().nodename:
        return text if is_alive(int(found[1]), written) else None
    return text if time.time() - max(p.stat().st_mtime for p in state.iterdir()) < ABANDONED else None


def newest_seal(state: Path) -> Seal | None:
    """The seal of the newest checkpoint that has a whole one; None if there is none."""
    for path in sorted(state.glob("step-*.json"), reverse=True):
        if (seal := read_or_none(path, Seal)) is not None:
            return seal
    return None


class CostRecord(Settings):
    """What a job has cost. None for what the device does not tell, which is never the same as zero.

    seconds: wall time. gpu_hours: of all GPUs. peak_rss_mib: of the largest process. peak_gpu_mib: what torch had allocated at
    once on the fullest GPU. energy_wh: of all GPUs, whoever used them. cpu_seconds: of all processes and threads; records of earlier
    versions have none.
    """

    seconds: NotNegative
    gpu_hours: NotNegative | None
    peak_rss_mib: NotNegative
    peak_gpu_mib: NotNegative | None
    energy_wh: NotNegative | None
    cpu_seconds: NotNegative | None = None


class CostSoFar(CostRecord):
    """The cost of a job up to now. finished: it has left its output, so that what comes later makes it again."""

    finished: bool = False


def read_progress(path: Path, model: type[Model]) -> Model:
    """Read one of these files; a UserError names file and key of what is missing or broken."""
    return read_model(path, model, "file of a training's progress", "delete it and start the job again")


def read_or_none(path: Path, model: type[Model]) -> Model | None:
    """Read one of these files; None if there is none, and with a warning if it is damaged."""
    if not path.exists():
        return None
    try:
        return read_progress(path, model)
    except UserError as error:
        log.warning("passed over: %s", error.found)
        return None


Point = dict[str, Any]  # `step` (a whole number) and `time` (seconds since 1970), and the quantities
NOT_QUANTITIES = ("step", "time")
BEGINS = '{"step": '  # every line of metrics.jsonl


def read_points(path: Path) -> list[Point]:
    """The points in their order; none if the file does not exist or cannot be read.

    Lines that are no points are left out, with a warning; a last one without its end is on its way, or its writer was killed.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    except OSError as error:
        log.warning("%s cannot be read (%s): the learning curve has no points", path, error.strerror)
        return []
    points: list[Point] = []
    damaged = []
    for line in text.splitlines(keepends=True):
        point = _parsed(line)
        if _is_point(point, after=points[-1]["step"] if points else -1):
            points.append(point)
        elif line.endswith("\n") or not line.startswith(BEGINS[: len(line)]):
            damaged.append(line.strip())
    if damaged:
        log.warning("%s: %d lines are no points of a learning curve and are left out, e.g. %s", path, len(damaged), damaged[0][:80])
    return points


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_point(value: Any, after: int) -> bool:
    """A point has a time and a step beyond the one before; it holds numbers only, whole ones of at most 64 bits."""
    if not isinstance(value, dict) or type(value.get("step")) is not int or value["step"] <= after:
        return False
    numbers = all(type(v) is float or (type(v) is int and abs(v) < 2**63) for v in value.values())
    return numbers and math.isfinite(value.get("time", math.nan))


def append_point(path: Path, point: Point) -> None:
    """Append one point."""
    append_whole(path, as_line(point))


def append_whole(path: Path, lines: str) -> None:
    """Append lines, all or none: a full disk may take a part, which is taken back."""
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        content = lines.encode()
        try:
            written = file.write(content)
        except OSError:
            written = None
        if written != len(content):
            file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def as_line(point: Point) -> str:
    """The line of a point."""
    return json.dumps(point) + "\n"


def quantities(points: Iterable[Point]) -> list[str]:
    """Names of all quantities, in the order of their first point."""
    return list(dict.fromkeys(name for point in points for name in point if name not in NOT_QUANTITIES))
