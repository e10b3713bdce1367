"""Fetch files from the network: resumed, checked, whole as soon as they have their name.

    receipt = fetch("https://.../dino_deitsmall16_pretrain.pth", "checkpoints/dino_vits16.pth")

checkpoints/
    .dino_vits16.pth.part           what has come so far; the next call goes on from there
    .dino_vits16.pth.part.json      its address and the server's mark of that version
    dino_vits16.pth                 complete and checked
    dino_vits16.pth.receipt.json    url, sha256, bytes, date

A checksum that nobody has published is taken from the first download (trust on first use) and holds from then on.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import requests

from densewalk.core.errors import UserError
from densewalk.core.files import read_json, write_json
from densewalk.core.hashing import file_sha256
from densewalk.core.progress import Progress, log
from densewalk.core.text.urls import without_secrets

PAUSES = (1.0, 4.0, 15.0, 30.0, 60.0)  # seconds before another try, as long as nothing new comes
TIMEOUT = (20.0, 60.0)  # seconds for the connection, and between two pieces
PIECE = 1 << 16  # bytes; a cut loses at most one
TRANSIENT = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)


@dataclass(frozen=True)
class Wanted:
    """A file: address, place, and what is known of it. md5: where only that was published."""

    url: str | None
    target: Path
    sha256: str | None = None
    md5: str | None = None
    size: int | None = None

    @property
    def shown(self) -> str:
        """The address for messages and receipts."""
        return without_secrets(self.url or "")

    @property
    def part(self) -> Path:
        """The file with what has come so far."""
        return self.target.with_name(f".{self.target.name}.part")

    @property
    def mark(self) -> Path:
        """The file that says what `part` is a part of."""
        return self.part.with_name(f"{self.part.name}.json")

    def describe(self, path: Path) -> dict[str, Any]:
        """Make the receipt of a file."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        return {
            "url": self.url and self.shown,
            "sha256": file_sha256(path),
            "bytes": path.stat().st_size,
            "date": now,
            "name": self.target.name,
        }

    def mismatch(self, path: Path, found: dict[str, Any]) -> str | None:
        """Say how a file and its receipt differ from what is known."""
        if self.size is not None and found["bytes"] != self.size:
            return f"{found['bytes']} bytes instead of {self.size}"
        if self.sha256 is not None and found["sha256"] != self.sha256:
            return f"sha256 {found['sha256']} instead of {self.sha256}"
        if self.md5 is not None and self.sha256 is None:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
            return None if digest == self.md5 else f"md5 {digest} instead of {self.md5}"
        return None


def receipt_path(target: str | Path) -> Path:
    """Return the place of a downloaded file's receipt."""
    return Path(f"{target}.receipt.json")


def fetch(url: str, target: str | Path, *, sha256: str | None = None, md5: str | None = None, size: int | None = None) -> dict[str, Any]:
    """Have the file at `target`; nothing is transferred if it is there and as its receipt says.

    Returns:
        The receipt: url, sha256, bytes, date (of the download; of the check for a file that was there already).

    Raises:
        UserError: no network, no such file on the server, a page instead of a file, no room, another size or checksum than
            expected, or another process is downloading it. Nothing stands under the file's name then.
    """
    wanted = Wanted(url, Path(target), sha256, md5, size)
    if wanted.target.exists():
        return _verify(wanted)
    wanted.target.parent.mkdir(parents=True, exist_ok=True)
    with _locked_part(wanted) as file:
        if wanted.target.exists():  # another process has just brought it
            return _verify(wanted)
        _transfer(url, wanted, file)
        receipt = wanted.describe(wanted.part)
        if problem := wanted.mismatch(wanted.part, receipt):
            wanted.part.unlink()
            wanted.mark.unlink(missing_ok=True)
            found = f"{wanted.shown}: {problem}; the download was thrown away"
            raise UserError(found, todo="try again; if it comes again, the file on the server has changed")
        write_json(receipt_path(wanted.target), receipt)
        wanted.part.rename(wanted.target)
        wanted.mark.unlink(missing_ok=True)
    log.info("%s: %d bytes, sha256 %s", wanted.target, receipt["bytes"], receipt["sha256"])
    return receipt


def verify(path: Path, *, sha256: str | None = None, url: str | None = None) -> dict[str, Any]:
    """Compare a file with its checksum and with its receipt, which is written if there is none.

    Raises:
        UserError: it is not the file that was published, or has changed since it was downloaded.
    """
    return _verify(Wanted(url, path, sha256))


def _verify(wanted: Wanted) -> dict[str, Any]:
    path, known = wanted.target, receipt_path(wanted.target)
    if not path.is_file():
        raise UserError(f"{path} is no file", todo="move it away")
    found = wanted.describe(path)
    again = f"remove it and {known.name}, and fetch it again" if wanted.url else "put that file there, or correct `sha256`"
    if problem := wanted.mismatch(path, found):
        raise UserError(f"{path}: {problem}", todo=again)
    if not known.exists():
        write_json(known, found)
        return found
    earlier: dict[str, Any] = read_json(known)
    if not isinstance(earlier, dict) or not {"sha256", "date"} <= earlier.keys():
        raise UserError(f"{known} is no receipt", todo="remove it")
    if earlier["sha256"] != found["sha256"]:
        raise UserError(f"{path} has sha256 {found['sha256']}, but its receipt of {earlier['date']} says {earlier['sha256']}", todo=again)
    return earlier


@contextmanager
def _locked_part(wanted: Wanted) -> Iterator[IO[bytes]]:
    """Open the part for appending, by this process only."""
    with open(wanted.part, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{wanted.target} is being downloaded by another process", todo="wait for that one") from error
        # who had the lock may have finished between the two: what is open is the finished file then, not to be written to
        if not wanted.part.exists() or not os.path.samestat(wanted.part.stat(), os.fstat(file.fileno())):
            raise UserError(f"{wanted.target} has just been downloaded by another process", todo="try again")
        try:
            yield file
        finally:
            if wanted.part.exists() and not wanted.part.stat().st_size:
                wanted.part.unlink()
                wanted.mark.unlink(missing_ok=True)


def _transfer(url: str, wanted: Wanted, file: IO[bytes]) -> None:
    """Try until all is there, or until nothing new has come several times."""
    failures = 0
    while True:
        before = file.tell()
        try:
            _request(url, wanted, file)
            file.flush()
            return
        except TRANSIENT as error:
            file.flush()
            failures = 1 if file.tell() > before else failures + 1
            if failures > len(PAUSES):
                kept = f"; {file.tell()} bytes are kept" if file.tell() else ""
                found = f"{wanted.shown} cannot be downloaded: {_reason(error, wanted)}{kept}"
                raise UserError(found, todo="try again later: it goes on from there") from error
            log.warning(
                "%s: cut after %d bytes (%s), going on in %g s", wanted.shown, file.tell(), _reason(error, wanted), PAUSES[failures - 1]
            )
            time.sleep(PAUSES[failures - 1])
        except requests.RequestException as error:
            raise UserError(f"{wanted.shown} cannot be downloaded: {_reason(error, wanted)}", todo="correct the address") from error
        except OSError as error:
            raise UserError(f"{wanted.part} cannot be written: {error.strerror}", todo="make room: it goes on from there") from error


def _request(url: str, wanted: Wanted, file: IO[bytes]) -> None:
    """Append what is missing, or all if the server does not resume or has another version."""
    mark = read_json(wanted.mark) if wanted.mark.exists() else {}
    if mark.get("url") != wanted.shown or not mark.get("version"):
        file.truncate(0)  # of another address, or of a server that does not say which version it was
    file.seek(0, 2)
    headers = {"Accept-Encoding": "identity"}
    if file.tell():
        headers |= {"Range": f"bytes={file.tell()}-", "If-Range": mark["version"]}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        where = answer.headers.get("Content-Range", "")
        if answer.status_code == 416 and where == f"bytes */{file.tell()}":
            return  # nothing is missing
        if answer.status_code == 416 or (answer.status_code == 206 and not where.startswith(f"bytes {file.tell()}-")):
            file.truncate(0)  # what is there is longer than the file, or something else than was asked for came
            raise requests.ConnectionError("the server does not go on where the file was cut")
        _require_file(answer, wanted.shown, wanted.target)
        if answer.status_code != 206:
            file.truncate(0)
            file.seek(0)
        tag = answer.headers.get("ETag", "")
        version = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified", "")
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            version = ""  # ranges would count other bytes than those that are kept
        write_json(wanted.mark, {"url": wanted.shown, "version": version})
        _receive(answer, wanted, file)


def _require_file(answer: requests.Response, url: str, target: Path) -> None:
    """Refuse what is not the file: an error, or a page that asks a person something."""
    if url.startswith("https:") and not answer.url.startswith("https:"):
        raise UserError(
            f"{url} leads to {without_secrets(answer.url)}, which anybody on the way may change", todo="look where the file has moved to"
        )
    if answer.status_code >= 500 or answer.status_code == 429:
        raise requests.ConnectionError(f"the server answered {answer.status_code} {answer.reason}")
    if answer.status_code in (401, 403):
        raise UserError(f"{url}: the server asks for an account ({answer.status_code})", todo=f"get it by hand as {target}")
    if answer.status_code >= 400:
        raise UserError(f"{url}: the server answered {answer.status_code} {answer.reason}", todo="look where the file has moved to")
    if answer.headers.get("Content-Type", "").startswith("text/html"):
        raise UserError(f"{url}: the server sent a page instead of a file", todo=f"open it in a browser and save the file as {target}")


def _receive(answer: requests.Response, wanted: Wanted, file: IO[bytes]) -> None:
    start, coming = file.tell(), int(answer.headers.get("Content-Length", 0))
    if wanted.size is not None and start + coming > wanted.size:
        raise UserError(f"{wanted.shown} has {start + coming} bytes instead of {wanted.size}", todo="look whether the file was replaced")
    free = shutil.disk_usage(wanted.target.parent).free
    if coming > free:
        raise UserError(f"{wanted.target.parent} has {free} bytes free, {coming} are needed", todo="make room")
    progress = Progress(wanted.target.name, max(1, (start + coming) >> 20), done=start >> 20)
    for piece in answer.iter_content(PIECE):
        file.write(piece)
        progress.advance("MiB", (file.tell() >> 20) - progress.done)
    progress.close()


def _reason(error: Exception, wanted: Wanted) -> str:
    """The innermost cause, in one line, without what is confidential in the address."""
    while error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    reason = getattr(error, "reason", None) or error
    text = str(reason.args[0] if isinstance(reason, Exception) and len(reason.args) > 1 else reason)
    return (text.replace(wanted.url or " ", wanted.shown or " ") or type(error).__name__).splitlines()[0]
