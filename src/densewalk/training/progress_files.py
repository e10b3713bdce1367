"""What a training leaves in its state folder for `densewalk status`, the page and its next attempt. Free of torch.

results/state/{run}-s{seed}-{hash}/
    plan.json             TrainingPlan
    step-00001200.json    Seal of step-00001200.pt
    cost.json             CostRecord, up to the newest checkpoint
    metrics.jsonl         {"step": 20, "time": 1760000000.0, "loss": 8.1, "lr": 0.0004, ...}, a point of the learning curve each

A point is written at once; the last line may be cut off: the writer was killed, or has not finished.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from densewalk.core.errors import UserError
from densewalk.core.settings import Settings
from densewalk.core.typed_files import Model, read_model

NotNegative = Annotated[float, Field(ge=0)]
PLAN = "plan.json"


class TrainingPlan(Settings):
    """Steps in all, and on how many GPUs."""

    steps: int = Field(ge=0)
    gpus: int = Field(ge=0)


class Seal(Settings):
    """A checkpoint's step, and the checksum of its file: one that does not match is passed over."""

    step: int = Field(ge=0)
    sha256: str


class CostRecord(Settings):
    """What a job has cost. None for what the device does not tell, which is never the same as zero.

    seconds: wall time. gpu_hours: of all GPUs. peak_rss_mib: of the largest process. peak_gpu_mib: what torch had allocated at
    once on the fullest GPU. energy_wh: of all GPUs, whoever used them.
    """

    seconds: NotNegative
    gpu_hours: NotNegative | None
    peak_rss_mib: NotNegative
    peak_gpu_mib: NotNegative | None
    energy_wh: NotNegative | None


def read_progress(path: Path, model: type[Model]) -> Model:
    """Read one of these files; a UserError names file and key of what is missing or broken."""
    return read_model(path, model, "file of a training's progress", "delete it and start the job again")


Point = dict[str, Any]  # `step` (a whole number) and `time` (seconds since 1970), and the quantities
NOT_QUANTITIES = ("step", "time")


def read_points(path: Path) -> list[Point]:
    """The points in their order, without lines that are cut off; none if the file does not exist.

    Raises:
        UserError: a whole line is no point.
    """
    points: list[Point] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            point = json.loads(line)
        except json.JSONDecodeError:
            continue
        if not _is_point(point, after=points[-1]["step"] if points else -1):
            raise UserError(f"{path} has a line that is no point of a learning curve: {line[:80]}", todo="delete the line")
        points.append(point)
    return points


def _is_point(value: Any, after: int) -> bool:
    """A point has a time and a step beyond the one before; it holds numbers only."""
    if not isinstance(value, dict) or "time" not in value or not isinstance(value.get("step"), int) or value["step"] <= after:
        return False
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in value.values())


def append_point(path: Path, point: Point) -> None:
    """Append one point."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(as_line(point))


def as_line(point: Point) -> str:
    """The line of a point."""
    return json.dumps(point) + "\n"


def quantities(points: Iterable[Point]) -> list[str]:
    """Names of all quantities, in the order of their first point."""
    return list(dict.fromkeys(name for point in points for name in point if name not in NOT_QUANTITIES))
