"""Signals that ask a training to save and stop."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger("densewalk")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def leave_signals_to_parent(_worker: int) -> None:
    """Ignore the stop signals in a data-loading process: the step still needs its data."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class StopRequest:
    """A signal handler that remembers the first signal."""

    requested = False

    def __call__(self, number: int, _frame: Any) -> None:
        """Handle a signal."""
        self.requested = True
        log.info("%s: saving after this step", signal.Signals(number).name)


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Turn SIGTERM, SIGINT and SIGUSR1 into a request inside the block."""
    stop = StopRequest()
    before = [signal.signal(number, stop) for number in STOP_SIGNALS]
    try:
        yield stop
    finally:
        for number, handler in zip(STOP_SIGNALS, before, strict=True):
            signal.signal(number, handler)
