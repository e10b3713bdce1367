"""What a job's command and the fork server say to each other, over a socket of this machine. Only Python's own modules.

    command -> server    descriptors 0, 1 and 2 with b"d"; a message: the request
    server -> command    a message: {}, or {"refused": why}, and the command runs by itself
    command -> job       START, and then a byte for each signal: its number
    job -> command       a message: {"status": how it has ended}, negative for a signal

A message is its length in 8 bytes, and JSON.
"""

import json
import os
import signal
import socket
import struct
import sys
from typing import Any

ADDRESS = "DENSEWALK_FORK_SERVER"  # in the environment of jobs: where the server is; "off": there is none
OFF = "off"
SERVED = ("train", "evaluate", "features", "curate", "tables", "report")  # commands that import much
LATER = "--later"  # among the server's modules: those after it are imported between jobs
GPUS = ("/dev/nvidia", "/dev/kfd", "/dev/dxg")  # with what the names of their files begin
START = b"\0"
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Snakemake sets each of these to the threads of the job
_LIBRARIES = ("OMP_NUM", "GOTO_NUM", "OPENBLAS_NUM", "MKL_NUM", "VECLIB_MAXIMUM", "NUMEXPR_NUM")
THREADS = tuple(f"{library}_THREADS" for library in _LIBRARIES)
# Snakemake sets each of these to the resource tmpdir, for most jobs; a job takes over its own
FOLDERS = ("TMPDIR", "TMP", "TEMPDIR", "TEMP")
# of the environment, what may differ between server and job: no import depends on it
MAY_DIFFER = frozenset([ADDRESS, "PATH", "PWD", "OLDPWD", "SHLVL", "_", *THREADS, *FOLDERS])


def socket_name(address: str) -> bytes:
    """A name in the kernel's own list (unix(7), "abstract"), not a file: nothing is left of it, however its process ends."""
    return b"\0densewalk-" + address.encode()


def is_own(connection: socket.socket) -> bool:
    """True if the process at the other end is the same user's."""
    size = struct.calcsize("3i")
    _, user, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return bool(user == os.getuid())


def send(connection: socket.socket, message: dict[str, Any]) -> None:
    """Send a message."""
    text = json.dumps(message).encode()
    connection.sendall(struct.pack("!Q", len(text)) + text)


def receive(connection: socket.socket) -> dict[str, Any]:
    """The next message.

    Raises:
        EOFError: the other end has closed.
    """
    (length,) = struct.unpack("!Q", _exactly(connection, 8))
    message: dict[str, Any] = json.loads(_exactly(connection, length))
    return message


def _exactly(connection: socket.socket, length: int) -> bytes:
    found = bytearray()
    while len(found) < length:
        part = connection.recv(length - len(found))
        if not part:
            raise EOFError
        found += part
    return bytes(found)


def surroundings() -> dict[str, Any]:
    """By name, what a process got when it started and cannot be given later; a job's must be the server's."""
    return {
        "Python": [os.path.realpath(sys.executable), sys.version, sys.prefix, sys.flags.optimize, sys.flags.utf8_mode],
        "the folder of densewalk": os.path.dirname(os.path.realpath(__file__)),
        "the user": [os.getuid(), os.geteuid(), os.getgid(), sorted(os.getgroups())],
        "the container": [os.readlink(f"/proc/self/ns/{kind}") for kind in ("mnt", "pid", "net")],
        "the control group": _text("/proc/self/cgroup"),
        "a limit": _text("/proc/self/limits"),
        "the CPUs": sorted(os.sched_getaffinity(0)),
        "the priority": os.getpriority(os.PRIO_PROCESS, 0),
    }


def _text(file: str) -> str:
    with open(file, encoding="utf-8") as opened:
        return opened.read()
