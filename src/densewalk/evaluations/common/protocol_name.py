"""Names of protocols in the tables: two numbers are comparable only if these are equal.

    short_side: Annotated[int, Shown("short side {} px")] = Field(default=480, ge=32)

A name is the class's RECIPE, the texts of its shown fields, and `name value` of every other field that differs from its default.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

# where the data lie, what their labels are called and how memory is saved changes no number; a preset is what it sets
WITHOUT_EFFECT = {"root", "dataset", "images", "masks", "class_names", "gradient_checkpointing", "preset"}


@dataclass(frozen=True)
class Shown:
    """Marks a field whose value every name contains; a field that overrides a marked one stays marked.

    text: a format of the value, or a function of the settings; empty where the text of another field contains this value.
    place: `first` and `last` are before all texts and after the changed fields. The other texts have the order of the fields.
    """

    text: str | Callable[[Any], str] = ""
    place: Literal["first", "middle", "last"] = "middle"


SHOWN_BY_ANOTHER = Shown()


def protocol_name(settings: Any) -> str:
    """The protocol's name in the tables."""
    marks = shown_fields(type(settings))

    def texts(place: str) -> list[str]:
        return [_text(settings, name, mark.text) for name, mark in marks.items() if mark.place == place]

    changes = [f"{name} {_brief(value)}" for name, value in changed_fields(settings).items() if name not in marks]
    parts = [settings.RECIPE, *texts("first"), *texts("middle"), *changes, *texts("last")]
    return ", ".join(part for part in parts if part)


def shown_fields(model: type[BaseModel]) -> dict[str, Shown]:
    """The marks of a class's fields, in the order of the fields."""
    bases = [base for base in reversed(model.__mro__) if issubclass(base, BaseModel)]
    marks = {
        name: mark for base in bases for name, field in base.model_fields.items() for mark in field.metadata if isinstance(mark, Shown)
    }
    return {name: marks[name] for name in model.model_fields if name in marks}


def changed_fields(settings: BaseModel, recipe: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Values of the fields that change numbers and differ from `recipe` or their defaults, in alphabetical order."""
    found = {}
    for name, field in sorted(type(settings).model_fields.items()):
        default = (recipe or {}).get(name, field.get_default(call_default_factory=True))
        if name not in WITHOUT_EFFECT and not field.is_required() and getattr(settings, name) != default:
            found[name] = getattr(settings, name)
    return found


def is_published(settings: Any, *free: str) -> bool:
    """True where every field that changes numbers, except the `free` ones, has its preset's value or its default."""
    recipe = settings.PRESETS[settings.preset] if "preset" in type(settings).model_fields else {}
    return changed_fields(settings, recipe).keys() <= set(free)


def _text(settings: Any, name: str, text: str | Callable[[Any], str]) -> str:
    return text.format(getattr(settings, name)) if isinstance(text, str) else text(settings)


def _brief(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "/".join(_brief(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
