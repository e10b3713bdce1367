"""Names of protocols: what is published, and how ours differs from it."""

from typing import Any

from pydantic_core import PydanticUndefined

from densewalk.evaluations.common.settings import EvaluationSettings

# where the data lie, what their labels are called and how memory is saved changes no number; a preset is what it sets
WITHOUT_EFFECT = {"root", "dataset", "images", "masks", "class_names", "gradient_checkpointing", "preset"}


def changes(settings: EvaluationSettings, *shown: str) -> list[str]:
    """`name value` of every setting that differs from its default, in alphabetical order, but for those in `shown`."""
    found = []
    for name, field in sorted(type(settings).model_fields.items()):
        value, default = getattr(settings, name), field.get_default(call_default_factory=True)
        if name not in WITHOUT_EFFECT and name not in shown and default is not PydanticUndefined and value != default:
            found.append(f"{name} {_brief(value)}")
    return found


def as_published(settings: EvaluationSettings) -> bool:
    """Whether every setting that matters is its preset's."""
    plain = {name: getattr(settings, name) for name in WITHOUT_EFFECT & type(settings).model_fields.keys()}
    return settings == type(settings)(**plain)


def _brief(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "/".join(_brief(v) for v in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
