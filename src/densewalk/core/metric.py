"""What a number of a result means."""

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
