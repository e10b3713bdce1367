"""Write files whole or not at all; read and write JSON; remove what dead processes have left half written."""

import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from densewalk.core.errors import Interrupted, TrainingError, UserError
from densewalk.core.machine import ROOM, is_full, machine_fault
from densewalk.core.progress import log

# .{name}.{host}.{process}.tmp{suffix}: of a file or folder that is being written
TEMPORARY = re.compile(r"^\..+?\.(?:(?P<host>[^.]+)\.)?(?P<pid>\d+)\.tmp")
ABANDONED = 3600.0  # seconds without a change after which what another machine was writing is given up
_swept: set[Path] = set()


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Give a temporary file that replaces `path` if the block succeeds, and is removed if not.

    The folder is created here: a workflow may have removed an empty one meanwhile. What dead processes have left in it is removed.

    Raises:
        UserError: the disk is full or read-only, or a file lies where a folder should be; `path` is as it was.
    """
    path = Path(path)
    temporary = path.with_name(temporary_name(path.name) + path.suffix)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)  # can only be read by setting it
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # some writers make files that nobody else can read
        os.replace(temporary, path)
    except (UserError, TrainingError, Interrupted):
        raise
    except Exception as error:
        if fault := _writing_fault(error, path):
            raise fault from error
        raise
    finally:
        with suppress(OSError):  # a disk that is read-only by now
            temporary.unlink(missing_ok=True)


def _writing_fault(error: Exception, path: Path) -> UserError | None:
    """The machine's fault behind an error while `path` is written; None if it is another error."""
    if fault := machine_fault(error, path):
        return fault
    known = isinstance(error, OSError | RuntimeError) or type(error).__name__ == "SafetensorError"
    return UserError(f"{path} cannot be written: the disk is full", todo=ROOM) if known and is_full(path.parent) else None


def temporary_name(name: str) -> str:
    """A hidden name that says which process is writing `name`, so that `sweep` knows when it has died."""
    return f".{name}.{_host()}.{os.getpid()}.tmp"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "-", os.uname().nodename) or "unknown"


def sweep(folder: Path) -> None:
    """Remove what dead processes have left half written in a folder, once for each process and folder."""
    folder = folder.absolute()
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in list(entries):
            if entry.name.startswith(".") and (found := TEMPORARY.match(entry.name)):
                _remove_abandoned(Path(entry.path), found["host"], int(found["pid"]))


def _remove_abandoned(path: Path, host: str | None, pid: int) -> None:
    """Remove a temporary file or folder whose process has died."""
    with suppress(OSError):
        status = path.lstat()
        alive = is_alive(pid, status.st_mtime) if host == _host() else time.time() - status.st_mtime < ABANDONED
        if alive:
            return
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
        log.info("removed %s, which a process that has died left half written (%.1f MiB)", path, status.st_size / 2**20)


def is_alive(pid: int, written: float) -> bool:
    """True if the process exists and began before `written` (seconds since 1970): numbers are given again, often in containers."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # another user's
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        up = float(Path("/proc/uptime").read_text().split()[0])
    except OSError:
        return True
    begun = time.time() - up + int(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5), counted from the third
    return begun <= written + 2


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically; NaN is refused because it is not JSON."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def parse_json(text: str) -> Any:
    """Parse JSON; ValueError if it is none, or has a key twice, of which Python would take the last in silence."""
    return json.loads(text, object_pairs_hook=_unique)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def read_json(path: str | Path) -> Any:
    """Read a JSON file; UserError if it does not exist, cannot be read, or is not JSON."""
    try:
        return parse_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", todo="correct it, or remove it so that it is made again") from error
    except ValueError as error:  # also for bytes that are not text
        raise UserError(f"{path} is not JSON: {error}", todo="delete it, so that it is made again") from error
    except RecursionError as error:
        raise UserError(f"{path} is not JSON of ours: it is nested too deeply", todo="delete it, so that it is made again") from error
