"""Write files whole or not at all; read and write JSON."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from densewalk.core.errors import UserError


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """A temporary sibling to write to; it takes `path`'s place when the block ends well and is removed when it does not.

    The folder is made here, late on purpose: a workflow may have removed an empty one meanwhile.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())  # some writers keep what they write from everyone else
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    """The process's mask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: str | Path, value: Any) -> None:
    """`value` as indented JSON, atomically; NaN is refused, since no other reader would take it."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """The file's content.

    Raises:
        UserError: there is no such file, it cannot be read, or it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", todo="correct it, or remove it so that it is made again") from error
    except ValueError as error:  # also of bytes that are no text
        raise UserError(f"{path} is not JSON: {error}", todo="delete it, so that it is made again") from error
