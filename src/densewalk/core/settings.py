"""What every settings model shares: strictness, and switches whose value another setting decides.

Settings are plain pydantic models without torch, so that Snakemake reads and validates a study within a second.
A default lives here and nowhere else; every field's docstring becomes its description in the JSON schema. Docstrings are read when that
is made: reading them takes as long as all the rest of a command's start.
"""

import json
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from densewalk.core.text.docstrings import attribute_docstrings

MOST_STEPS = 10_000_000
"""Most optimizer steps of a training: its schedules are tables with a value for each step, 80 MB each at this length."""
NAME_PATTERN = r"^[a-z][a-z0-9_]*$"
FOLDER_PATTERN = r"^\w[\w.+-]*(/\w[\w.+-]*)*$"
MOST_NAME = 100
"""Most letters of a name: a folder's name holds those of a run and an evaluation, and file systems end at 255 bytes."""


@dataclass(frozen=True)
class Switch:
    """The facts about a setting that follows another one while it is null.

    by: the setting that decides; None where the default stands whatever the others say. values: value of the deciding
    setting -> value of this one, for instance {"paper": False, "released": True}. effect: what the difference does.
    source: section or equation of the paper, file and line of the released code.
    """

    by: str | None
    values: Mapping[str, Any]
    effect: str
    source: str

    def __call__(self, schema: dict[str, Any]) -> None:
        """Write the facts into the JSON schema; `Settings` puts the setting's docstring before them."""
        values = ", ".join(f"{name} {json.dumps(value)}" for name, value in self.values.items())
        follows = f"null follows {self.by}: " if self.by else ""
        facts = [f"{follows}{values}", *([self.effect] if self.effect else []), *([self.source] if self.source else [])]
        schema["description"] = f"[{'; '.join(facts)}]"


def switch(*, by: str = "compat", default: Any = None, effect: str = "", source: str = "", omit_null: bool = False, **values: Any) -> Any:
    """A field with the facts of a `Switch`: `switch(paper=False, released=True, effect=..., source=...)`.

    Args:
        default: of a setting that follows no other one.
        omit_null: leave the field out of dumped settings while it is null. For a switch that is newer than stored results:
            the hashes of studies that do not use it stay as they were.
    """
    facts = Switch(by if default is None else None, values, effect, source)
    return Field(default=default, json_schema_extra=facts, exclude_if=is_null if omit_null else None)


def deviation(*, effect: str, source: str, omit_null: bool = False) -> Any:
    """A switch that is off in the paper and on in the released code."""
    return switch(paper=False, released=True, effect=effect, source=source, omit_null=omit_null)


@dataclass(frozen=True)
class Difference:
    """Something that the released code does and no setting here reproduces."""

    released: str
    here: str
    source: str


def is_null(value: Any) -> bool:
    """For `Field(exclude_if=is_null)`: a field that is newer than stored hashes is left out of them while it is null."""
    return value is None


class Settings(BaseModel):
    """Immutable, and strict about unknown keys: a typing error in a study must not go unnoticed.

    No number is infinite or NaN.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = ()
    """For docs/deviations.md, beside the switches."""

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """With the docstrings of the fields."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).get("properties", {})
        for name, text in attribute_docstrings(cls).items():
            if name in properties:
                facts = properties[name].get("description")
                properties[name]["description"] = f"{text} {facts}" if facts else text
        return schema

    @classmethod
    def switches(cls) -> dict[str, Switch]:
        """Name -> facts of every switch, in the order in which they are declared."""
        found = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
        return {name: facts for name, facts in found.items() if isinstance(facts, Switch)}

    def resolved(self) -> Self:
        """The same settings with every switch set that was null and follows another setting."""
        following = {name: facts for name, facts in self.switches().items() if facts.by and getattr(self, name) is None}
        return self.model_copy(update={name: facts.values[getattr(self, facts.by)] for name, facts in following.items()})  # type: ignore[arg-type]


def truths_for_numbers(parsed: Any, written: Any, key: str = "") -> Iterator[str]:
    """Name the numbers that were written as `true` or `yes`, which pydantic takes for 1.

    Args:
        parsed: a model, or a part of one. written: what it was made from.
    """
    if isinstance(written, bool):
        if not isinstance(parsed, bool) and isinstance(parsed, int | float):
            yield f"{key}: {str(written).lower()} (also yes, no, on, off) is no number"
        return
    pairs: Iterable[tuple[Any, Any, Any]] = ()
    if isinstance(written, dict):
        inside = dict(parsed) if isinstance(parsed, BaseModel) else parsed if isinstance(parsed, dict) else {}
        pairs = ((name, inside[name], value) for name, value in written.items() if name in inside)
    elif isinstance(written, list | tuple) and isinstance(parsed, list | tuple):
        pairs = zip(range(len(written)), parsed, written, strict=False)  # a validator may have changed the length
    for name, part, value in pairs:
        yield from truths_for_numbers(part, value, f"{key}.{name}" if key else str(name))


# -- kinds of fields that several models share ---------------------------------------------------------------------------

Item = TypeVar("Item", bound=Hashable)


def distinct(values: Sequence[Item]) -> Sequence[Item]:
    """The values; ValueError if one stands there twice."""
    if twice := [value for i, value in enumerate(values) if value in values[:i]]:
        raise ValueError(f"{twice[0]!r} stands there twice")
    return values


def _rising(shares: tuple[float, float]) -> tuple[float, float]:
    """A range; ValueError if it ends below its beginning."""
    if shares[0] > shares[1]:
        raise ValueError(f"{shares[0]:g} to {shares[1]:g} is no range: it ends below its beginning")
    return shares


Share = Annotated[float, Field(gt=0, le=1)]
ShareRange = Annotated[tuple[Share, Share], AfterValidator(_rising)]
"""From and to, both above 0 and at most 1."""


def plain_path(text: str) -> str:
    """A path; ValueError if no file system takes it."""
    if not text:
        raise ValueError("an empty path")
    if len(text.encode()) > 4095 or any(len(part.encode()) > 255 for part in text.split("/")):
        raise ValueError("too long for a file system, which takes 255 bytes for a name and 4095 for a path")
    return text


def workflow_path(text: str) -> str:
    """A path that Snakemake gets as a file of a rule; ValueError if it would take a part of it for a wildcard."""
    if "{" in text or "}" in text:
        raise ValueError("a path with { or }, which Snakemake takes for a wildcard; rename the file or folder")
    return plain_path(text)


Unique = AfterValidator(distinct)
"""For a list without repetitions: `Annotated[list[str], Unique]`."""
PathText = Annotated[str, AfterValidator(plain_path)]
WorkflowPath = Annotated[str, AfterValidator(workflow_path)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
"""What every random generator takes."""
LearningRate = Annotated[float, Field(le=1000)]
"""A learning rate: no optimizer in use learns with more; 30 is the largest one that is published."""
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Epochs = Annotated[float, Field(gt=0, le=MOST_STEPS)]
"""Passes over the data; an epoch has at least one step."""
