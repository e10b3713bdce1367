"""Times of rivals in one process, in turns: a busy machine is equally unfair to all.

seconds = in_turns({"plain": plain, "ours": ours}, repeat=5)          # CPU seconds of each run
median(seconds["ours"])
"""

import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any

__all__ = ["in_turns", "median", "medians"]


def in_turns(rivals: Mapping[str, Callable[[], Any]], repeat: int) -> dict[str, list[float]]:
    """CPU seconds of this process for each run of each rival, one run of each after the other; a first one of each is not counted."""
    for run in rivals.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    for _ in range(repeat):
        for name, run in rivals.items():
            begun = time.process_time()
            run()
            seconds[name].append(time.process_time() - begun)
    return seconds


def medians(rivals: Mapping[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """The median of each rival's CPU seconds, in turns."""
    return {name: median(seconds) for name, seconds in in_turns(rivals, repeat).items()}
