"""Damaged studies: each is one error in one line, or a study whose plan and specifications can be made, written and read."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from densewalk.core.errors import UserError
from densewalk.core.hashing import canonical
from densewalk.core.typed_files import write_model
from densewalk.results.plan import read_plan
from densewalk.study.config import Study, load_study
from densewalk.study.specs import read_spec
from tests.fixtures.studies import REPOSITORY, TINY
from tests.fuzz.budget import examples
from tests.fuzz.mutations import damaged, damaged_bytes

SMALL = {
    **TINY,
    "checkpoints": {"own": {"file": "w.pth", "arch": "vit_nano_patch16", "labels": {"method": "DINO", "arch": "ViT"}}},
    "curations": {"pool": {"data": ["walk"], "backbone": "own", "duplicates": 0.9}},
    "pictures": {"images": 2, "sources": ["walk"]},
    "tables": ["davis"],
}
SMALL["runs"] = {**TINY["runs"], "swept": {**TINY["runs"]["neco_dora"], "data": ["pool"], "init": "own", "sweep": {"a": {"steps": 3}}}}


def check(path: Path) -> None:
    """The study's promise."""
    try:
        study = load_study(path)
    except UserError as error:
        refusal = str(error)
    else:
        require_usable(study, path.parent / "results")
        return
    assert str(path) in refusal
    assert "\n" not in refusal


def require_usable(study: Study, results: Path) -> None:
    plan = study.plan()
    write_model(results / "plan.json", plan)
    assert read_plan(results / "plan.json") == plan
    for n, spec in enumerate(study.specifications()):
        assert canonical(spec.model_dump(mode="json")) == canonical(json.loads(spec.model_dump_json()))
        if n < 3:
            spec.write(results)
            assert read_spec(spec.path(results), type(spec)) == spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("studies")


@examples(250)
@given(damaged(SMALL))
def test_a_study_with_wrong_values(folder, config):
    # surrogates and numbers of 400 digits are written as text of YAML, too
    (folder / "config.yaml").write_bytes(yaml.safe_dump(config, sort_keys=False).encode("utf-8", errors="surrogatepass"))
    check(folder / "config.yaml")


@examples(100)
@given(damaged(SMALL))
def test_a_study_in_json_with_wrong_values(folder, config):
    (folder / "config.json").write_text(json.dumps(config))
    check(folder / "config.json")


TEXTS = [yaml.safe_dump(SMALL, sort_keys=False).encode(), (REPOSITORY / "demo/config.yaml").read_bytes()]


@examples(80)
@given(st.sampled_from(TEXTS).flatmap(damaged_bytes))
def test_a_study_with_damaged_text(folder, text):
    (folder / "text.yaml").write_bytes(text)
    check(folder / "text.yaml")


TOKENS = st.sampled_from(
    [*"ab{}[],~#1'\"\n\t", ": ", "- ", "  ", "&x ", "*x", "? ", "!!str ", "!!int ", "|\n", ">\n", "<<", "---", "%YAML 1.1\n", "\ufeff", "é"]
)


@examples(150)
@given(st.lists(TOKENS, max_size=25))
def test_yaml_of_any_shape(folder, tokens):
    (folder / "any.yaml").write_text("".join(tokens))
    check(folder / "any.yaml")
