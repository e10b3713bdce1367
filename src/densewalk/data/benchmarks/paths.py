"""Files and folders of benchmarks. What is missing or no text is a UserError that names it."""

from collections.abc import Sequence
from pathlib import Path

from densewalk.core.errors import UserError


def descend(root: str | Path, *names: str) -> Path:
    """Go down into those of these folders that are there: users name one of them."""
    path = Path(root)
    for name in names:
        path = path / name if (path / name).is_dir() else path
    return path


def existing_folder(path: Path, what: str = "folder", *, allowed: str = "") -> Path:
    """Return the path if it is a folder."""
    if not path.is_dir():
        raise UserError(f"{what} {path} does not exist", allowed=allowed, todo="correct `root` or download the data")
    return path


def existing_file(path: Path) -> Path:
    """Return the path if it is a file."""
    if not path.is_file():
        raise UserError(f"{path} does not exist", todo="correct `root` or download the data")
    return path


def read_text(path: Path) -> str:
    """Read a text file."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = "is no text" if isinstance(error, UnicodeDecodeError) else f"cannot be read: {error.strerror}"
        raise UserError(f"{path} {why}", todo="download it again") from error


def read_list(path: str | Path, *, todo: str) -> list[str]:
    """Read names from a text file, one a line; an error names the lists that are there."""
    path = Path(path)
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt")))
        raise UserError(f"list {path} does not exist", allowed=there, todo=todo)
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not names:
        raise UserError(f"list {path} is empty", todo=todo)
    return names


def choose_names(names: Sequence[str], only: Sequence[str] | None, where: Path) -> list[str]:
    """Return the wanted ones of the names, in their own order; all by default."""
    unknown = [name for name in only or [] if name not in names]
    if unknown or not names:
        raise UserError(f"{where} does not list {unknown[0]}" if unknown else f"{where} lists no sequence", allowed=", ".join(names[:20]))
    return [name for name in names if only is None or name in only]
