"""The file of a training's learning curve, which may be read while it grows. Free of torch.

results/state/{run}-s{seed}-{hash}/metrics.jsonl      {"step": 20, "time": 1760000000.0, "loss": 8.1, "lr": 0.0004, ...}

Each point is one line, written at once. The last line may be cut off: the writer was killed, or has not finished.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from densewalk.core.errors import UserError

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
