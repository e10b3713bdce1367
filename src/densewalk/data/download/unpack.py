"""Archives, unpacked without trust: only files and folders, only below the target, never over something that is there.

unpack("downloads/VOCtrainval_11-May-2012.tar", "data")
"""

import filecmp
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath

from densewalk.core.errors import UserError
from densewalk.core.progress import log

LARGEST = 500 * 2**30  # bytes that an archive may unpack to
# the libraries' own errors; zipfile raises the last two for a method or an encryption that it does not know: all become one UserError
BROKEN = (tarfile.TarError, zipfile.BadZipFile, zlib.error, LZMAError, EOFError, NotImplementedError, RuntimeError)


@dataclass(frozen=True)
class Member:
    """One entry. kind: `file`, `folder`, or what else it is."""

    name: str
    kind: str
    size: int


def unpack(archive: str | Path, folder: str | Path, *, largest: int = LARGEST) -> list[Path]:
    """Put the archive's files below `folder`; they appear there when all of them have come out whole.

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
    with tempfile.TemporaryDirectory(prefix=f".{archive.name}.", dir=folder) as temporary:
        try:
            _extract(archive, Path(temporary), largest)
        except OSError as error:
            if error.errno is None:  # a compressed stream that is none
                raise UserError(f"{archive} cannot be unpacked: {error}", todo="remove it and fetch it again") from error
            raise UserError(f"{archive} cannot be unpacked: {error.strerror}", todo="make room, or do not use this archive") from error
        except BROKEN as error:
            reason = "it is no whole zip or tar archive" if isinstance(error, tarfile.ReadError) else str(error) or type(error).__name__
            raise UserError(f"{archive} cannot be unpacked: {reason}", todo="remove it and fetch it again") from error
        return _move(Path(temporary), folder, archive)


def _extract(archive: Path, folder: Path, largest: int) -> None:
    with open(archive, "rb") as file:
        begins = file.read(4)
    # not zipfile.is_zipfile, which takes a tar that ends with a zip for one
    if begins in (b"PK\x03\x04", b"PK\x05\x06"):
        _extract_zip(archive, folder, largest)
        return
    with tarfile.open(archive) as content:
        infos = content.getmembers()
        _require_end(content, archive)
        members = [_tar_member(info) for info in infos]
        _require_harmless(members, archive, largest, folder)
        content.extractall(folder, [info for info, m in zip(infos, members, strict=True) if not _passed_over(m)], filter="data")
        while content.fileobj is not None and content.fileobj.read(1 << 20):  # a compressed stream has its checksum at its end
            pass


def _extract_zip(archive: Path, folder: Path, largest: int) -> None:
    with zipfile.ZipFile(archive) as content:
        infos = content.infolist()
        if min((info.header_offset for info in infos), default=0) > 0:
            raise zipfile.BadZipFile("it does not begin with its first file")  # cut behind an archive inside the archive
        members = [_zip_member(info) for info in infos]
        _require_harmless(members, archive, largest, folder)
        for info, member in zip(infos, members, strict=True):
            if not _passed_over(member):
                content.extract(info, folder)


def _zip_member(info: zipfile.ZipInfo) -> Member:
    mode = info.external_attr >> 16
    kind = "folder" if info.is_dir() else "file" if stat.S_IFMT(mode) in (0, stat.S_IFREG) else "link or device"
    return Member(info.filename, kind, info.file_size)


def _tar_member(info: tarfile.TarInfo) -> Member:
    kind = "folder" if info.isdir() else "file" if info.isreg() else "link" if info.islnk() or info.issym() else "device"
    return Member(info.name, kind, info.size)


def _passed_over(member: Member) -> bool:
    return PurePosixPath(member.name).parts[:1] == ("__MACOSX",)


def _require_end(content: tarfile.TarFile, archive: Path) -> None:
    """A tar that is cut between two files looks complete but for the block of zeros behind the last one."""
    if type(content.fileobj).__name__ == "BufferedReader":  # compressed ones know their end themselves
        assert content.fileobj is not None
        content.fileobj.seek(content.offset)
        if content.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise UserError(f"{archive} cannot be unpacked: its end is missing", todo="remove it and fetch it again")


def _require_harmless(members: Sequence[Member], archive: Path, largest: int, folder: Path) -> None:
    """All that can be known from the list of entries, before one is written."""
    for member in members:
        path = PurePosixPath(member.name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]):
            raise UserError(f"{archive} holds {member.name!r}, which lies outside", todo="do not use this archive")
        if member.kind not in ("file", "folder"):
            raise UserError(
                f"{archive} holds {member.name!r}, a {member.kind}", allowed="files and folders", todo="do not use this archive"
            )
    names = Counter(os.path.normpath(m.name) for m in members if m.kind == "file")
    above = {str(parent) for m in members for parent in PurePosixPath(os.path.normpath(m.name)).parents}
    above |= {os.path.normpath(m.name) for m in members if m.kind == "folder"}
    if both := sorted(above & names.keys()):
        raise UserError(f"{archive} holds {both[0]!r} as a file and as a folder", todo="do not use this archive")
    if (twice := names.most_common(1)) and twice[0][1] > 1:
        raise UserError(f"{archive} holds {twice[0][0]!r} twice", todo="do not use this archive")
    total, free = sum(m.size for m in members), shutil.disk_usage(folder).free
    if total > largest:
        raise UserError(f"{archive} unpacks to {total} bytes", allowed=f"at most {largest}", todo="do not use this archive")
    if total > free:
        raise UserError(f"{archive} unpacks to {total} bytes, {free} are free", todo="make room")


def _move(source: Path, folder: Path, archive: Path) -> list[Path]:
    """The unpacked files to their places, none over another one."""
    entries = sorted(path.relative_to(source) for path in source.rglob("*"))
    files = [entry for entry in entries if (source / entry).is_file()]
    for entry in entries:
        target = folder / entry
        # outermost first: what is behind a link is not looked at
        folders = [p for p in reversed(target.parents) if p.is_relative_to(folder) and p != folder]
        if blocked := [p for p in folders if p.is_symlink() or p.is_file()]:
            raise UserError(f"{archive} would write through {blocked[0]}, which is no folder", todo="move that one away")
        if os.path.lexists(target) and not _same(source / entry, target):
            raise UserError(f"{archive} would replace {target}", todo="move that one away, or unpack to another folder")
    _merge(source, folder)
    log.info("%s: %d files in %s", archive.name, len(files), folder)
    return [folder / file for file in files]


def _same(new: Path, there: Path) -> bool:
    """Two folders, or files of one content."""
    if new.is_dir():
        return there.is_dir()
    return there.is_file() and filecmp.cmp(new, there, shallow=False)


def _merge(source: Path, target: Path) -> None:
    """Whole folders where there is none of that name yet."""
    for entry in list(source.iterdir()):
        place = target / entry.name
        if not place.exists():
            entry.rename(place)
        elif entry.is_dir():
            _merge(entry, place)
