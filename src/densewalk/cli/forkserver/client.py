"""The command of a job, whose work a process of the fork server does. Only Python's own modules: it starts in 0.03 CPU-s.

The command waits, passes signals on, and ends as the job does. If it is killed, the job is.
"""

import os
import resource
import signal
import socket
import sys
from contextlib import suppress
from typing import Any, NoReturn

from densewalk.cli.forkserver.protocol import ADDRESS, FORWARDED, OFF, SERVED, START, is_own, receive, send, socket_name, surroundings
from densewalk.core.errors import RESUME

PATIENCE = 300.0  # seconds for the server to have imported what all jobs need


def run_by_server() -> int | None:
    """Let the server run this process's command; its exit status, or None if the command shall run here."""
    address = os.environ.get(ADDRESS, OFF)
    if address == OFF or sys.argv[1:2] == [] or sys.argv[1] not in SERVED or "WORLD_SIZE" in os.environ:
        return None
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.settimeout(PATIENCE)
            connection.connect(socket_name(address))
            refused = _ask(connection)
        except KeyboardInterrupt:
            _say(RESUME)
            return 128 + signal.SIGINT
        except (OSError, EOFError) as error:
            refused = f"the fork server does not answer ({error or 'it has ended'})"
        if refused is not None:
            _say(f"this job imports what it needs by itself: {refused}")
            return None
        return _follow(connection)


def _ask(connection: socket.socket) -> str | None:
    """Send the request; why it is refused, if it is."""
    if not is_own(connection):
        return "the fork server is another user's"
    socket.send_fds(connection, [b"d"], [0, 1, 2])
    send(connection, request())
    refused: str | None = receive(connection).get("refused")
    return refused


def request() -> dict[str, Any]:
    """All that makes a process which runs this command."""
    mask = os.umask(0)
    os.umask(mask)
    return {
        "argv": sys.argv,
        "path": sys.path,
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "umask": mask,
        "ignored": [int(number) for number in signal.valid_signals() if signal.getsignal(number) is signal.SIG_IGN],
        "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
        "surroundings": surroundings(),
    }


def _follow(connection: socket.socket) -> int:
    """Start the job, pass signals on to it, and return its status; end by the signal that has ended it."""

    def forward(number: int, _frame: object) -> None:
        with suppress(OSError):  # it has ended meanwhile
            connection.sendall(bytes([number]))

    def stop(_number: int, frame: object) -> None:  # Ctrl-Z, and `fg` after it
        forward(signal.SIGSTOP, frame)
        os.kill(os.getpid(), signal.SIGSTOP)
        forward(signal.SIGCONT, frame)

    connection.settimeout(None)
    for number in FORWARDED:
        signal.signal(number, forward)
    signal.signal(signal.SIGTSTP, stop)
    connection.sendall(START)
    try:
        status: int = receive(connection)["status"]
    except (OSError, EOFError):  # its process of the server was killed, and the job with it
        status = -signal.SIGKILL
    if status < 0:
        _end_by(-status)
    return status


def _end_by(number: int) -> NoReturn:
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if number not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    raise AssertionError(f"signal {number} does not end a process")


def _say(text: str) -> None:
    """Into the job's log, as its other lines."""
    import time

    sys.stderr.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
