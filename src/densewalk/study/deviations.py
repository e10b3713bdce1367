"""docs/deviations.md: every switch of every method and evaluation, as their settings declare it. Free of torch.

densewalk deviations > docs/deviations.md      # `make format` does it
"""

from collections.abc import Iterator, Sequence
from inspect import cleandoc
from itertools import groupby
from typing import Any

from pydantic.fields import FieldInfo

from densewalk.core.settings import Settings, Switch
from densewalk.core.text.docstrings import attribute_docstrings
from densewalk.study import registry

INTRODUCTION = """\
# Where the released code differs from the papers

`compat: paper` (default) is the method as published. `compat: released` reproduces the released code's known deviations to the
digit. Each deviation is a setting of its own, so that one can be studied alone: `settings: {compat: paper, loss_carry_over: true}`.
The column `compat` of every table says which mode a row used. File and line are the released code's.

This page is made from the settings, `methods/*/settings.py` and `evaluations/*/settings.py` in `src/densewalk`: edit those and run
`make format`.
"""


def page() -> str:
    """The page as Markdown: a section for each method and evaluation that has a switch or a difference."""
    parts = [INTRODUCTION]
    for kind, found in (("Method", registry.methods()), ("Evaluation", registry.evaluations())):
        for name, settings in sorted(found.items()):
            if tables := [*_switches(settings), *_differences(settings)]:
                parts += [f"## {kind} `{name}`", cleandoc(settings.__doc__ or ""), *tables]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _switches(settings: type[Settings]) -> Iterator[str]:
    """A table for each setting that decides: `compat`, and others such as Time-Tuning's `variant`."""
    by_modes = sorted(settings.switches().items(), key=lambda item: "paper" not in item[1].values)
    for modes, group in groupby(by_modes, key=lambda item: tuple(item[1].values)):
        texts = attribute_docstrings(settings)
        rows = [_row(name, settings.model_fields[name], texts[name], facts) for name, facts in group]
        yield _table(["switch", "what it does", *modes, "effect", "source"], rows)


def _row(name: str, field: FieldInfo, text: str, facts: Switch) -> list[str]:
    effect = facts.effect if facts.by else f"{facts.effect}; default {_value(field.default)}"
    return [f"`{name}`", text, *map(_value, facts.values.values()), effect, facts.source]


def _differences(settings: type[Settings]) -> Iterator[str]:
    rows = [[difference.released, difference.here, difference.source] for difference in settings.NOT_REPRODUCED]
    if rows:
        yield _table(["released, not reproduced", "here", "source"], rows)


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else str(value)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Without the columns in which every row is empty."""
    kept = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    lines = [[heads[i] for i in kept], ["---"] * len(kept), *([row[i].replace("\n", " ") for i in kept] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
