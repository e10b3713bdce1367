"""Saving the state of a training that a signal may end."""

import time
from collections.abc import Mapping
from typing import Any

from densewalk.core.errors import Interrupted
from densewalk.training.signals import StopRequest
from densewalk.training.state import State


class PeriodicSaver:
    """Saves every `seconds`, after the last step, and on a signal, which then ends the training."""

    def __init__(self, state: State, stop: StopRequest, total: int, *, seconds: float, unit: str = "step") -> None:
        self.state, self.stop, self.total, self.seconds, self.unit = state, stop, total, seconds, unit
        self.saved = time.monotonic()

    def is_due(self, done: int) -> bool:
        """True where the state has to be saved after `done` steps."""
        return self.stop.requested or done == self.total or time.monotonic() - self.saved >= self.seconds

    def save(self, done: int, content: Mapping[str, Any]) -> None:
        """Save `content`.

        Raises:
            Interrupted: there was a signal.
        """
        self.state.save(done, content)
        self.saved = time.monotonic()
        if self.stop.requested and done < self.total:
            where = f"{self.unit} {done} of {self.total}"
            raise Interrupted(f"stopped by a signal after {where}; the state is saved in {self.state.folder}")
