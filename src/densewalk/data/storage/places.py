"""Folders and files that may lie in a tar or zip archive. Free of torch.

A folder that does not exist is looked for as an archive of its name: data/coco/train2017 as data/coco/train2017.tar or .zip. Paths go on
inside an archive as if it were a folder. A folder that exists is taken, whatever lies beside it.
"""

import io
import os
from collections.abc import Iterator
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.data.storage.archives import Archive, is_archive, split_archive
from densewalk.data.storage.index import ENDS

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


def resolve(path: str | Path) -> Path:
    """The path; of one that does not exist, that into the archive which has the place of the first missing folder.

    Raises:
        UserError: there is a tar and a zip archive of that name.
    """
    path = Path(path)
    if os.path.lexists(path) or split_archive(path) is not None:
        return path
    missing = next((part for part in [*reversed(path.parents), path] if not os.path.lexists(part)), path)
    found = [archive for end in ENDS if is_archive(archive := missing.with_name(missing.name + end))] if missing.name else []
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1]} are both there, but no folder {missing}", todo="remove one of them")
    return found[0] / path.relative_to(missing) if found else path


def archive_of(path: str | Path) -> tuple[Archive, str] | None:
    """The archive that a path leads into and the rest of the path, as `split_archive`, also where the archive takes a folder's place."""
    return split_archive(resolve(path))


def is_folder(path: str | Path) -> bool:
    """True for a folder, an archive, or a folder in one."""
    found = archive_of(path)
    return os.path.isdir(path) if found is None else len(found[0].below(found[1])) > 0 or not found[1]


def is_file(path: str | Path) -> bool:
    """True for a regular file, also in an archive."""
    found = archive_of(path)
    return os.path.isfile(path) if found is None else found[0].number(found[1]) is not None


def members_below(path: str | Path) -> Iterator[tuple[str, int]] | None:
    """Names and sizes of the files below a folder in an archive, sorted; None if the folder lies in none."""
    found = archive_of(path)
    if found is None:
        return None
    archive, folder = found
    start = len(folder) + 1 if folder else 0
    return ((archive.index.names[i][start:], archive.index.row(i)[1]) for i in archive.below(folder))


def open_file(path: str | Path) -> io.BufferedReader | io.BytesIO:
    """Open a file to read its bytes, also one in an archive.

    Raises:
        OSError: it cannot be opened. UserError: its archive is damaged.
    """
    found = archive_of(path)
    return open(path, "rb") if found is None else io.BytesIO(found[0].read(found[1]))


def advice_on_archives(folder: str | Path) -> str:
    """What to do where only a compressed archive lies in a folder's place; empty if there is none."""
    folder = Path(folder)
    places = [folder, *(folder.with_name(folder.name + end) for end in COMPRESSED)] if folder.name else []
    there = next((place for place in places if place.name.lower().endswith(COMPRESSED) and place.is_file()), None)
    return "" if there is None else f"{there} is compressed, and cannot be read in place: uncompress it to .tar or .zip, or unpack it"
