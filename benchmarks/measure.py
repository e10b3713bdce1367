"""Times of rivals in one process, in turns: a busy machine is equally unfair to all. And the rows that are printed of them.

seconds = in_turns({"plain": plain, "here": here}, repeat=5)          # CPU seconds of each run
median(seconds["here"])
"""

import multiprocessing
import resource
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

Run = Callable[[], Any]


@dataclass(frozen=True)
class Told:
    """A run that tells CPU seconds, which count in place of its own: a floor that is put together from measurements."""

    seconds: Callable[[], float]


def in_turns(rivals: Mapping[str, Run | Told], repeat: int, *, warm: bool = True) -> dict[str, list[float]]:
    """CPU seconds of this process for each run of each rival, one run of each after the other.

    warm: a first run of each is not counted.
    """
    for run in rivals.values() if warm else ():
        if not isinstance(run, Told):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeat):
        for name, run in rivals.items():
            seconds[name].append(run.seconds() if isinstance(run, Told) else cpu_seconds(run))
    return seconds


def cpu_seconds(run: Run) -> float:
    """CPU seconds of this process for one run."""
    begun = time.process_time()
    run()
    return time.process_time() - begun


def medians(rivals: Mapping[str, Run | Told], repeat: int, *, warm: bool = True) -> dict[str, float]:
    """The median of each rival's CPU seconds, in turns."""
    return {name: median(seconds) for name, seconds in in_turns(rivals, repeat, warm=warm).items()}


def memory_growth(run: Run) -> float:
    """MiB by which the peak memory grows in a run; in a process of its own, since a peak never falls."""

    def child(pipe: "multiprocessing.connection.Connection") -> None:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        run()
        pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)

    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=child, args=(sender,))
    process.start()
    sender.close()
    grown = receiver.recv()
    process.join()
    return float(grown)


@dataclass(frozen=True)
class Row:
    """One computation: CPU seconds here, of its floor, and of rivals that were run in turns with it."""

    what: str
    here: float
    floor: float
    floor_of: str
    rivals: Mapping[str, float]

    @classmethod
    def of(cls, what: str, here: Run, floor: tuple[str, Run | Told], rivals: Mapping[str, Run], repeat: int) -> "Row":
        """Measure all in turns, the floor, too: the speed of a shared machine changes from one minute to the next."""
        own, bound = "here", "floor"
        taken = medians({own: here, **rivals, bound: floor[1]}, repeat)
        return cls(what, taken[own], taken[bound], floor[0], {name: taken[name] for name in rivals})

    @property
    def times_floor(self) -> float:
        """How near to the limit: 1 is the limit."""
        return self.here / self.floor


def table(rows: Iterable[Row]) -> str:
    """In Markdown, the distance to the floor first."""
    lines = [
        "| | here / floor | here, CPU ms | floor, CPU ms | its floor is | in turns with it, CPU ms (ratio) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        rivals = "; ".join(f"{name}: {1e3 * taken:.3g} ({taken / row.here:.1f}x)" for name, taken in row.rivals.items())
        cells = (row.what, f"**{row.times_floor:.2f}**", f"{1e3 * row.here:.3g}", f"{1e3 * row.floor:.3g}", row.floor_of, rivals)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
