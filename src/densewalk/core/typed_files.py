"""Files that one process writes and another reads: each is one pydantic model, and damage is one clear error."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from densewalk.core.errors import UserError
from densewalk.core.files import read_json, write_json
from densewalk.core.text.complaints import brief, complaints

Model = TypeVar("Model", bound=BaseModel)


def read_model(path: str | Path, model: type[Model], what: str, todo: str) -> Model:
    """Read a JSON file as a model; a number written as text is not taken for a number.

    Args:
        what: the file is, for the message, e.g. `result record`. todo: what a person can do about a broken one.

    Raises:
        UserError: it is missing, is not JSON, or does not hold what the model asks for; the message names file and key.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is no {what}: it holds {brief(content)}, not an object", todo=todo)
    if problems := list(_not_finite(content)):
        raise UserError(f"{path} is no {what}: {'; '.join(problems)}", todo=todo)
    try:
        return model.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        keys_differ = any(e["type"] in ("missing", "extra_forbidden") for e in error.errors())
        version = " (written by another version of densewalk?)" if keys_differ else ""
        raise UserError(f"{path} is no {what}: {'; '.join(complaints(error))}{version}", todo=todo) from error


def write_model(path: str | Path, content: BaseModel) -> None:
    """Write a model as JSON, atomically."""
    write_json(path, content.model_dump(mode="json"))


def _not_finite(value: Any, key: str = "") -> Iterator[str]:
    """Name the numbers that are NaN or infinite, which Python reads although JSON has none."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{key}: not a finite number (found {value})"
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in items:
        yield from _not_finite(inner, f"{key}.{name}" if key else str(name))
