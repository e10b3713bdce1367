"""The process that has imported what jobs need, and forks a process for each.

    python -P -m densewalk.cli.forkserver.server SOCKET MODULE ... --later MODULE ...

start.py starts it. Its standard input is a pipe from the driver of the workflow, and ends with it, however that ends.
For each request the server forks a keeper, and that the job. The keeper passes signals on and tells the command how the job has ended.
So the server may end, or be killed, while jobs run; and a job ends with its command. There is never more than one thread here: a lock
that another thread holds during a fork would stay locked in the job for ever.
"""

import ctypes
import gc
import importlib
import os
import select
import signal
import socket
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from densewalk.cli.collection import collect_seldom
from densewalk.cli.forkserver import job
from densewalk.cli.forkserver.protocol import GPUS, LATER, START, is_own, receive, send

DRIVER = 0  # the standard input
PATIENCE = 60.0  # seconds for a command to say what it asks for
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_PACKAGE = Path(__file__).resolve().parents[2]

Asked = tuple[dict[str, Any], list[int]]  # a request, and the descriptors that came with it


@dataclass(frozen=True)
class Start:
    """How the server has begun, before it imported anything: its environment, and the stamp of the code."""

    environment: dict[str, str]
    code: list[tuple[str, int, int]]


def main(arguments: Sequence[str]) -> int:
    """Serve until the driver ends; a job's process runs the job and ends here."""
    descriptor, *modules = arguments
    first, later = modules[: modules.index(LATER)], modules[modules.index(LATER) + 1 :]
    start = Start(dict(os.environ), code_stamp())
    collect_seldom()
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(descriptor)) as listener:
        import_base()
        for module in first:
            import_if_there(module)
        asked = serve(listener, later, start)
    if asked is not None:
        from densewalk.cli.main import main as run

        job.become(*asked, start.environment)
        job.run_to_end(run)
    return 0


def import_base() -> None:
    """Import what all jobs need: settings before torch, for pydantic's sake, and torch without its compiler."""
    import densewalk.cli.main
    import densewalk.study.specs
    from densewalk.ops.cpu.imports import import_without_compiler
    from densewalk.study import registry

    registry.methods()
    registry.evaluations()
    import_without_compiler()
    import densewalk.data.storage.staging
    import densewalk.jobs.evaluate
    import densewalk.jobs.train
    import densewalk.training.launch  # noqa: F401


def import_if_there(module: str) -> None:
    """Import a module; a job that needs one which cannot be imported says so itself."""
    with suppress(ImportError):
        importlib.import_module(module)


def serve(listener: socket.socket, modules: Iterable[str], start: Start) -> Asked | None:
    """Fork for each request, and between them import the other modules one by one.

    Returns:
        In a job's process what was asked for; in the server None, when the driver has ended.
    """
    left, children = iter(modules), _child_ends()
    module: str | None = next(left, None)
    while True:
        ready: list[int] = select.select([DRIVER, listener.fileno(), children.fileno()], [], [], None if module is None else 0)[0]
        if DRIVER in ready:
            return None
        if children.fileno() in ready:
            _reap(children)
        if listener.fileno() in ready:
            connection, _ = listener.accept()
            if (asked := _fork(connection, (listener, children), start)) is not None:
                return asked
        elif module is not None:
            import_if_there(module)
            module = next(left, None)


def _fork(connection: socket.socket, own: Iterable[socket.socket], start: Start) -> Asked | None:
    """Fork a keeper for a connection.

    Args:
        own: sockets that are the server's alone.

    Returns:
        In the job's process what was asked for; in the server None. The keeper ends here.
    """
    with connection:
        obstacle = _obstacle()
        gc.freeze()  # so that no collection in a job touches, and thereby copies, what was here before
        if os.fork():
            return None
        _close(own)
        status = 0
        try:
            asked = _keep(connection, start, obstacle)
            if asked is not None:
                return asked
        except (OSError, EOFError):  # the command has gone
            status = 1
        except BaseException:
            sys.excepthook(*sys.exc_info())
            status = 1
    os._exit(status)


def _obstacle() -> str | None:
    """What forbids to fork now: threads, or a GPU that this process has touched."""
    if len(os.listdir("/proc/self/task")) > 1:
        return "an import has started a thread in the fork server"
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the list itself
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith(GPUS):
                return "an import has opened a GPU in the fork server"
    return None


# -- a keeper ----------------------------------------------------------------------------------------------------------


def _keep(connection: socket.socket, start: Start, obstacle: str | None) -> Asked | None:
    """Answer a request, fork the job and stay with it to its end. Returns only in the job's process."""
    connection.settimeout(PATIENCE)
    if not is_own(connection):
        return None
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    request = receive(connection)
    refused = obstacle or job.refusal(request, (start.code, code_stamp()), start.environment)
    send(connection, {"refused": refused} if refused else {})
    if refused or connection.recv(1) != START:
        return None
    connection.settimeout(None)
    children, keeper = _child_ends(), os.getpid()
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        _close([children])
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != keeper:
            os._exit(1)
        return request, descriptors
    with suppress(OSError):  # it has done so itself, and perhaps ended
        os.setpgid(child, child)
    for descriptor in descriptors:
        os.close(descriptor)
    send(connection, {"status": _wait(child, connection, children)})
    return None


def _wait(child: int, connection: socket.socket, children: socket.socket) -> int:
    """Pass signals on until the job has ended; how it has. It is killed with all that it has started if its command is gone."""
    while True:
        ready, _, _ = select.select([connection, children], [], [])
        if children in ready:
            children.recv(4096)
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
        if connection in ready:
            numbers = connection.recv(64)
            for number in numbers:
                os.kill(child, number)
            if not numbers:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                raise EOFError


def _child_ends() -> socket.socket:
    """A socket that can be read whenever a child has ended."""
    reading, writing = socket.socketpair()
    for one in reading, writing:
        one.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(writing.detach(), warn_on_full_buffer=False)
    return reading


def _close(sockets: Iterable[socket.socket]) -> None:
    """Close what a forked process has of its parent's, among it the other end of `_child_ends`."""
    os.close(signal.set_wakeup_fd(-1))
    for one in sockets:
        one.close()


def _reap(children: socket.socket) -> None:
    children.recv(4096)
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


# -- code ----------------------------------------------------------------------------------------------------------------


def code_stamp() -> list[tuple[str, int, int]]:
    """Names, times and sizes of this package's files; times of the folders that packages are installed into."""
    stamps = [(folder, os.stat(folder).st_mtime_ns, 0) for folder in sys.path if folder.endswith("-packages") and os.path.isdir(folder)]
    for folder, folders, names in os.walk(_PACKAGE):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(names):
            found = os.stat(os.path.join(folder, name))
            stamps.append((os.path.join(folder, name), found.st_mtime_ns, found.st_size))
    return stamps


def _main() -> NoReturn:
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    _main()
