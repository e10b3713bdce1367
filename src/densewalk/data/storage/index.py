"""Where the files of a tar or zip archive lie in it, found once for each archive. Free of torch.

    index = read_index("data/coco/train2017.tar")
    index.names         # of all files but hidden ones, sorted, below the archive; of equal length: where they begin, how long they are

Reading the list of 1.3 million images takes a minute or two: that of a large archive is kept in the cache folder (results/cache, or
$DENSEWALK_CACHE) and taken from there while size, time, head and tail of the archive are the same.
"""

import hashlib
import logging
import os
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write
from densewalk.data.storage.members import REFUSE, Member, require_harmless, require_plain_name, tar_member, zip_member

log = logging.getLogger("densewalk")
VERSION = 1  # increase it when indices of earlier versions cannot be used
ENDS = (".tar", ".zip")
NO_ARCHIVES = (".pth.tar", ".pt.tar", ".ckpt.tar", ".pkl.tar")  # checkpoints, whatever their format
PLAIN = "uncompressed .tar, or .zip"
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
AGAIN = "make or download it again"
SAMPLE = 2**16  # bytes of an archive's head and tail that recognize it
KEPT = 1_000  # files; the list of a smaller archive is read at each start
LARGEST = 2**31  # bytes of one file
COLUMNS = ("offset", "size", "stored", "deflated", "crc")
Row = tuple[int, int, int, int, int]  # in this order


@dataclass(frozen=True)
class Index:
    """The files of an archive, by names that are sorted.

    columns: of each file. offset: where it begins; in a zip archive, where its header does. size: in bytes. stored: bytes that it takes in
    the archive. deflated: 1 if these are compressed. crc: checksum of its content; -1 in a tar archive, which has none. stamp: of the
    archive, see `stamp_of`.
    """

    names: Sequence[str]
    columns: Mapping[str, Int64[np.ndarray, " files"]]
    stamp: str

    def row(self, number: int) -> "Row":
        """What is known of one file."""
        offset, size, stored, deflated, crc = (int(self.columns[name][number]) for name in COLUMNS)
        return offset, size, stored, deflated, crc


def stamp_of(path: Path) -> str:
    """Size, time, and the sha256 of the first and last bytes of an archive."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        digest = hashlib.sha256(file.read(SAMPLE))
        file.seek(max(0, status.st_size - SAMPLE))
        digest.update(file.read(SAMPLE))
    return f"{VERSION} {status.st_size} {status.st_mtime_ns} {digest.hexdigest()}"


def read_index(path: Path) -> Index:
    """The index of an archive, from the cache folder if it is there.

    Raises:
        UserError: compressed as a whole, damaged, or with an entry that is refused; the message names it.
    """
    try:
        stamp = stamp_of(path)
        kept = _cache_file(path)
        if (found := _read_kept(kept, stamp)) is not None:
            return found
        index = _make_index(path, stamp)
    except OSError as error:
        raise UserError(f"archive {path} cannot be read: {error.strerror or error}", todo=AGAIN) from error
    if len(index.names) >= KEPT:
        _keep(kept, index)
    return index


def _make_index(path: Path, stamp: str) -> Index:
    with open(path, "rb") as file:
        begins = file.read(6)
    for magic, name in COMPRESSIONS.items():
        if begins.startswith(magic):
            found = f"archive {path} is compressed ({name}): its files cannot be read in place"
            raise UserError(found, allowed=PLAIN, todo="uncompress it")
    try:
        members, rows = (_zip_rows if begins[:4] in (b"PK\x03\x04", b"PK\x05\x06") else _tar_rows)(path)
    except (UserError, OSError):
        raise
    except Exception as error:  # damaged headers make the libraries raise whatever they come upon
        raise UserError(f"archive {path} is no whole tar or zip: {error or type(error).__name__}", todo=AGAIN) from error
    require_harmless(members, path)
    size, files = path.stat().st_size, {}
    for member, row in zip(members, rows, strict=True):
        name = os.path.normpath(member.name)
        if member.kind == "folder" or not member.wanted or any(part.startswith(".") for part in name.split("/")):
            continue
        require_plain_name(name, path)
        if member.size > LARGEST:
            raise UserError(f"{path} holds {name!r} of {member.size} bytes", allowed=f"files up to {LARGEST}", todo=REFUSE)
        if row[0] + row[2] > size:
            raise UserError(f"archive {path} is no whole tar or zip: {name!r} ends behind its end", todo=AGAIN)
        files[name] = row
    top = f"{path.stem}/"
    if files and all(name.startswith(top) for name in files):
        files = {name.removeprefix(top): row for name, row in files.items()}
    names = sorted(files)
    table = np.array([files[name] for name in names], dtype=np.int64).reshape(-1, len(COLUMNS))
    return Index(names, dict(zip(COLUMNS, np.ascontiguousarray(table.T), strict=True)), stamp)


def _tar_rows(path: Path) -> tuple[list[Member], list[Row]]:
    members: list[Member] = []
    rows: list[Row] = []
    with tarfile.open(path, "r:") as tar:
        while (info := tar.next()) is not None:
            if info.issparse():
                raise UserError(f"{path} holds {info.name!r}, a sparse file", todo="make it without --sparse")
            members.append(tar_member(info))
            rows.append((info.offset_data, info.size, info.size, 0, -1))
            tar.members.clear()  # type: ignore[attr-defined]  # a million of them take a gigabyte
        end = tar.offset
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # a tar cut between two files looks complete
            raise tarfile.ReadError("its end is missing")
    return members, rows


def _zip_rows(path: Path) -> tuple[list[Member], list[Row]]:
    with zipfile.ZipFile(path) as content:
        infos = content.infolist()
    if min((info.header_offset for info in infos), default=0) > 0:
        raise zipfile.BadZipFile("it does not begin with its first file")
    for info in infos:
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            how = "encrypted" if info.flag_bits & 1 else f"compressed by method {info.compress_type}"
            raise UserError(f"{path} holds {info.filename!r}, {how}", allowed="files that are stored or deflated", todo="make it again")
    deflated = [int(info.compress_type == zipfile.ZIP_DEFLATED) for info in infos]
    rows = [(i.header_offset, i.file_size, i.compress_size, d, i.CRC) for i, d in zip(infos, deflated, strict=True)]
    return [zip_member(info) for info in infos], rows


# -- the cache folder --------------------------------------------------------------------------------------------------


def _cache_file(path: Path) -> Path:
    folder = Path(os.environ.get("DENSEWALK_CACHE", "results/cache")) / "archives"
    return folder / f"{hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]}.npz"


def _keep(kept: Path, index: Index) -> None:
    """Write the index; where that is impossible, it is made again next time."""
    texts = {"stamp": index.stamp, "names": "\n".join(index.names)}
    arrays: dict[str, Any] = {name: np.frombuffer(text.encode(), np.uint8) for name, text in texts.items()}
    try:
        with atomic_write(kept) as temporary, open(temporary, "wb") as file:
            np.savez(file, **(arrays | dict(index.columns)))
    except (OSError, UserError) as error:
        log.warning("the list of an archive's files is not kept: %s", error)


def _read_kept(kept: Path, stamp: str) -> Index | None:
    """The index in the cache folder; None if there is none, or not of this archive as it is now."""
    try:
        with np.load(kept, allow_pickle=False) as found:
            if found["stamp"].tobytes().decode() != stamp:
                return None
            names = found["names"].tobytes().decode().split("\n")
            columns = {name: found[name] for name in COLUMNS}
    except FileNotFoundError:
        return None
    except Exception as error:  # damaged bytes
        log.warning("%s is damaged (%s): the archive's files are listed again", kept, error or type(error).__name__)
        return None
    return Index(names, columns, stamp) if all(len(column) == len(names) for column in columns.values()) else None
