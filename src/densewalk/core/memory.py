"""Pages of memory, and lack of memory, both free of torch.

Of a lack, the job sees it, its log says it, and the workflow reads it there to give the next attempt more.
"""

import ctypes
import os
import re
import signal
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from densewalk.core.text.attempts import latest_attempt

# a variable with which a process must start, for glibc 2.35 and later: arrays in pages of 2 MiB, where Linux gives them to who asks; and
# what a step of a training has freed at the end of the heap stays there for the next one, which else gets it again as pages of zeros
HUGE_PAGES = (
    "GLIBC_TUNABLES",
    "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=1073741824",
)

KILLED = "killed for lack of memory"
# ours; Python's and torch's own errors; the kernel's as Slurm reports it, and Slurm's own limit. A GPU's "out of memory" is none of them
_WORDS = re.compile(
    KILLED + r"|\bMemoryError\b|[Cc]an(?:'t|not) allocate memory|oom[_-]kill|OOM Killed|[Ee]xceeded (?:job |step )?memory limit"
)
_TAIL = 2**16  # bytes of a log that are read
_PARENT_ENDS = signal.SIGRTMIN
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def kills() -> int | None:
    """Processes that the kernel has killed for lack of memory: of this one's control group, else of the machine; None if not told."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers == "":
                files = [f"/sys/fs/cgroup{group}/memory.events", f"/sys/fs/cgroup/unified{group}/memory.events"]
            elif controllers == "memory":
                files = [f"/sys/fs/cgroup/memory{group}/memory.oom_control"]
            else:
                continue
            for file in files:
                if (count := _count(Path(file))) is not None:
                    return count
    return _count(Path("/proc/vmstat"))


def _count(file: Path) -> int | None:
    """The line `oom_kill N` of a file."""
    with suppress(OSError):
        for line in file.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return None


@contextmanager
def watched(count: Callable[[], int | None] = kills) -> Iterator[Callable[[], None]]:
    """Say so in the log if lack of memory ends this process or one of its children.

    A killed process cannot speak, so a small one beside it waits for its end. Call what the block is given where the end has another
    reason: a success, a signal, a wrong input.
    """
    before = count()
    if before is None:
        yield lambda: None
        return
    reading, writing = os.pipe()
    parent = os.getpid()
    if os.fork() == 0:
        _outlive(parent, reading, lambda: (count() or 0) > before)
    os.close(reading)
    yield lambda: _tell(writing)


def _tell(pipe: int) -> None:
    with suppress(OSError):  # who should hear it was killed
        os.write(pipe, b"x")


def _outlive(parent: int, reading: int, memory_was_short: Callable[[], bool]) -> NoReturn:
    """Wait for the parent's end, and say what ended it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {_PARENT_ENDS})
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(_PARENT_ENDS))
    if os.getppid() == parent:
        signal.sigwait({_PARENT_ENDS})
    os.set_blocking(reading, False)
    try:
        explained = os.read(reading, 1)
    except BlockingIOError:  # data-loading processes still hold its other end
        explained = b""
    if not explained and memory_was_short():
        os.write(2, f"error: {KILLED}: this process or one of its children; to do: ask for more (mem_mb)\n".encode())
    os._exit(0)


def tells_of_it(log: Path) -> bool:
    """True if the end of a log says that memory was short in its latest attempt."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return False
    return _WORDS.search(latest_attempt(text)) is not None


class MemoryOfJobs:
    """Megabytes that the attempts of jobs ask for: twice as many after each that ended for lack of memory, and only after these."""

    def __init__(self) -> None:
        self._failed: dict[str, set[int]] = defaultdict(set)  # job -> attempts that did
        self._read: dict[str, set[int]] = defaultdict(set)  # job -> attempts whose logs were read
        self._told: dict[str, set[int]] = defaultdict(set)  # job -> attempts that were asked about
        self._known: set[tuple[Path, int]] = set()  # logs that were read, and their times: an attempt that never began left none
        self._more: dict[str, list[Path]] = defaultdict(list)  # job -> logs that it shares with others

    def add_log(self, job: str, log: Path) -> None:
        """Have another log read as well, when the next attempt of a job is asked about: one that it shares with other jobs."""
        self._more[job].append(log)

    def asked(self, job: str, attempt: int, megabytes: int, logs: Callable[[], Iterable[Path]], most: int | None = None) -> int:
        """Megabytes for an attempt of a job.

        Args:
            attempt: from 1. megabytes: of the first one. logs: of the attempt before; it is called once, before this attempt writes there.
            most: what a node has.
        """
        if attempt > 1 and attempt - 1 not in self._read[job]:
            self._read[job].add(attempt - 1)
            new = {(log, log.stat().st_mtime_ns) for log in [*logs(), *self._more[job]] if log.is_file()} - self._known
            self._known |= new
            if any(tells_of_it(log) for log, _ in new):
                self._failed[job].add(attempt - 1)
        grown = megabytes * 2 ** len([failed for failed in self._failed[job] if failed < attempt])
        return grown if most is None else min(grown, most)

    def grew_at(self, job: str, attempt: int) -> bool:
        """True the first time that an attempt is asked about whose predecessor ended for lack of memory."""
        new = attempt - 1 in self._failed[job] and attempt not in self._told[job]
        self._told[job].add(attempt)
        return new
