"""What every settings model shares: strictness, and switches whose value another setting decides.

Settings are plain pydantic models without torch, so that Snakemake reads and validates a study within a second.
A default lives here and nowhere else; every field's docstring becomes its description in the JSON schema.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field


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
        """Append the facts to the setting's description in the JSON schema."""
        values = ", ".join(f"{name} {json.dumps(value)}" for name, value in self.values.items())
        follows = f"null follows {self.by}: " if self.by else ""
        facts = [f"{follows}{values}", *([self.effect] if self.effect else []), *([self.source] if self.source else [])]
        schema["description"] += f" [{'; '.join(facts)}]"


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
    """Immutable, and strict about unknown keys: a typing error in a study must not go unnoticed."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)

    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = ()
    """For docs/deviations.md, beside the switches."""

    @classmethod
    def switches(cls) -> dict[str, Switch]:
        """Name -> facts of every switch, in the order in which they are declared."""
        found = {name: field.json_schema_extra for name, field in cls.model_fields.items()}
        return {name: facts for name, facts in found.items() if isinstance(facts, Switch)}

    def resolved(self) -> Self:
        """The same settings with every switch set that was null and follows another setting."""
        following = {name: facts for name, facts in self.switches().items() if facts.by and getattr(self, name) is None}
        return self.model_copy(update={name: facts.values[getattr(self, facts.by)] for name, facts in following.items()})  # type: ignore[arg-type]
