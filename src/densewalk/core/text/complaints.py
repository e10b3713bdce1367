"""Say what is wrong with a file's content: one line for each key, named as the file names it. Free of torch.

pydantic's places hold the tags of unions (`runs.dora.dora.settings.lr`), which no file has; they are found by walking the model.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from densewalk.core.settings import FOLDER_PATTERN, NAME_PATTERN
from densewalk.core.text.docstrings import attribute_docstrings

MOST_SHOWN = 40  # characters of a value that is quoted
LONG = 80  # characters of a message that is not repeated for each key
# what a text must match -> the same in words
PATTERNS = {
    NAME_PATTERN: "a name has lower-case letters, digits and _, a letter first",
    FOLDER_PATTERN: "a folder inside the study's folder is needed, such as results or results/dora",
}
MAPPING = "keys with values, such as {a: 1, b: 2}, are needed"
# pydantic's kind of error -> our words
WORDS = {
    "model_type": MAPPING,
    "model_attributes_type": MAPPING,
    "dict_type": MAPPING,
    "tuple_type": "a list is needed",
}


def complaints(error: ValidationError, model: type[BaseModel] | None = None, most: int = 5) -> list[str]:
    """List the first things that are wrong, each as `key: message (found ...)`, and how many more there are.

    Args:
        model: that the content of a person's file was to be; without it, messages and places are pydantic's.
    """
    lines = _merged(_complaints(error, model))
    return lines if len(lines) <= most else [*lines[:most], f"and {len(lines) - most} more"]


def _merged(lines: Iterable[str]) -> list[str]:
    """Each line once; a long message that several keys have, once after all of these."""
    keys: dict[tuple[str, str], list[str]] = {}
    for line in dict.fromkeys(lines):
        key, colon, message = line.partition(": ")
        same = ("", message) if len(message) > LONG else (key, message)
        keys.setdefault(same, []).append(f"{key}{colon}")
    return [
        f"{', '.join(key.removesuffix(': ') for key in own[:-1])}{', ' * (len(own) > 1)}{own[-1]}{text}" for (_, text), own in keys.items()
    ]


def did_you_mean(name: str, known: Iterable[str], most: int = 1) -> str:
    """`, did you mean this?`, if one of the known names is near; else nothing."""
    folded = {other.casefold(): other for other in reversed(list(known))}
    near = difflib.get_close_matches(name.casefold(), folded, n=most)
    near = near or [other for other in folded if name in (other, _initials(other)) or _initials(name) == other]  # lr, learning_rate
    return f", did you mean {' or '.join(folded[other] for other in near[:most])}?" if near else ""


def _initials(name: str) -> str:
    words = name.split("_")
    return "".join(word[:1] for word in words) if len(words) > 1 else name


def brief(value: object, most: int = MOST_SHOWN) -> str:
    """The value as Python writes it, cut to `most` characters."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _complaints(error: ValidationError, model: type[BaseModel] | None, prefix: str = "") -> Iterator[str]:
    for e in error.errors(include_url=False):
        keys, models, annotation = _walk(model, e["loc"])
        context = e.get("ctx", {})
        if isinstance(inner := context.get("error"), ValidationError):
            yield from _complaints(inner, None, f"{prefix}{'.'.join(keys)}.")
            continue
        if model is None:  # a file that a program writes: nobody has mistyped its keys
            key, found = prefix + ".".join(keys), f" (found {brief(e['input'])})"
            message = e["msg"].removeprefix("Value error, ") + ("" if e["type"] in ("missing", "value_error", "extra_forbidden") else found)
            yield f"{key}: {message}" if key else message
            continue
        if (tag := context.get("discriminator")) is not None:
            keys = [*keys, tag.strip("'")]
        message = _message(e, keys, models, annotation)
        # a validator of a whole model may begin with the field that it means
        field, colon, rest = message.partition(": ")
        if e["type"] == "value_error" and colon and models and isinstance(annotation, type) and field in _fields(annotation):
            keys, message = [*keys, field], rest
        key = prefix + ".".join(keys)
        yield f"{key}: {message}" if key else message


def _message(e: Any, keys: Sequence[str], models: Sequence[type[BaseModel]], annotation: Any) -> str:
    kind, context = e["type"], e.get("ctx", {})
    found = f" (found {brief(e['input'])})"
    match kind:
        case "extra_forbidden":
            return _unknown_key(keys, models)
        case "missing":
            choices = [str(choice) for choice in get_args(annotation)] if get_origin(annotation) is Literal else []
            return "Field required" + (f"; allowed: {', '.join(choices)}" if choices else _described(keys, models))
        case "value_error":
            return str(e["msg"].removeprefix("Value error, "))
        case "union_tag_not_found":
            return f"Field required; allowed: {', '.join(_tags(annotation, keys[-1]))}"
        case "union_tag_invalid":
            allowed = _tags(annotation, keys[-1])
            return f"no such {keys[-1]}: '{context['tag']}'{did_you_mean(str(context['tag']), allowed)}; allowed: {', '.join(allowed)}"
        case "string_pattern_mismatch" if context["pattern"] in PATTERNS:
            return f"{PATTERNS[context['pattern']]}{found}"
        case "too_short":
            return f"at least {context['min_length']} needed{found}"
        case "list_type" if isinstance(e["input"], str | int | float) and not isinstance(e["input"], bool):
            return f"{e['msg']}: write [{e['input']}]{found}"
    return f"{WORDS.get(kind, e['msg'])}{found}"


def _unknown_key(keys: Sequence[str], models: Sequence[type[BaseModel]]) -> str:
    """A key that its model does not have: the nearest one that it has, or the place where a key of this name belongs."""
    name, own = keys[-1], list(models[-1].model_fields)
    tags = [f" (it has {field}: {_literals(models[-1], field)[0]})" for field in own if len(_literals(models[-1], field)) == 1]
    place, hint = f"there is no key '{name}' here", did_you_mean(name, own)
    if inside := [f"{field}.{name}" for field in own if name in _fields(models[-1].model_fields[field].annotation)]:
        hint = f", did you mean {inside[0]}?"
    elif above := [level for level in range(len(models) - 1) if name in models[level].model_fields and level > 0]:
        hint = f", did you mean {'.'.join([*keys[: above[-1] - len(models)], name])}?"
    return f"{place}{hint or ''.join(tags)}; allowed: {', '.join(own)}"


def _described(keys: Sequence[str], models: Sequence[type[BaseModel]]) -> str:
    """The first sentence on a field that is missing, and the keys that are known beside it."""
    text = attribute_docstrings(models[-1]).get(keys[-1], "") if models and keys else ""
    first = re.split(r"(?<=[a-z\d)`])(?<!\be\.g)(?<!\bi\.e)[.;:] |\.$|\n\n", text, maxsplit=1)[0]
    return f" ({' '.join(first.split())})" if first else ""


# -- the place in the model ----------------------------------------------------------------------------------------------


def _walk(model: type[BaseModel] | None, place: Sequence[str | int]) -> tuple[list[str], list[type[BaseModel]], Any]:
    """The keys of a place as a file has them, the models on the way, and the annotation of what is there (None if unknown)."""
    keys: list[str] = []
    models: list[type[BaseModel]] = []
    current: Any = model
    for part in place:
        members = _members(current)
        if len(members) > 1:  # the part names a member of the union
            named = [m for m in members if _is_named(m, part)]
            current = named[0] if named else None
            continue
        current = members[0] if members else None
        if part == "[key]":
            continue
        keys.append(str(part))
        if isinstance(current, type) and issubclass(current, BaseModel):
            models.append(current)
            field = current.model_fields.get(str(part))
            current = field.annotation if field else None
        elif get_origin(current) in (dict, list, tuple):
            arguments = get_args(current)
            current = arguments[-1] if get_origin(current) is not tuple or Ellipsis not in arguments else arguments[0]
        else:
            current = None
    members = _members(current)
    return keys, models, members[0] if len(members) == 1 else current


def _members(annotation: Any) -> list[Any]:
    """The members of a union but for None, one of any other annotation, none of what is unknown."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if annotation is None or annotation is type(None):
        return []
    if get_origin(annotation) in (Union, UnionType):
        return [member for part in get_args(annotation) for member in _members(part)]
    return [annotation]


def _is_named(member: Any, tag: str | int) -> bool:
    """Whether a member of a union goes by this tag: a value of one of its Literals, or its own name."""
    return any(tag in _literals(member, field) for field in _fields(member)) or getattr(member, "__name__", "") == tag


def _fields(annotation: Any) -> list[str]:
    """Names of the fields, if it is a model."""
    found = _members(annotation)
    model = found[0] if len(found) == 1 else None
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _literals(member: Any, field: str) -> tuple[Any, ...]:
    annotation = member.model_fields[field].annotation
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _tags(union: Any, field: str) -> list[str]:
    """The values of a union's discriminating field."""
    return [str(value) for member in _members(union) if field in _fields(member) for value in _literals(member, field)]
