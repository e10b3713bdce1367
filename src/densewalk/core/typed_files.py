"""Files that one process writes and another reads: each is one pydantic model, and damage is one clear error."""

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from densewalk.core.errors import UserError
from densewalk.core.files import read_json, write_json

Model = TypeVar("Model", bound=BaseModel)


def read_model(path: str | Path, model: type[Model], what: str, todo: str) -> Model:
    """The content of a JSON file as a model.

    Args:
        what: the file is, for the message, e.g. `result record`. todo: what a person can do about a broken one.

    Raises:
        UserError: it is missing, is not JSON, or does not hold what the model asks for; the message names file and key.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is no {what}: it holds {_brief(content)}, not an object", todo=todo)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{path} is no {what}: {'; '.join(complaints(error))}", todo=todo) from error


def write_model(path: str | Path, content: BaseModel) -> None:
    """Write a model as JSON, atomically."""
    write_json(path, content.model_dump(mode="json"))


def complaints(error: ValidationError, most: int = 5) -> list[str]:
    """The first things that are wrong, each as `key: message (found ...)`."""
    lines = []
    for e in error.errors(include_url=False)[:most]:
        key = ".".join(str(part) for part in e["loc"])
        message = e["msg"].removeprefix("Value error, ")
        found = "" if e["type"] in ("missing", "value_error", "extra_forbidden") else f" (found {_brief(e['input'])})"
        lines.append(f"{key}: {message}{found}" if key else f"{message}{found}")
    return lines


def _brief(value: object, most: int = 40) -> str:
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."
