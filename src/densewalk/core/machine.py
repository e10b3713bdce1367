"""Faults of the machine as one clear line: full or read-only disks, files in the place of folders, too few descriptors, no shared memory.

    fault = machine_fault(error)            # None: it is something else

Libraries report the system's errors in words of their own (RuntimeError, SafetensorError); they are recognized by the system's text.
"""

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.core.progress import log

ROOM = "make room and start again: what was written before is kept"
WRITABLE = "make it writable, or choose another folder, and start again"
MOVE = "move it away and start again"
DESCRIPTORS = "raise the limit of open files (ulimit -n 4096), or set execution.workers to 0"
SHARED = "give the machine more shared memory (/dev/shm), or set execution.workers to 0"
TODO = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), ROOM),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), WRITABLE),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), DESCRIPTORS),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY), MOVE),
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.ENXIO, errno.ENODEV), "look after the disk and start again"),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP), "choose another path"),
}
# what libraries say of the system's errors: `[Errno 28] ...: 'file'`, `(os error 28)`, `... Too many open files (24)`
NUMBER = re.compile(r"\[Errno (\d+)\][^:\n]*(?::\s*'([^'\n]+)')?|\(?os error (\d+)\)?|code: (\d+), kind")
TEXTS = {os.strerror(number): number for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE)}
SHARED_MEMORY = re.compile(
    r"unable to open shared memory|Bus error|insufficient shared memory|out of shared memory|received 0 items of ancdata"
)
SMALL_SHARED = 64 * 2**20  # bytes: what containers give where nobody asks for more


def machine_fault(error: BaseException, writing: Path | None = None) -> UserError | None:
    """The fault of the machine behind an error, or None.

    Args:
        writing: the file that was being written, which the system knows by the name of a temporary one.
    """
    for one in _chain(error):
        number, path = _number(one)
        if number in TODO:
            unnamed = path is None or (writing is not None and Path(path).name.startswith(f".{writing.name}."))
            found = f"{writing} cannot be written: {os.strerror(number)}" if writing and unnamed else describe(number, path)
            return UserError(found, todo=TODO[number])
        if isinstance(one, RuntimeError | OSError) and SHARED_MEMORY.search(str(one)):
            return UserError(f"processes that load data cannot share memory: {str(one).strip().splitlines()[-1]}", todo=SHARED)
    return None


def describe(number: int, path: str | None) -> str:
    """A sentence on what the system refuses; of a file in a folder's place, which file it is."""
    if path is None:
        return os.strerror(number)
    if number in (errno.ENOTDIR, errno.EEXIST) and (file := file_in_the_way(Path(path))):
        return f"{file} is a file where a folder should be"
    return f"{path}: {os.strerror(number)}"


def file_in_the_way(path: Path) -> Path | None:
    """The first part of a folder's path that exists and is no folder."""
    for part in [*reversed(path.parents), path]:
        if os.path.lexists(part) and not part.is_dir():
            return part
    return None


def require_place(folder: Path, results: Path) -> None:
    """Make sure that a study's folder can be written, and that no file is where its results belong.

    Raises:
        UserError: it cannot, or there is one.
    """
    if file := file_in_the_way(results):
        raise UserError(f"{file} is a file where a folder should be", todo=MOVE)
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder.resolve()} cannot be written", todo=WRITABLE)


def is_full(folder: Path) -> bool:
    """True if the disk has no room: some libraries do not say why they could not write."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return False
    return status.f_bavail * status.f_frsize < 2**20 or (status.f_files > 0 and status.f_favail == 0)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__


def _number(error: BaseException) -> tuple[int, str | None]:
    """The system's number of an error, 0 for none, and the file that it is about."""
    if isinstance(error, OSError) and error.errno in TODO:
        return error.errno, None if error.filename is None else os.fsdecode(error.filename)
    if not isinstance(error, OSError | RuntimeError) and type(error).__name__ != "SafetensorError":
        return 0, None
    text = str(error)
    for found in NUMBER.finditer(text):
        number = int(next(group for group in (found[1], found[3], found[4]) if group))
        if number in TODO:
            return number, found[2]
    return next((number for message, number in TEXTS.items() if message in text), 0), None


def usable_workers(wanted: int) -> int:
    """How many processes can load data: none where there is no shared memory to hand batches over."""
    if not wanted:
        return 0
    folder = Path("/dev/shm")
    try:
        with tempfile.TemporaryFile(dir=folder):
            free = os.statvfs(folder)
    except OSError as error:
        log.warning("%s cannot be used (%s): data are loaded by the process itself, as with execution.workers: 0", folder, error.strerror)
        return 0
    if free.f_bavail * free.f_frsize < SMALL_SHARED // 4:
        log.warning("%s has less than %d MiB left: data are loaded by the process itself", folder, SMALL_SHARED // 4 // 2**20)
        return 0
    return wanted
