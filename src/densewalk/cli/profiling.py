"""Where the CPU time of a job goes: Python's profile of it in a file, if `DENSEWALK_PROFILE` names a folder."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "DENSEWALK_PROFILE"


@contextmanager
def profiled(output: Path | None) -> Iterator[None]:
    """Write the profile of what runs inside to the folder that the environment names, as a file for pstats; without one, do nothing.

    Times are CPU seconds of this process with its threads. Processes that load data are not in it. A profiled job takes a little longer.

    Args:
        output: what the job makes; its path is the name of the file, with `-` between the parts, and the rank after it if several processes
            learn. None: the job is not profiled.
    """
    folder = os.environ.get(VARIABLE)
    if not folder or output is None:
        yield
        return
    import cProfile
    from time import process_time

    profile = cProfile.Profile(process_time)
    profile.enable()
    try:
        yield
    finally:
        profile.disable()
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = "-".join(part for part in output.parts if part not in ("/", ".."))
        rank = os.environ.get("RANK")
        profile.dump_stats(Path(folder) / (f"{name}.prof" if rank is None else f"{name}-rank{rank}.prof"))
