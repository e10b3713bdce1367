from typing import Literal

import pytest

from densewalk.core.settings import Settings, Switch, switch


class Example(Settings):
    """One switch of each kind."""

    compat: Literal["paper", "released"] = "paper"
    """Mode."""
    variant: Literal["long", "short"] = "long"
    """Length."""
    old: int | None = switch(paper=1, released=2, effect="twice as much", source="main.py:3")
    """A number."""
    new: bool | None = switch(omit_null=True, paper=False, released=True, effect="e", source="s")
    """Newer than stored results."""
    steps: int | None = switch(by="variant", long=9, short=3)
    """Steps."""
    fixed: bool = switch(default=True, paper=False, released=True, effect="e", source="s")
    """In both modes."""


class Extended(Example):
    """Switches are inherited."""

    other: bool | None = switch(paper=True, released=False, effect="e", source="s")
    """Another."""


def values(settings: Example) -> tuple[object, ...]:
    return settings.old, settings.new, settings.steps, settings.fixed


def test_a_null_switch_follows_the_setting_that_decides() -> None:
    assert values(Example().resolved()) == (1, False, 9, True)
    assert values(Example(compat="released", variant="short").resolved()) == (2, True, 3, True)
    assert values(Example(compat="released", old=7, new=False, steps=1, fixed=False).resolved()) == (7, False, 1, False)
    resolved = Extended(compat="released").resolved()
    assert (resolved.old, resolved.other) == (2, False)
    assert resolved.resolved() == resolved
    assert [*Extended.switches()] == ["old", "new", "steps", "fixed", "other"]


def test_a_dump_has_null_where_unset_but_for_switches_newer_than_results() -> None:
    plain = {"compat": "paper", "variant": "long", "old": None, "steps": None, "fixed": True}
    assert Example().model_dump(mode="json") == plain
    assert Example(new=False).model_dump(mode="json") == {**plain, "new": False}
    assert Example.model_validate(Example(new=True).model_dump(mode="json")) == Example(new=True)


def test_the_schema_tells_values_effect_and_source() -> None:
    described = {name: field["description"] for name, field in Example.model_json_schema()["properties"].items()}
    assert described["old"] == "A number. [null follows compat: paper 1, released 2; twice as much; main.py:3]"
    assert described["steps"] == "Steps. [null follows variant: long 9, short 3]"
    assert described["fixed"] == "In both modes. [paper false, released true; e; s]"


def test_facts_and_defaults() -> None:
    assert Example.switches()["old"] == Switch("compat", {"paper": 1, "released": 2}, "twice as much", "main.py:3")
    assert Example.switches()["fixed"].by is None
    with pytest.raises(ValueError, match="frozen"):
        Example().old = 3  # type: ignore[misc]
