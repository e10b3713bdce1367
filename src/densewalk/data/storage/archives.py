"""Read files in tar and zip archives in place, by paths that go on inside: data/coco/train2017.tar/000000000009.jpg. Free of torch.

    archive, name = split_archive("data/coco/train2017.tar/000000000009.jpg")
    content = archive.read(name)

Each process reads through a file handle of its own, and by positions, so that forked and spawned workers do not disturb each other.
"""

import errno
import os
import stat
import struct
import zlib
from bisect import bisect_left
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.data.storage.index import AGAIN, ENDS, NO_ARCHIVES, read_index
from densewalk.data.storage.staging import local_copy

ZIP_HEADER = struct.Struct("<4s22xHH")  # of one file: signature, then at its end the lengths of name and extra field


class Archive:
    """An archive's files by name."""

    def __init__(self, path: Path) -> None:
        self.path, self.index = path, read_index(path)
        self._file, self._process, self._listed_by = -1, 0, os.getpid()

    @property
    def is_open(self) -> bool:
        """True if this process has begun to read from it."""
        return self._process == os.getpid()

    @property
    def is_outdated(self) -> bool:
        """True if this process has listed an archive in whose place another one lies now, and has not begun to read it."""
        return not self.is_open and self._listed_by == os.getpid() and not self._is_same()

    def _is_same(self) -> bool:
        status = os.stat(self.path)
        return self.index.stamp.split()[1:3] == [str(status.st_size), str(status.st_mtime_ns)]

    def number(self, name: str) -> int | None:
        """A file's number in the index; None if there is none of that name."""
        at = bisect_left(self.index.names, name)
        return at if at < len(self.index.names) and self.index.names[at] == name else None

    def below(self, folder: str) -> range:
        """The numbers of the files below a folder; all for an empty name."""
        if not folder:
            return range(len(self.index.names))
        # the sign after / is 0
        return range(bisect_left(self.index.names, f"{folder}/"), bisect_left(self.index.names, f"{folder}0"))

    def read(self, name: str) -> bytes:
        """Read a file.

        Raises:
            FileNotFoundError: there is none of that name. UserError: the archive is damaged, or has changed since it was listed.
        """
        number = self.number(name)
        if number is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.path}/{name}")
        offset, size, stored, deflated, crc = self.index.row(number)
        if crc < 0:
            return self._bytes(offset, size, name)
        signature, name_length, extra_length = ZIP_HEADER.unpack(self._bytes(offset, ZIP_HEADER.size, name))
        content = self._bytes(offset + ZIP_HEADER.size + name_length + extra_length, stored, name)
        try:
            if deflated:
                content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
        except zlib.error as error:
            raise UserError(f"{self.path}/{name} is damaged: {error}", todo=AGAIN) from error
        if signature != b"PK\x03\x04" or len(content) != size or zlib.crc32(content) != crc:
            raise UserError(f"{self.path}/{name} is damaged: its checksum is another one", todo=AGAIN)
        return content

    def _bytes(self, offset: int, size: int, name: str) -> bytes:
        parts: list[bytes] = []
        file = self._opened()
        while size and (part := os.pread(file, size, offset)):  # one call returns at most 2 GiB
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        if size:
            raise UserError(f"{self.path}/{name} is damaged: the archive ends before it", todo=AGAIN)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _opened(self) -> int:
        """This process's handle of the archive, or of its copy on the node's own disk."""
        if not self.is_open:
            if not self._is_same():
                raise UserError(f"archive {self.path} has changed while it was in use", todo="start again")
            file = os.open(local_copy(self.path), os.O_RDONLY | os.O_CLOEXEC)
            # not closed before a fork: the child closes its own copy here
            old, self._file, self._process = self._file, file, os.getpid()
            if old >= 0:
                os.close(old)
        return self._file


_ARCHIVES: dict[str, Archive] = {}


def open_archive(path: str | Path) -> Archive:
    """An archive, whose list of files is read once per process; forked processes inherit it."""
    path = str(path)
    archive = _ARCHIVES.get(path)
    if archive is None or archive.is_outdated:
        archive = _ARCHIVES[path] = Archive(Path(path))
    return archive


def is_archive(path: str | Path) -> bool:
    """True for a regular file whose name ends with .tar or .zip."""
    path = os.fspath(path)
    return _is_named_so(path.lower()) and _is_regular(path)


def split_archive(path: str | Path) -> tuple[Archive, str] | None:
    """The archive that a path leads into, and the rest of the path, empty for the archive itself; None for any other path."""
    text = os.fspath(path)
    lower = text.lower()
    if not any(end in lower for end in ENDS):  # nearly all paths
        return None
    parts = text.split("/")
    for count in range(1, len(parts) + 1):
        if _is_named_so(parts[count - 1].lower()) and _is_regular(head := "/".join(parts[:count])):
            rest = os.path.normpath("/".join(parts[count:]))
            return open_archive(head), "" if rest == "." else rest
    return None


def _is_named_so(name: str) -> bool:
    return name.endswith(ENDS) and not name.endswith(NO_ARCHIVES)


def _is_regular(path: str) -> bool:
    if (known := _ARCHIVES.get(path)) and known.is_open:
        return True
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False
