"""What a number of a result, or a logged quantity, means."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """Unit, explanation and direction of a metric; `better` is None for a floor, which is nobody's merit."""

    unit: str
    text: str = ""
    better: Literal["higher", "lower"] | None = "higher"

    def __str__(self) -> str:
        direction = f" ({self.better} is better)" if self.better else ""
        return f"{self.unit}{direction}" + (f", {self.text}" if self.text else "")


@dataclass(frozen=True)
class Ceiling:
    """The largest value that a logged quantity can have, and its formula."""

    value: float
    text: str


# ending of a metric's name -> what is scored in place of a backbone's prediction, e.g. `J_copied` for `J`
FLOORS = {
    "copied": "copying",
    "position": "position",
    "constant": "one constant",
    "whole": "the whole frame",
    "flow": "a threshold on the flow's length",
    "chance": "a random choice",
}


def floor_of(name: str) -> tuple[str, str] | None:
    """The metric that a floor is of, and which floor; None for any other metric."""
    metric, _, ending = name.rpartition("_")
    return (metric, FLOORS[ending]) if metric and ending in FLOORS else None
