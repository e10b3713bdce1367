"""The sha256 of files and folders, which are not read again while size, times and place on the disk are the same. Free of torch.

    contents = Contents(results / "specs" / "contents.json")
    contents.of("walk.mp4")     # sha256 of a file; of a folder or an archive, of all names and sizes below it; None if it is not there
    contents.save()

The file is a cache: it enters no hash, and may be deleted. A file that was only touched, copied or moved is read once more.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.core.files import write_json
from densewalk.core.hashing import file_sha256
from densewalk.core.progress import log
from densewalk.core.settings import Settings
from densewalk.core.typed_files import read_model
from densewalk.data.fingerprint import fingerprint
from densewalk.data.receipts import CuratedReceipt, Receipt, SequencesReceipt, VideoReceipt
from densewalk.data.storage.archives import is_archive, split_archive
from densewalk.data.storage.places import is_folder, resolve


class Known(Settings):
    """What was found at a path. stamps: of the file, or of each folder below a folder, by path."""

    stamps: dict[str, str]
    sha256: str


class Cache(Settings):
    """By path as it stands in the study."""

    known: dict[str, Known] = {}


class Contents:
    """Contents of paths, remembered in a file."""

    def __init__(self, file: Path) -> None:
        self.file, self.changed = file.absolute(), False  # Snakemake has left the study's folder when it is saved
        self.known: dict[str, Known] = {}
        self.seen: dict[str, str | None] = {}
        if file.is_file():
            self.known = dict(read_model(file, Cache, "cache of contents", "delete it").known)

    def of(self, path: str | Path) -> str | None:
        """The sha256 of a file's content, or of all names and sizes below a folder; None if there is neither."""
        name = str(path)
        if name not in self.seen:
            self.seen[name] = self._look(Path(path), name)
        return self.seen[name]

    def look_again(self, path: str | Path) -> str | None:
        """The same, for a folder without what is remembered: a file in it that was written over leaves no trace in the folders' times."""
        if Path(path).is_dir():
            self.known.pop(str(path), None)
            self.seen.pop(str(path), None)
        return self.of(path)

    def _look(self, path: Path, name: str) -> str | None:
        place = resolve(path)
        if is_archive(place) or not path.exists():
            return self._look_into_archive(place, name) if is_folder(place) else None
        known = self.known.get(name)
        if known is not None and all(stamp == _stamp(Path(place)) for place, stamp in known.stamps.items()):
            return known.sha256
        if path.is_dir():
            stamps = {str(place): _stamp(place) or "" for place in [path, *_folders(path)]}
            found = folder_content(path)
        else:
            stamps, found = {name: _stamp(path) or ""}, file_sha256(path)
        self.known[name], self.changed = Known(stamps=stamps, sha256=found), True
        return found

    def _look_into_archive(self, place: Path, name: str) -> str:
        """The content of the folder that an archive was made of: names and sizes, by the archive's own list."""
        found = split_archive(place)
        assert found is not None
        archive = str(found[0].path)
        known, stamp = self.known.get(name), _stamp(Path(archive)) or ""
        if known is None or known.stamps != {archive: stamp}:
            self.known[name], self.changed = Known(stamps={archive: stamp}, sha256=folder_content(place)), True
        return self.known[name].sha256

    def changed_since(self, path: str | Path, time: float) -> bool:
        """True if a folder, or one below it, has got or lost files since a time in seconds since 1970."""
        places = [Path(place) for place in self.known[str(path)].stamps] if self.of(path) else []
        return any(place.stat().st_mtime > time for place in places)

    def save(self) -> None:
        """Write the file if anything new was read; where that is impossible, it is read again next time."""
        if not self.changed:
            return
        try:
            write_json(self.file, Cache(known={name: self.known[name] for name in sorted(self.known)}).model_dump(mode="json"))
            self.changed = False
        except (OSError, UserError) as error:
            log.warning("%s cannot be written, so contents are read again next time: %s", self.file, error)


def folder_content(path: str | Path) -> str:
    """The sha256 of all names and sizes below a folder, which copying does not change."""
    return fingerprint([path], sizes_only=True).sha256


def contents_of(receipt: Receipt) -> list[str]:
    """The contents of prepared data: of the video, of the folder, or of each source of a curation."""
    if isinstance(receipt, CuratedReceipt):
        return [content for source in receipt.sources.values() for content in contents_of(source)]
    if isinstance(receipt, VideoReceipt):
        return [receipt.source_sha256]
    return [of_sequences(folder_content(receipt.path), receipt.chosen if isinstance(receipt, SequencesReceipt) else None)]


def of_sequences(content: str, chosen: Sequence[str] | None) -> str:
    """The content of a folder of sequences, of which only those with these names are used."""
    return content if chosen is None else hashlib.sha256("\0".join([content, *chosen]).encode()).hexdigest()


def _stamp(path: Path) -> str | None:
    """Size, times and place of a file or folder; None if it is not there.

    Among the times that of the last change of any kind, which nobody can set: other bytes with the old size and the old time are seen.
    """
    try:
        status = path.stat()
    except OSError:
        return None
    return f"{status.st_size} bytes, {status.st_mtime_ns}, {status.st_ctime_ns}, {status.st_ino}"


def _folders(path: Path) -> list[Path]:
    """All folders below a folder, without hidden ones."""
    found = []
    for place, folders, _ in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(place) / name for name in folders]
    return found
