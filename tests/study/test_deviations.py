"""The page on switches says what the settings say."""

import subprocess
import sys
from typing import get_args

import pytest

from densewalk.study import registry
from densewalk.study.deviations import page
from tests.fixtures.studies import REPOSITORY

SETTINGS = {**registry.methods(), **registry.evaluations()}


def test_the_page_is_in_step_with_the_settings() -> None:
    stored = (REPOSITORY / "docs" / "deviations.md").read_text()
    assert stored == page(), "run `make format` and commit docs/deviations.md"


def test_the_command_prints_the_page_without_torch() -> None:
    code = "import sys; from densewalk.__main__ import main; sys.argv[1:] = ['deviations']; main(); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == page()


@pytest.mark.parametrize("name", SETTINGS)
def test_every_switch_has_its_facts(name: str) -> None:
    settings = SETTINGS[name]
    section = page().partition(f"`{name}`\n")[2].partition("\n## ")[0]
    for switch, facts in settings.switches().items():
        assert f"\n| `{switch}` | " in section
        if facts.by:
            assert set(facts.values) == set(get_args(settings.model_fields[facts.by].annotation)), "a value for each mode"
        assert facts.by == "recipe" or (facts.effect and facts.source)


def test_switches_that_change_no_hash_until_they_are_used() -> None:
    for protocol in ("incontext", "linear_segmentation", "overcluster", "unsupervised_segmentation"):
        settings = SETTINGS[protocol](root=".", dataset="x", layout="voc")
        assert settings.switches().keys().isdisjoint(settings.model_dump(mode="json"))
        for switch, facts in settings.switches().items():
            changed = type(settings)(root=".", dataset="x", layout="voc", **{switch: facts.values["released"]})
            assert changed.model_dump(mode="json") == {**settings.model_dump(mode="json"), switch: facts.values["released"]}
            assert switch in changed.protocol, "another protocol"
            released = changed.model_copy(update={"compat": "released", "dataset": "PascalVOC"})
            assert released.published_protocol is None
