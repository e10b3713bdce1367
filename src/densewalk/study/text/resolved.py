"""A study with every setting written out: YAML that reads back as the same study, with the origin of each value."""

from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from densewalk.core.settings import Settings
from densewalk.study.config import Study
from densewalk.study.shorthand.evaluation_presets import expand_evaluations
from densewalk.study.shorthand.sweeps import expand_sweeps

LEGEND = """\
# Every setting of {source}. `default`, `preset`: where the study says nothing. `follows`: the value that null stands for,
# decided by another setting. Variants of a sweep stand behind their run, evaluations of a preset before the others. This is a study, too:
# with the same hashes.
"""


def resolved_yaml(study: Study, written: dict[str, Any], source: str) -> str:
    """Write out every setting of a study.

    Args:
        written: the contents of its file. source: the file's name, for the first line.
    """
    given = {**written, "runs": expand_sweeps(written["runs"]), "evaluations": expand_evaluations(written.get("evaluations", {}))}
    return LEGEND.format(source=source) + "".join(f"{line}\n" for line in _model(study, given, ""))


def _model(model: BaseModel, given: Any, indent: str) -> Iterator[str]:
    """The lines of a model; `given` is what the file has there, None for a model that was added to the study."""
    known_origin, given = given is not None, given if isinstance(given, dict) else {}
    values = model.model_dump(mode="json")
    for name in type(model).model_fields:
        value, known = getattr(model, name), given.get(name)
        if isinstance(value, BaseModel):
            yield f"{indent}{name}:"
            yield from _model(value, (known or {}) if known_origin else None, f"{indent}  ")
        elif isinstance(value, dict) and any(isinstance(member, BaseModel) for member in value.values()):
            yield f"{indent}{name}:"
            for key, member in value.items():
                yield f"{indent}  {_scalar(key)}:{'' if key in (known or {}) else '  # added: its public name stands in the study'}"
                yield from _model(member, (known or {}).get(key), f"{indent}    ")
        else:
            origin = _origin(model, name, name in given) if known_origin else ""
            yield f"{indent}{name}: {_scalar(values.get(name, value))}{f'  # {origin}' if origin else ''}"


def _origin(model: BaseModel, name: str, is_given: bool) -> str:
    """Where the value of a field is from; nothing if the file has it."""
    value, facts = getattr(model, name), model.switches().get(name) if isinstance(model, Settings) else None
    if facts is not None and facts.by is not None and value is None:
        decided = getattr(model, facts.by)
        return f"follows {facts.by} {decided}: {_scalar(facts.values[decided])}"
    if is_given:
        return ""
    preset = getattr(model, "preset", None)
    recipe = getattr(type(model), "PRESETS", {}).get(preset, {})
    if name in recipe and value == recipe[name]:
        return f"preset {preset}"
    field = type(model).model_fields[name]
    return "default" if value == field.get_default(call_default_factory=True, validated_data={}) else "follows from the others"


def _scalar(value: Any) -> str:
    """A value in one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10**9).removesuffix("\n").removesuffix("\n...")
