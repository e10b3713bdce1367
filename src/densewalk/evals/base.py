"""What every evaluation takes and gives."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """Where and how one evaluation runs; none of it changes a number.

    out: folder for pictures and predictions beside the result. state: folder for resumable state, kept after a failure.
    """

    out: Path
    state: Path
    seed: int = 0
    device: str = "cpu"
    workers: int = 0


@dataclass(frozen=True)
class Result:
    """metrics: name -> value, exactly the names of the settings' METRICS. n: scored units (images, objects), and which."""

    metrics: dict[str, float]
    n: int
    unit: str
    details: dict[str, Any] = field(default_factory=dict)
