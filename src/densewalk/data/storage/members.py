"""The entries of tar and zip archives, checked before one of them is read or unpacked. Free of torch.

An archive is not trusted: links, devices, absolute paths, `..` and names that are there twice are refused, each by its name.
"""

import os
import stat
import tarfile
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from densewalk.core.errors import UserError

REFUSE = "do not use this archive"


@dataclass(frozen=True)
class Member:
    """One entry. kind: `file`, `folder`, or what else it is."""

    name: str
    kind: str
    size: int

    @property
    def wanted(self) -> bool:
        """False for what macOS adds."""
        return PurePosixPath(self.name).parts[:1] != ("__MACOSX",)


def zip_member(info: zipfile.ZipInfo) -> Member:
    """An entry of a zip archive."""
    regular = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
    return Member(info.filename, "folder" if info.is_dir() else "file" if regular else "link or device", info.file_size)


def tar_member(info: tarfile.TarInfo) -> Member:
    """An entry of a tar archive."""
    kind = "folder" if info.isdir() else "file" if info.isreg() else "link" if info.islnk() or info.issym() else "device"
    return Member(info.name, kind, info.size)


def require_harmless(members: Sequence[Member], archive: Path) -> None:
    """Check all that can be known from the list of entries.

    Raises:
        UserError: the first entry that is neither file nor folder, lies outside, or comes twice.
    """
    for member in members:
        path = PurePosixPath(member.name.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or ":" in "".join(path.parts[:1]):
            raise UserError(f"{archive} holds {member.name!r}, which lies outside", todo=REFUSE)
        if member.kind not in ("file", "folder"):
            raise UserError(f"{archive} holds {member.name!r}, a {member.kind}", allowed="files and folders", todo=REFUSE)
    names = Counter(os.path.normpath(m.name) for m in members if m.kind == "file")
    above = {str(parent) for m in members for parent in PurePosixPath(os.path.normpath(m.name)).parents}
    above |= {os.path.normpath(m.name) for m in members if m.kind == "folder"}
    if both := sorted(above & names.keys()):
        raise UserError(f"{archive} holds {both[0]!r} as a file and as a folder", todo=REFUSE)
    if (twice := names.most_common(1)) and twice[0][1] > 1:
        raise UserError(f"{archive} holds {twice[0][0]!r} twice", todo=REFUSE)


def require_plain_name(name: str, where: str | Path) -> None:
    """Refuse a file name with control characters or bytes that are no text: lists, tables and receipts could not hold it."""
    if not name.isprintable():
        raise UserError(f"{where} has a file named {name!a}", allowed="names of printable characters", todo="rename it")
