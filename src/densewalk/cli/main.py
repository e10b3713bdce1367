"""Run one command of the command line in this process."""

import argparse
import logging
import os
import signal
import sys
from contextlib import nullcontext

from densewalk.cli.parser import parse
from densewalk.cli.profiling import profiled
from densewalk.core import memory
from densewalk.core.errors import RESUME, Interrupted, TrainingError, UserError
from densewalk.core.machine import machine_fault
from densewalk.core.progress import log, start_logging
from densewalk.core.text.attempts import begin_attempt, end_attempt


def main(argv: list[str] | None = None) -> int:
    """Run one command; what stops it becomes one line and an exit status (core/errors.py)."""
    start_logging()
    logging.raiseExceptions = False  # a line that the full disk of a log file does not take is no error of the job
    args = parse(sys.argv[1:] if argv is None else argv)
    first = "WORLD_SIZE" not in os.environ  # of a job's processes
    if first and args.is_job:
        begin_attempt()
    watched = memory.watched() if args.is_job and first else nullcontext(lambda: None)
    with watched as ends_for_another_reason:
        with profiled(getattr(args, "out", None) if args.is_job else None):
            status = run(args)
        ends_for_another_reason()
    if first and args.is_job and status == 0:
        end_attempt()
    return status


def run(args: argparse.Namespace) -> int:
    """Run the parsed command."""
    try:
        return args.command(args) or 0
    except (UserError, TrainingError, Interrupted) as error:
        log.error("%s%s", "" if isinstance(error, Interrupted) else "error: ", error)
        return error.exit_status
    except KeyboardInterrupt:  # Ctrl-C in a job that keeps no state
        log.error("%s", RESUME)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of what is printed has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        fault = machine_fault(error)
        if fault is None:
            raise
        log.error("error: %s", fault)
        return fault.exit_status
