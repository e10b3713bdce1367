"""What a check finds, and the table of it."""

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Setting:
    """Where the checks run. small: the sizes of a rehearsal on a CPU. folder: for files, removed in the end."""

    device: torch.device
    small: bool
    folder: Path

    def sync(self) -> None:
        """Wait for the GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Finding:
    """One line of the table: a number and the bounds that it must keep; without bounds it must be finite.

    slow: it is a matter of speed or memory, which a rehearsal does not judge.
    """

    what: str
    value: float
    at_most: float | None = None
    at_least: float | None = None
    slow: bool = False

    def ok(self, *, small: bool) -> bool:
        """True if the bounds are kept."""
        if small and self.slow:
            return True
        kept = (self.at_most is None or self.value <= self.at_most) and (self.at_least is None or self.value >= self.at_least)
        return math.isfinite(self.value) and kept

    @property
    def bound(self) -> str:
        """The bounds in words."""
        parts = [f"{sign} {limit:.6g}" for sign, limit in (("<=", self.at_most), (">=", self.at_least)) if limit is not None]
        return " and ".join(parts) or "-"


class Skipped(Exception):
    """A part of a check that this machine cannot do; the message says why."""


class Table:
    """Prints each line when it is known, so that a check that crashes the process leaves those before it."""

    def __init__(self, small: bool) -> None:
        self.small, self.failed = small, 0
        print(f"{'check':11} {'what was compared':74} {'value':>11} {'bound':>22} {'seconds':>8} ok", flush=True)

    def line(self, check: str, what: str, value: str, bound: str, seconds: float, verdict: str) -> None:
        """Print a line."""
        print(f"{check:11} {what:74} {value:>11} {bound:>22} {seconds:8.1f} {verdict}", flush=True)

    def fill(self, check: str, findings: Iterable[Finding], *, stop: bool) -> bool:
        """Print a check's findings, up to the first that fails if `stop`; False if one fails. An error fails and is raised again."""
        found, good = iter(findings), True
        while True:
            begun = time.monotonic()
            try:
                finding = next(found, None)
            except Skipped as reason:
                self.line(check, str(reason), "-", "-", time.monotonic() - begun, "skipped")
                return good
            except Exception as error:
                self.failed += 1
                what = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
                self.line(check, what[:74], "-", "-", time.monotonic() - begun, "FAILED")
                raise
            if finding is None:
                return good
            ok = finding.ok(small=self.small)
            self.line(check, finding.what, f"{finding.value:.5g}", finding.bound, time.monotonic() - begun, "yes" if ok else "NO")
            if not ok:
                self.failed += 1
                good = False
                if stop:
                    return False


def seconds_of(setting: Setting, runs: Iterator[object]) -> float:
    """Mean wall time of the runs that an iterator makes, each when it is asked for; the first one is not counted."""
    next(runs)
    setting.sync()
    begun, count = time.perf_counter(), 0
    for _ in runs:
        count += 1
    setting.sync()
    return (time.perf_counter() - begun) / count
