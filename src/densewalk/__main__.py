"""The command line: `python -m densewalk`, or the command `densewalk`."""

import argparse
import errno
import os
import sys
from contextlib import nullcontext

from densewalk.cli.parser import parser
from densewalk.core import memory
from densewalk.core.errors import Interrupted, TrainingError, UserError
from densewalk.core.progress import log, start_logging


def main(argv: list[str] | None = None) -> int:
    """Run one command; what stops it becomes one line and an exit status (core/errors.py)."""
    start_logging()
    args = parser().parse_args(argv)
    # of a job's processes, the first one watches
    watched = memory.watched() if args.is_job and "WORLD_SIZE" not in os.environ else nullcontext(lambda: None)
    with watched as ends_for_another_reason:
        status = run(args)
        ends_for_another_reason()
    return status


def run(args: argparse.Namespace) -> int:
    """Run the parsed command."""
    try:
        return args.command(args) or 0
    except (UserError, TrainingError, Interrupted) as error:
        log.error("%s%s", "" if isinstance(error, Interrupted) else "error: ", error)
        return error.exit_status
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        log.error("error: %s cannot be written: %s; to do: make room and start again", error.filename or "a file", error.strerror)
        return UserError.exit_status


if __name__ == "__main__":
    sys.exit(main())
