"""Log lines and progress: a bar on a terminal, lines with rate and time left in a file."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TypeVar

from tqdm import tqdm

from densewalk.core.text.urls import redacted

log = logging.getLogger("densewalk")
T = TypeVar("T")


class _Lines(logging.Formatter):
    """Time-stamped lines without the tokens and passwords of addresses."""

    def format(self, record: logging.LogRecord) -> str:
        return redacted(super().format(record))


def start_logging() -> None:
    """Log time-stamped lines to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


class Progress:
    """Counts steps and reports them; without a terminal, a line every `seconds`."""

    def __init__(self, label: str, total: int, *, done: int = 0, seconds: float = 30.0) -> None:
        self.label, self.total, self.done, self.seconds = label, total, done, seconds
        self.first, self.begun = done, time.monotonic()
        self.reported = self.begun if done else -float("inf")
        self.bar = tqdm(total=total, initial=done, desc=label) if sys.stderr.isatty() else None

    def advance(self, text: str = "", count: int = 1) -> None:
        """Count `count` more; `text` goes into the next line."""
        self.done += count
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(count)
            self.bar.set_postfix_str(text, refresh=False)
        elif now - self.reported >= self.seconds or self.done == self.total:
            self.reported = now
            log.info("%s", self.line(text, now - self.begun))

    def line(self, text: str, elapsed: float) -> str:
        """Label, count, text, rate and time left."""
        rate = (self.done - self.first) / max(elapsed, 1e-9)
        left, speed = float("inf"), "?"
        if rate > 0:
            left, speed = (self.total - self.done) / rate, f"{rate:.2f}/s" if rate >= 1 else f"{1 / rate:.1f} s each"
        return f"{self.label} {self.done}/{self.total}  {text}{'  ' if text else ''}{speed}  ETA {clock(left)}"

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Iterate over the items and report progress."""
    if total is None:
        if not isinstance(items, Sized):
            raise TypeError("give `total` for an iterable without a length")
        total = len(items)
    progress = Progress(label, total)
    for item in items:
        yield item
        progress.advance()
    progress.close()


def clock(seconds: float) -> str:
    """Format a time as 1:02:03; `?` if it is unknown."""
    if seconds == float("inf"):
        return "?"
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}"


def columns(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for the terminal with left-aligned columns, two blanks apart."""
    lines = [tuple(head), *map(tuple, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
