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
    """Give a temporary file that replaces `path` if the block succeeds, and is removed if not.

    The folder is created here: a workflow may have removed an empty one meanwhile.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)  # can only be read by setting it
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # some writers make files that nobody else can read
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write indented JSON atomically; NaN is refused because it is not JSON."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file; UserError if it does not exist, cannot be read, or is not JSON."""
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", todo="correct it, or remove it so that it is made again") from error
    except ValueError as error:  # also for bytes that are not text
        raise UserError(f"{path} is not JSON: {error}", todo="delete it, so that it is made again") from error
