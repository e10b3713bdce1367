"""Make a process that was forked from the server what the job's command would be, had it started by itself."""

import atexit
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NoReturn

from densewalk.cli.forkserver.protocol import MAY_DIFFER, THREADS, surroundings


def refusal(request: dict[str, Any], stamps: tuple[Any, Any], given: Mapping[str, str]) -> str | None:
    """Why a job must not run in a process of this server, if so.

    Args:
        stamps: of the code as it was before the server imported it, and as it is now. given: environment with which the server has started.
    """
    if stamps[0] != stamps[1]:
        return "the code or a package was changed after the fork server had started"
    if differing := [name for name, value in surroundings().items() if request["surroundings"].get(name) != value]:
        return f"{differing[0]} of the job is not that of the fork server"
    environment = request["environment"]
    names = {*environment, *given} - MAY_DIFFER
    if differing := sorted(name for name in names if environment.get(name) != given.get(name)):
        return f"the variable {differing[0]} of the job is not that of the fork server"
    if len({environment.get(name) for name in THREADS}) > 1 or not str(environment.get(THREADS[0])).isdecimal():
        return f"{', '.join(THREADS)} do not all say the same number"
    return None


def become(request: dict[str, Any], descriptors: list[int], given: Mapping[str, str]) -> None:
    """Take over descriptors, folder, environment, arguments, signals, umask and threads of the job's command.

    given: environment with which the server has started; what imports have changed in it since then, they would have changed in the job's.
    """
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    os.umask(request["umask"])
    os.chdir(request["cwd"])
    changed = {name: value for name, value in os.environ.items() if given.get(name) != value}
    os.environ.clear()
    os.environ.update(request["environment"] | changed)
    sys.argv[:], sys.path[:] = request["argv"], request["path"]
    tempfile.tempdir = None  # it is asked again
    _reset_random_numbers()
    _set_threads(int(os.environ[THREADS[0]]))
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if number in request["ignored"] else usual)
    signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])


def run_to_end(command: Callable[[], int]) -> NoReturn:
    """Run a command and end this process with its status, as Python would, but for taking its objects apart.

    That would copy all pages that the process shares with the server, and takes 1.2 s of CPU.
    """
    try:
        status: Any = command()
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    if status is None or isinstance(status, str):
        print(status or "", end="\n" if status else "", file=sys.stderr)
        status = int(bool(status))
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in sys.stdout, sys.stderr:
        with suppress(OSError):  # its reader has gone
            stream.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status & 0xFF)


def _reset_random_numbers() -> None:
    """Seed the global generators from the system, as each start of a process does; the fork itself seeds Python's."""
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()
    if torch := sys.modules.get("torch"):
        torch.default_generator.seed()


def _set_threads(threads: int) -> None:
    """Give libraries, which were loaded with one thread, those that they would have read from the environment."""
    if threads == 1:
        return
    from threadpoolctl import ThreadpoolController

    ThreadpoolController().limit(limits=threads)
