"""Copies of large files on a node's own disk, made once per node (`execution.stage`). Free of torch.

    with staging("$TMPDIR"):                    # expanded here, in the job
        path = local_copy("data/coco/train2017.tar")        # the copy, or the path itself where none can be made

    STAGE/densewalk-{user id}/{key}.lock        held alone by the process that copies, shared by those that read
    STAGE/densewalk-{user id}/{key}/{name}      appears whole; the key is of path, size and time, so that another file gets another one

Where a copy cannot be made, one line in the log says why, and the file is read where it lies: that changes the speed, no number.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write

log = logging.getLogger("densewalk")
STAGE = "DENSEWALK_STAGE"  # of a job and the processes that it starts: the folder, expanded
PIECE = 2**24  # bytes
SPARE = 2**28  # bytes that a copy leaves free
REPORT = 30.0  # seconds between two lines
_COPIES: dict[str, tuple[Path, int]] = {}  # path -> copy, and the lock that keeps it; the path itself and -1 where there is none


class _NoCopyError(Exception):
    """A copy cannot be made; the message says why."""


@contextmanager
def staging(stage: str | None) -> Iterator[None]:
    """Let `local_copy` copy to this folder, in this process and those that it starts.

    Args:
        stage: `execution.stage`; its variables are expanded. None copies nothing.
    """
    folder = expand(stage) if stage else None
    before = os.environ.get(STAGE)
    if folder is None:
        os.environ.pop(STAGE, None)
    else:
        os.environ[STAGE] = folder
    try:
        yield
    finally:
        os.environ.pop(STAGE, None)
        if before is not None:
            os.environ[STAGE] = before
        release()


def expand(stage: str) -> str | None:
    """The folder with the values of its variables; None, and a line, if there is no such folder on this node."""
    folder = os.path.expandvars(stage)
    if "$" in folder:
        reason = "the variable is not set"
    elif not os.path.isabs(folder):
        reason = f"{folder!r} is no absolute path"
    elif not os.path.isdir(folder):
        reason = f"{folder} is no folder"
    else:
        return folder
    log.warning("execution.stage: %s: %s on %s; data are read where they lie", stage, reason, os.uname().nodename)
    return None


def local_copy(path: str | Path, sha256: str | None = None) -> Path:
    """The copy of a file on this node's disk, made if there is none yet; the file itself where nothing is staged or no copy can be made.

    Args:
        sha256: of the content, where it is known.

    Raises:
        UserError: the file has another content.
    """
    folder, path = os.environ.get(STAGE), Path(path)
    if folder is None:
        return path
    name = os.path.realpath(path)
    if name not in _COPIES or not _COPIES[name][0].is_file():
        try:
            _COPIES[name] = _find_or_copy(Path(folder), Path(name), sha256)
        except (_NoCopyError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            log.warning("%s is read where it lies, not from %s: %s", path, folder, reason)
            _COPIES[name] = path, -1
    return _COPIES[name][0]


def is_staging() -> bool:
    """True if this job copies data to its node's disk."""
    return STAGE in os.environ


def release() -> None:
    """Let go of the copies, so that another job may remove them when it needs the room. They stay for jobs to come."""
    for _, lock in _COPIES.values():
        if lock >= 0:
            os.close(lock)
    _COPIES.clear()


def _find_or_copy(stage: Path, path: Path, sha256: str | None) -> tuple[Path, int]:
    """The copy and the lock that keeps it."""
    status = path.stat()
    folder = _own_folder(stage)
    key = hashlib.sha256(f"{path} {status.st_size} {status.st_mtime_ns}".encode(errors="surrogateescape")).hexdigest()[:20]
    copy = folder / key / path.name
    lock = os.open(folder / f"{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        while True:
            _lock(lock, fcntl.LOCK_SH, path)  # those that read do not wait for each other
            if _is_whole(copy, status.st_size):
                os.utime(lock)  # when it was used last
                return copy, lock
            # a lock does not become another one in one step: another job may have made the copy, or may remove it, in between
            _lock(lock, fcntl.LOCK_EX, path)
            if not _is_whole(copy, status.st_size):
                _make_room(folder, status.st_size, path)
                _copy(path, copy, status, sha256)
    except BaseException:
        os.close(lock)
        raise


def _own_folder(stage: Path) -> Path:
    """The folder of this user's copies, in which nobody else can write: a shared disk is everybody's."""
    folder = stage / f"densewalk-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise _NoCopyError(f"{folder} is another user's, or others can write in it")
    return folder


def _lock(lock: int, kind: int, path: Path) -> None:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        log.info("waiting for another process of this node that copies %s", path)
        fcntl.flock(lock, kind)


def _is_whole(copy: Path, size: int) -> bool:
    try:
        return copy.stat().st_size == size
    except OSError:
        return False


def _make_room(folder: Path, size: int, path: Path) -> None:
    """Remove copies that no process reads, those first that were unused for longest, until this one fits."""
    locks = sorted(folder.glob("*.lock"), key=lambda lock: lock.stat().st_mtime_ns)
    while (free := shutil.disk_usage(folder).free) < size + SPARE:
        removed = False
        while locks and not removed:
            removed = _remove_unused(locks.pop(0))
        if not removed:
            needed = f"{(size + SPARE) / 2**30:.1f} GiB are needed for {path.name}"
            raise _NoCopyError(f"the disk is too small: {free / 2**30:.1f} GiB are free, {needed}")


def _remove_unused(lock: Path) -> bool:
    """Remove the copy of this lock if there is one that nobody holds. The lock stays: another process may be waiting for it."""
    copies = lock.with_suffix("")
    if not copies.is_dir():
        return False
    held = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(copies)
    except BlockingIOError:
        return False
    finally:
        os.close(held)
    log.info("removed %s, which no job reads", copies)
    return True


def _copy(path: Path, copy: Path, status: os.stat_result, sha256: str | None) -> None:
    """Copy a file, and read the copy again: its checksum is that of what was read."""
    log.info("copying %s (%.2f GiB) to %s", path, status.st_size / 2**30, copy.parent)
    begin = time.monotonic()
    try:
        with atomic_write(copy) as temporary:
            crc, found = _transfer(path, temporary, status.st_size)
            after = path.stat()
            if (after.st_size, after.st_mtime_ns) != (status.st_size, status.st_mtime_ns):
                raise _NoCopyError("it changed while it was copied")
            if temporary.stat().st_size != status.st_size or _crc(temporary) != crc:
                raise _NoCopyError("the copy has another content: look after the node's disk")
            if sha256 is not None and found != sha256:
                wrong = f"{path} is not the file that its receipt describes"
                raise _WrongFileError(wrong, todo="delete both, so that they are made again")
    except _WrongFileError:
        raise
    except UserError as error:  # the disk is full after all, or cannot be written
        raise _NoCopyError(str(error)) from error
    seconds = max(time.monotonic() - begin, 1e-9)
    log.info("copied and checked %s: %.1f s, %.0f MiB/s", path.name, seconds, status.st_size / 2**20 / seconds)


class _WrongFileError(UserError):
    """Not the disk's fault, but the file's."""


def _transfer(path: Path, temporary: Path, size: int) -> tuple[int, str]:
    """Copy; CRC-32 and sha256 of what was read."""
    crc, digest, done, reported = 0, hashlib.sha256(), 0, time.monotonic()
    with open(path, "rb") as source, open(temporary, "wb") as target:
        while piece := source.read(PIECE):
            crc = zlib.crc32(piece, crc)
            digest.update(piece)
            target.write(piece)
            done += len(piece)
            if time.monotonic() - reported > REPORT:
                log.info("copying %s: %.0f %%", path.name, 100 * done / max(size, 1))
                reported = time.monotonic()
        target.flush()
        os.fsync(target.fileno())
    return crc, digest.hexdigest()


def _crc(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            crc = zlib.crc32(piece, crc)
    return crc
