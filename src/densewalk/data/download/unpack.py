"""Unpack archives without trusting them: files and folders, below the target, over nothing.

unpack("downloads/VOCtrainval_11-May-2012.tar", "data")
"""

import filecmp
import os
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from lzma import LZMAError
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.core.files import sweep, temporary_name
from densewalk.core.progress import log
from densewalk.data.storage.members import REFUSE, Member, require_harmless, tar_member, zip_member

LARGEST = 500 * 2**30  # bytes that an archive may unpack to
# the libraries' own errors; zipfile raises the last two for a method or an encryption that it does not know
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, NotImplementedError, RuntimeError)
AGAIN = "remove it and fetch it again"


def unpack(archive: str | Path, folder: str | Path, *, largest: int = LARGEST) -> list[Path]:
    """Put the archive's files below `folder`; they appear when all have come out whole.

    Files that are there with the same content are left as they are, so that a call after an interruption completes it.

    Returns:
        The files, sorted.

    Raises:
        UserError: no archive, truncated or damaged; an entry that is neither file nor folder, lies outside, comes twice, or would
            replace another file; more than `largest` bytes, or no room. Nothing of the archive is in `folder` then.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise UserError(f"archive {archive} does not exist", todo="download it")
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    with tempfile.TemporaryDirectory(prefix=f"{temporary_name(archive.name)}.", dir=folder) as temporary:
        try:
            _extract(archive, Path(temporary), largest)
        except OSError as error:
            if error.errno is None:  # a compressed stream that is none
                raise UserError(f"{archive} cannot be unpacked: {error}", todo=AGAIN) from error
            raise UserError(f"{archive} cannot be unpacked: {error.strerror}", todo=f"make room, or {REFUSE}") from error
        except BROKEN as error:
            reason = "it is no whole zip or tar archive" if isinstance(error, tarfile.ReadError) else str(error) or type(error).__name__
            raise UserError(f"{archive} cannot be unpacked: {reason}", todo=AGAIN) from error
        return _move(Path(temporary), folder, archive)


def _extract(archive: Path, folder: Path, largest: int) -> None:
    with open(archive, "rb") as file:
        begins = file.read(4)
    # not zipfile.is_zipfile, which takes a tar that ends with a zip for one
    if begins in (b"PK\x03\x04", b"PK\x05\x06"):
        with zipfile.ZipFile(archive) as content:
            infos = content.infolist()
            if min((info.header_offset for info in infos), default=0) > 0:
                raise zipfile.BadZipFile("it does not begin with its first file")  # cut behind an archive inside the archive
            members = [zip_member(info) for info in infos]
            require_harmless(members, archive)
            _require_room(members, archive, largest, folder)
            content.extractall(folder, [member.name for member in members if member.wanted])
        return
    with tarfile.open(archive) as tar:
        entries = tar.getmembers()
        _require_end(tar, archive)
        members = [tar_member(entry) for entry in entries]
        require_harmless(members, archive)
        _require_room(members, archive, largest, folder)
        tar.extractall(folder, [entry for entry, member in zip(entries, members, strict=True) if member.wanted], filter="data")
        while tar.fileobj is not None and tar.fileobj.read(1 << 20):  # a compressed stream has its checksum at its end
            pass


def _require_end(tar: tarfile.TarFile, archive: Path) -> None:
    """Require the zeros at the end, without which a tar cut between two files looks complete."""
    if type(tar.fileobj).__name__ == "BufferedReader":  # compressed ones know their end themselves
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise UserError(f"{archive} cannot be unpacked: its end is missing", todo=AGAIN)


def _require_room(members: Sequence[Member], archive: Path, largest: int, folder: Path) -> None:
    total, free = sum(m.size for m in members), shutil.disk_usage(folder).free
    if total > largest:
        raise UserError(f"{archive} unpacks to {total} bytes", allowed=f"at most {largest}", todo=REFUSE)
    if total > free:
        raise UserError(f"{archive} unpacks to {total} bytes, {free} are free", todo="make room")


def _move(source: Path, folder: Path, archive: Path) -> list[Path]:
    """Move the unpacked files to their places, none over another one."""
    entries = sorted(path.relative_to(source) for path in source.rglob("*"))
    files = [entry for entry in entries if (source / entry).is_file()]
    for entry in entries:
        new, target = source / entry, folder / entry
        # outermost first: what is behind a link is not looked at
        folders = [p for p in reversed(target.parents) if p.is_relative_to(folder) and p != folder]
        if blocked := [p for p in folders if p.is_symlink() or p.is_file()]:
            raise UserError(f"{archive} would write through {blocked[0]}, which is no folder", todo="move that one away")
        same = target.is_dir() if new.is_dir() else target.is_file() and filecmp.cmp(new, target, shallow=False)
        if os.path.lexists(target) and not same:
            raise UserError(f"{archive} would replace {target}", todo="move that one away, or unpack to another folder")
    _merge(source, folder)
    log.info("%s: %d files in %s", archive.name, len(files), folder)
    return [folder / file for file in files]


def _merge(source: Path, target: Path) -> None:
    """Move whole folders where there is none of that name yet."""
    for entry in list(source.iterdir()):
        place = target / entry.name
        if not place.exists():
            entry.rename(place)
        elif entry.is_dir():
            _merge(entry, place)
