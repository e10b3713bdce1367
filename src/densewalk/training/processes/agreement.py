"""The processes of a training agree on the checkpoint that they go on from."""

import logging
from collections.abc import Callable
from pathlib import Path

from densewalk.core import distributed
from densewalk.core.errors import UserError

log = logging.getLogger("densewalk")


def newest_common_step(newest: Callable[[int | None], int | None], folder: Path) -> int | None:
    """Step of the newest checkpoint that all processes can read; None if no process can read any.

        most = None
        until all processes found the same step:
            most = min(newest(most) over the processes)

    Args:
        newest: this process's newest readable step that is not above the given one (None: of all); None if there is none.
        folder: for messages.

    Raises:
        UserError: in all processes, if some can read checkpoints, but there is none that all can.
    """
    distributed.all_objects(None)  # process 0 has removed from the folder what is stale before the others look
    first = found = distributed.all_objects(newest(None))
    while len({*found}) > 1:
        if None in found:
            steps = ", ".join(f"process {n} {'none' if step is None else f'step {step}'}" for n, step in enumerate(first))
            todo = "see that all nodes see the same files there, or delete the folder to start from the beginning"
            raise UserError(f"{folder} has no checkpoint that all processes can read; the newest: {steps}", todo=todo)
        found = distributed.all_objects(newest(min(found)))
    if len({*first}) > 1:
        log.warning("not all processes can read the newest checkpoint: all go on from step %s", found[0])
    step: int | None = found[0]
    return step
