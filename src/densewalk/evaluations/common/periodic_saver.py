"""Saving the state of a training that a signal may end."""

import time
from collections.abc import Mapping
from typing import Any

import torch

from densewalk.core import distributed
from densewalk.core.errors import Interrupted
from densewalk.training.signals import StopRequest
from densewalk.training.state import State


class PeriodicSaver:
    """Saves every `seconds`, after the last step, and on a signal, which then ends the training.

    Of several processes, the first one writes; a signal to one of them stops all after the same step.
    """

    def __init__(
        self,
        state: State,
        stop: StopRequest,
        total: int,
        *,
        seconds: float,
        unit: str = "step",
        device: torch.device | None = None,
    ) -> None:
        self.state, self.stop, self.total, self.seconds, self.unit = state, stop, total, seconds, unit
        self.saved, self.stopping, self.device = time.monotonic(), False, device or torch.device("cpu")

    def is_due(self, done: int) -> bool:
        """True where the state has to be saved after `done` steps; all processes must ask."""
        self.stopping = distributed.any_process(self.stop.requested, self.device)
        late = distributed.any_process(time.monotonic() - self.saved >= self.seconds, self.device)
        return self.stopping or late or done == self.total

    def save(self, done: int, content: Mapping[str, Any]) -> None:
        """Save `content`.

        Raises:
            Interrupted: there was a signal.
        """
        if distributed.rank() == 0:
            self.state.save(done, content)
        self.saved = time.monotonic()
        if self.stopping and done < self.total:
            raise Interrupted(f"{self.unit} {done} of {self.total}", self.state.folder)
