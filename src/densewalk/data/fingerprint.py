"""Fingerprint the files of a data set, so that a change of them is noticed. Free of torch.

    found = fingerprint(["data/voc/JPEGImages", "data/voc/SegmentationClass"])
    found.sha256            # of every file's path with its content (labels) or with size and time (images, videos)

120,000 files take one to two seconds.
"""

import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.core.settings import Settings
from densewalk.data.storage.places import members_below, resolve

# never labels: known by size and time
MEDIA = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".webp",
        ".heic",
        ".avif",
        ".mp4",
        ".mkv",
        ".mov",
        ".avi",
        ".webm",
        ".ts",
        ".flv",
        ".m4v",
        ".mpg",
        ".zip",
        ".tar",
        ".gz",
        ".bz2",
        ".xz",
        ".7z",
        ".pt",
        ".pth",
        ".safetensors",
    ]
)
# always labels or lists, whatever their size
ANNOTATIONS = frozenset([".json", ".txt", ".csv", ".tsv", ".xml", ".yaml", ".yml"])
LARGE = 2**18  # bytes; of other files, which may be masks, larger ones are taken for images
PIECE = 2**20


class Fingerprint(Settings):
    """Of a data set: how many files and bytes, and a hash of their paths with content, or size and time."""

    files: int
    bytes: int
    sha256: str


def fingerprint(paths: Sequence[str | Path], *, sizes_only: bool = False) -> Fingerprint:
    """Fingerprint all files below folders, and single files. Hidden ones, and this study's own results, are not data.

    Args:
        sizes_only: look at names and sizes alone, which copying does not change. An archive then has the fingerprint of the folder that it
            was made of; else it is one file, known by size and time.

    Raises:
        UserError: a file or folder cannot be read.
    """
    digest, files, size = hashlib.sha256(), 0, 0
    outside = {os.path.realpath(path) for path in ("results", os.environ.get("DENSEWALK_CACHE", "results/cache"))}
    for number, path in enumerate(paths):
        for name, content, count in _described(Path(path), outside, sizes_only):
            digest.update(b"%d\0%s\0%s\n" % (number, name, content))
            files, size = files + 1, size + count
    return Fingerprint(files=files, bytes=size, sha256=digest.hexdigest())


def _described(path: Path, outside: set[str], sizes_only: bool) -> Iterator[tuple[bytes, bytes, int]]:
    """Yield every file's path below `path`, what is known of it, and its size; in the order of their paths."""
    path = resolve(path)
    if sizes_only and (members := members_below(path)) is not None:
        for name, size in sorted(members, key=_as_in_folders):
            yield os.fsencode(name), b"%d 0" % size, size
        return
    try:
        if path.is_file():
            folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                yield (b"", *_describe(path.name, folder, sizes_only))
            finally:
                os.close(folder)
            return
        waiting, seen = [("", path)], set()
        while waiting:
            below, folder_path = waiting.pop()
            if not folder_path.is_dir() or os.path.realpath(folder_path) in outside or any(folder_path.glob("specs/plan-*.json")):
                continue
            status = folder_path.stat()
            if (status.st_dev, status.st_ino) in seen:  # a link that leads back
                continue
            seen.add((status.st_dev, status.st_ino))
            names, folders = _listed(folder_path)
            waiting += [(f"{below}{name}/", folder_path / name) for name in reversed(folders)]
            folder = os.open(folder_path, os.O_RDONLY | os.O_DIRECTORY)
            try:
                for name in names:
                    yield (os.fsencode(below + name), *_describe(name, folder, sizes_only))
            finally:
                os.close(folder)
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror}", todo="make the evaluation's data readable") from error


def _as_in_folders(member: tuple[str, int]) -> list[tuple[bool, str]]:
    """Sorting key of an archive's file, for the order in which folders are gone through: a folder's files, then the folders in it."""
    *folders, name = member[0].split("/")
    return [*((True, folder) for folder in folders), (False, name)]


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the files and of the folders in a folder, sorted."""
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif entry.is_file():
                files.append(entry.name)
    return sorted(files), sorted(folders)


def _describe(name: str, folder: int, sizes_only: bool) -> tuple[bytes, int]:
    """What is known of a file, and its size: a hash of a label file's content, size and time of another's."""
    ending = os.path.splitext(name)[1].lower()
    if ending not in MEDIA and not sizes_only:
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK, dir_fd=folder)
        try:
            first = os.read(descriptor, LARGE + 1)
            if len(first) <= LARGE:
                return hashlib.sha256(first).digest(), len(first)
            if ending in ANNOTATIONS:
                return _rest(descriptor, first)
        finally:
            os.close(descriptor)
    status = os.stat(name, dir_fd=folder)
    if not stat.S_ISREG(status.st_mode):
        return b"", 0
    return b"%d %d" % (status.st_size, 0 if sizes_only else status.st_mtime_ns), status.st_size


def _rest(descriptor: int, first: bytes) -> tuple[bytes, int]:
    """The hash of a large file's content, of which `first` has been read, and its size."""
    digest, size = hashlib.sha256(first), len(first)
    while piece := os.read(descriptor, PIECE):
        digest.update(piece)
        size += len(piece)
    return digest.digest(), size
