"""`evaluations: {preset: model_card}`: a list of evaluations under one name."""

import json

import pytest
import yaml

from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.study.config import parse_study
from densewalk.study.registry import parse_evaluation
from densewalk.study.shorthand.evaluation_presets import MODEL_CARD, expand_evaluations
from densewalk.study.text.resolved import resolved_yaml
from tests.fixtures.studies import REPOSITORY

RUNS = {"dino": {"method": "none", "init": "dino_vits16"}}
OWN = {"protocol": "davis", "settings": {"root": "elsewhere", "dataset": "mine"}}


def study(**evaluations):
    return {"study": "s", "runs": RUNS, "evaluations": evaluations}


def test_a_preset_is_the_study_that_writes_its_evaluations():
    short, long = parse_study(study(preset="model_card")), parse_study(study(**MODEL_CARD))
    assert list(short.evaluations) == list(MODEL_CARD)
    assert short.model_dump() == long.model_dump()
    assert [spec.hash for spec in short.specifications()] == [spec.hash for spec in long.specifications()]
    tables = {"classification", "ade20k", "depth", "davis", "correspondence", "geometric_correspondence", "retrieval", "discovery"}
    assert tables == set(short.task_tables)


def test_an_evaluation_of_the_study_takes_the_place_of_the_presets_and_others_are_added():
    found = parse_study(study(preset="model_card", davis={**OWN, "runs": ["dino"]}, mine=OWN)).evaluations
    assert found["davis"].settings.root == "elsewhere"
    assert found["mine"].runs is None
    assert list(found) == [*MODEL_CARD, "mine"]


@pytest.mark.parametrize(
    ("name", "protocol"),
    [
        ("knn_imagenet", "k-NN (DINO)"),
        ("depth_nyu", "linear 256 bins (DINOv3)"),
        ("davis", "label propagation (DINO)"),
        ("davis_dinov3", "label propagation (DINOv3, M)"),
        ("linear_ade20k_dinov3", "linear BN+1x1, 1024 patches (DINOv3)"),
        ("retrieval_oxford", "CLS cosine 224 (DINOv3)"),
        ("correspondence_navi", None),  # likewise
        ("correspondence_spair", None),  # which pairs the published rows have drawn is not known
    ],
)
def test_settings_are_the_published_ones_where_there_are_any(name, protocol):
    assert parse_evaluation(MODEL_CARD[name]["protocol"], MODEL_CARD[name]["settings"]).published_protocol == protocol


def test_what_is_no_preset_stays_as_it_is():
    for section in ({}, {"davis": OWN}, {"preset": OWN}, None, [1]):
        assert expand_evaluations(section) is section
    assert list(parse_study(study(preset=OWN)).evaluations) == ["preset"], "an evaluation may have this name"


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        ("modelcard", r"evaluations\.preset: 'modelcard' is unknown, did you mean model_card\?; allowed: model_card"),
        (["model_card"], r"evaluations\.preset: "),
        (None, r"evaluations\.preset: "),
    ],
)
def test_an_unknown_preset_is_named(preset, said):
    with pytest.raises(UserError, match=said):
        parse_study(study(preset=preset))


def test_the_resolved_study_is_the_same_study():
    written = study(preset="model_card", mine=OWN)
    text = resolved_yaml(parse_study(written), written, "config.yaml")
    again = parse_study(yaml.safe_load(text))
    assert [spec.hash for spec in again.specifications()] == [spec.hash for spec in parse_study(written).specifications()]


def test_the_command_and_the_schema_know_it(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(study(preset="model_card")))
    assert main(["check", str(path)]) == 0
    capsys.readouterr()
    schema = json.loads((REPOSITORY / "workflow/schemas/config.schema.json").read_text())
    assert schema["properties"]["evaluations"]["properties"]["preset"]["enum"] == ["model_card"]
