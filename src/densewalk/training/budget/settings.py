"""What a training may spend, in place of a number of steps. Free of torch.

The number of steps is fixed before the first one, so that schedules end where they were planned to end and a resumed training equals an
uninterrupted one. By counted operations it follows from the settings alone. By a measured time it is measured once (measure.py).
"""

from typing import Self

from pydantic import Field, model_validator

from densewalk.core.errors import UserError
from densewalk.core.settings import MOST_STEPS, Settings, is_null

UNITS = {"gpu_hours": "GPU-hours", "cpu_seconds": "CPU seconds", "teraflop": "teraflop"}


class Budget(Settings):
    """What one training may spend. Exactly one of these."""

    gpu_hours: float | None = Field(default=None, gt=0, exclude_if=is_null)
    """Hours of all GPUs together, of the optimizer steps alone: measured on a few steps when the training begins."""
    cpu_seconds: float | None = Field(default=None, gt=0, exclude_if=is_null)
    """CPU seconds of all processes and threads together, of the optimizer steps alone: measured on a few steps when the training begins."""
    teraflop: float | None = Field(default=None, gt=0, exclude_if=is_null)
    """10^12 operations of products of matrices, as `densewalk plan` counts them: the same number of steps on every machine."""

    @model_validator(mode="after")
    def one_unit(self) -> Self:
        """The budget is given in one unit."""
        given = [name for name in UNITS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"set exactly one of {', '.join(UNITS)} (found {', '.join(given) or 'none'})")
        return self

    @property
    def unit(self) -> str:
        """The name of the unit that is given."""
        return next(name for name in UNITS if getattr(self, name) is not None)

    @property
    def amount(self) -> float:
        """How many of the unit."""
        return float(getattr(self, self.unit))

    @property
    def text(self) -> str:
        """Amount and unit for people."""
        return f"{self.amount:g} {UNITS[self.unit]}"

    @property
    def seconds(self) -> float:
        """A measured budget in seconds of all its processes."""
        return self.amount * 3600 if self.unit == "gpu_hours" else self.amount

    def steps(self, step: float, what: str) -> int:
        """The number of steps of which each spends `step`, in teraflop or in seconds of all processes; rounded down.

        Args:
            what: of the run, for the message.

        Raises:
            UserError: not one step, or more than a training may have.
        """
        whole = self.amount if self.unit == "teraflop" else self.seconds
        found = int(whole / step)
        if found < 1:
            each = f"{step:.3g} {'teraflop' if self.unit == 'teraflop' else 'seconds'}"
            raise UserError(f"{what}: the budget of {self.text} is less than one step, which takes {each}", todo="raise it")
        if found > MOST_STEPS:
            raise UserError(f"{what}: the budget of {self.text} gives {found:,} steps", allowed=f"{MOST_STEPS:,}", todo="lower it")
        return found
