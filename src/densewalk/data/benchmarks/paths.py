"""Files and folders of benchmarks. What is missing or no text is a UserError that names it."""

import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.data.storage.places import advice_on_archives, is_file, is_folder, members_below, open_file, resolve


def descend(root: str | Path, *names: str) -> Path:
    """Go down into those of these folders that are there: users name one of them."""
    path = Path(root)
    for name in names:
        path = below if is_folder(below := resolve(path / name)) else path
    return path


def existing_folder(path: Path, what: str = "folder", *, allowed: str = "") -> Path:
    """Return the path if it is a folder, or that of the archive in its place."""
    place = resolve(path)
    if not is_folder(place):
        todo = advice_on_archives(path) or "correct `root` or download the data"
        raise UserError(f"{what} {path} does not exist", allowed=allowed, todo=todo)
    return place


def existing_file(path: Path) -> Path:
    """Return the path if it is a file, or that into the archive which holds it."""
    place = resolve(path)
    if not is_file(place):
        raise UserError(f"{path} does not exist", todo="correct `root` or download the data")
    return place


def subfolders(path: Path) -> list[str]:
    """Names of the folders in a folder, none hidden, sorted.

    Raises:
        UserError: one of them is a link to a folder above it, or two are the same folder: it would be counted twice.
    """
    if (members := members_below(path)) is not None:
        return sorted({name.split("/")[0] for name, _ in members if "/" in name})
    names = sorted(p.name for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    seen = dict.fromkeys((path.resolve(), *path.resolve().parents), "a folder above it")
    for name in names:
        real = (path / name).resolve()
        if real in seen:
            raise UserError(f"{path / name} is a link to {seen[real]}", todo="remove the link")
        seen[real] = name
    return names


def require_apart(training: Iterable[str | Path], validation: Iterable[str | Path]) -> None:
    """Require that no file is in both splits, also not by a link from one folder to the other.

    Raises:
        UserError: the first file that is.
    """
    real: dict[str, str] = {}

    def identity(path: str | Path) -> tuple[str, str]:
        folder, name = os.path.split(path)
        if folder not in real:
            real[folder] = os.path.realpath(folder)
        return real[folder], name

    first = set(map(identity, training))
    if both := next((path for path in validation if identity(path) in first), None):
        raise UserError(
            f"{both} is in the training and in the validation split", todo="correct the splits, or remove the link between them"
        )


def read_text(path: Path) -> str:
    """Read a text file in UTF-8; a byte order mark is no part of it."""
    try:
        with open_file(path) as file:
            return io.TextIOWrapper(file, encoding="utf-8-sig").read()
    except (OSError, UnicodeDecodeError) as error:
        why = "is no text in UTF-8" if isinstance(error, UnicodeDecodeError) else f"cannot be read: {error.strerror}"
        raise UserError(f"{path} {why}", todo="download it again") from error


def read_list(path: str | Path, *, todo: str) -> list[str]:
    """Read names from a text file, one a line; blank lines, CRLF and a byte order mark count for nothing.

    Raises:
        UserError: no such list (named with those that are there), no name in it, a name twice, or one that leads out of the folder.
    """
    path = resolve(path)
    if not is_file(path):
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt")))
        raise UserError(f"list {path} does not exist", allowed=there, todo=todo)
    lines = [(number, line.strip()) for number, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]
    if not lines:
        raise UserError(f"list {path} is empty", todo=todo)
    first: dict[str, int] = {}
    for number, name in lines:
        require_inside(name, f"{path}, line {number}")
        if name in first:
            raise UserError(f"{path}, line {number}: {name} is in line {first[name]}, too, and would be counted twice", todo="remove one")
        first[name] = number
    return list(first)


def require_inside(name: str, where: str) -> None:
    """Refuse a file name that leads out of its folder, or that is no name."""
    parts = name.replace("\\", "/").split("/")
    too_long = any(len(part.encode(errors="replace")) > 255 for part in parts)
    if ".." in parts or "." in parts or "" in parts or not name.isprintable() or too_long:
        shown = ascii(name) if len(name) < 80 else f"{name[:70]!a}..."
        raise UserError(f"{where}: {shown} is no file inside its folder", allowed="names without .., . or a leading /")


def choose_names(names: Sequence[str], only: Sequence[str] | None, where: Path) -> list[str]:
    """Return the wanted ones of the names, in their own order; all by default."""
    unknown = [name for name in only or [] if name not in names]
    if unknown or not names:
        raise UserError(f"{where} does not list {unknown[0]}" if unknown else f"{where} lists no sequence", allowed=", ".join(names[:20]))
    return [name for name in names if only is None or name in only]
