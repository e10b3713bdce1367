"""Where data sets lie: the checks that every layout makes, and what is said when something is not there."""

from pathlib import Path

from densewalk.core.errors import UserError


def descend(root: Path, name: str) -> Path:
    """The folder `name` below `root`, or `root` itself where there is none: users name either."""
    return root / name if (root / name).is_dir() else root


def existing_folder(path: Path, what: str = "folder", *, allowed: str = "") -> Path:
    """The path.

    Raises:
        UserError: it is no folder.
    """
    if not path.is_dir():
        raise UserError(f"{what} {path} does not exist", allowed=allowed, todo="correct `root` or download the data")
    return path


def text_of(path: Path) -> str:
    """A text file's content.

    Raises:
        UserError: it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = "is no text" if isinstance(error, UnicodeDecodeError) else f"cannot be read: {error.strerror}"
        raise UserError(f"{path} {why}", todo="download it again") from error


def existing_file(path: Path) -> Path:
    """The path.

    Raises:
        UserError: it is no file.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist", todo="correct `root` or download the data")
    return path
