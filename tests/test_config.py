import copy
import json
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densewalk.config import Evaluation, json_schema, load_study, parse_evaluation, parse_study, parse_training
from densewalk.errors import UserError
from densewalk.provenance import canonical, config_hash, derive_seed
from tests.studies import REPOSITORY, TINY


def changed(**paths):
    """TINY with dotted keys replaced."""
    config = copy.deepcopy(TINY)
    for path, value in paths.items():
        *parents, last = path.split("__")
        place = config
        for key in parents:
            place = place[key]
        place[last] = value
    return config


def test_the_schema_is_in_step_with_the_models():
    stored = json.loads((REPOSITORY / "workflow" / "schemas" / "config.schema.json").read_text())
    assert stored == json.loads(json.dumps(json_schema())), "run `make format` and commit workflow/schemas/config.schema.json"


def test_every_key_is_described():
    undescribed = []
    for name, model in json_schema()["$defs"].items():
        for key, value in model.get("properties", {}).items():
            if "description" not in value and "const" not in value and key not in ("settings", "$ref"):
                undescribed.append(f"{name}.{key}")
    assert undescribed == []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (changed(runs__dora__settings__stepz=3), "runs.dora.dora.settings.stepz"),
        (changed(runs__dora__settings__epochs=3), "exactly one of epochs and steps"),
        (changed(runs__dora__data=["venice"]), "'venice' is neither a video nor an image folder; allowed: walk, coco"),
        (changed(runs__dora__init="start"), "runs.dora.arch: give it exactly where init is random"),
        (changed(runs__start__arch=None), "runs.start.arch"),
        (changed(runs__start__seeds=[1, 1]), "seed twice"),
        (changed(runs__neco_dora__init="neco_dora"), "a circle, neco_dora -> neco_dora"),
        (changed(runs__neco_dora__seeds=[5], runs__dora__seeds=[0, 1]), "dora has no seed 5"),
        (changed(evaluations__davis__runs=["nobody"]), "evaluations.davis.runs: no such run: nobody"),
        (changed(images={"walk": {"source": "x"}}), "used twice as a name: walk"),
        (changed(evaluations__davis__protocol="davos"), "davos"),
        (changed(runs__state=TINY["runs"]["start"]), "the name 'state' is taken"),
        (changed(execution__workers=-1), "execution.workers"),
        (changed(tables=["davis", "dancing"]), "tables.1: no such table: 'dancing'; allowed: ade20k, coco, "),
    ],
)
def test_what_is_wrong_is_named(config, message):
    with pytest.raises(UserError, match=r"config\.yaml") as error:
        parse_study(config)
    assert message in str(error.value)


def test_tables_follow_from_the_evaluations():
    tasks = [member.model_fields["settings"].annotation.TASK for member in get_args(get_args(Evaluation)[0])]
    allowed = json_schema()["properties"]["tables"]["anyOf"][0]["items"]["enum"]
    assert set(allowed) == set(tasks)
    assert sorted(allowed, key=tasks.index) == allowed
    assert parse_study(TINY).task_tables == ["davis", "incontext"]
    assert parse_study(changed(tables=["incontext", "ade20k"])).task_tables == ["ade20k", "incontext"]
    assert parse_study(changed(tables=[])).task_tables == []


def test_a_run_is_known_by_all_it_is_built_on():
    one, two = parse_study(TINY), parse_study(changed(runs__dora__settings__objects=2))
    hashes = [[config_hash(s.run_spec(run, 0)) for run in ("start", "dora", "neco_dora")] for s in (one, two)]
    assert hashes[0][0] == hashes[1][0]
    assert hashes[0][1] != hashes[1][1]
    assert hashes[0][2] != hashes[1][2], "NeCo starts from another backbone: its old state must not be resumed"


def test_execution_enters_no_specification():
    one, two = parse_study(TINY), parse_study(changed(execution__workers=7))
    assert one.run_spec("dora", 0) == two.run_spec("dora", 0)
    assert one.evaluation_spec("dora", 0, "davis") == two.evaluation_spec("dora", 0, "davis")


def test_a_change_of_the_labels_alone_reruns_no_training():
    labels = {"method": "DoRA", "arch": "ViT-S/16"}
    one, two = parse_study(TINY), parse_study(changed(runs__dora__labels=labels))
    assert one.run_spec("dora", 0) == two.run_spec("dora", 0)


@pytest.mark.parametrize("path", ["config.yaml", "demo/config.yaml"])
def test_specifications_survive_the_command_line(path):
    study = load_study(REPOSITORY / path)
    for run, seed in study.jobs():
        spec = json.loads(json.dumps(study.run_spec(run, seed)))
        assert canonical(spec) == canonical(study.run_spec(run, seed))
        if "settings" in spec:
            again = parse_training(spec["method"], spec["settings"])
            assert again.model_dump(mode="json") == spec["settings"], "resolving twice changes nothing"
    for job in study.evaluation_jobs():
        spec = json.loads(json.dumps(study.evaluation_spec(*job)))
        settings = parse_evaluation(spec["protocol"], spec["settings"])
        assert settings.model_dump(mode="json") == spec["settings"]
        assert settings.protocol


def test_a_run_takes_its_own_seed_of_what_it_is_built_on():
    study = parse_study(changed(runs__dora__seeds=[0, 1], runs__neco_dora__seeds=[0, 1]))
    assert study.run_spec("neco_dora", 1)["init"]["seed"] == 1
    study = parse_study(changed(runs__neco_dora__seeds=[0, 1, 2]))
    assert study.run_spec("neco_dora", 2)["init"]["seed"] == 0


def test_a_file_that_is_no_study(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_study(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("runs: [")
    with pytest.raises(UserError, match="is not YAML"):
        load_study(tmp_path / "config.yaml")
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(UserError, match="study: Field required"):
        load_study(tmp_path / "config.yaml")


@given(st.lists(st.one_of(st.integers(), st.text()), max_size=4), st.lists(st.one_of(st.integers(), st.text()), max_size=4))
def test_seeds_depend_on_every_part(one, two):
    assert (derive_seed(*one) == derive_seed(*two)) == (one == two)
    assert 0 <= derive_seed(*one) < 2**63
