"""Names and paths are in no hash; every setting, seed and version is."""

import copy
from pathlib import Path

import pytest

from densewalk.results.identity import identity
from densewalk.study.config import parse_study

STUDY = {
    "study": "Identity",
    "videos": {"walk": {"source": "walk.mp4"}},
    "images": {"pets": {"source": "pets"}},
    "curations": {"chosen": {"data": ["walk", "pets"], "backbone": "dino_s16", "duplicates": 0.9}},
    "checkpoints": {"dino_s16": {"file": "dino.pth", "arch": "vit_small_patch16"}},
    "runs": {
        "dino": {"method": "dino", "init": "dino_s16", "data": ["walk", "pets"], "settings": {"steps": 6}},
        "heir": {"method": "dino", "init": "dino", "data": ["chosen"], "settings": {"steps": 6}},
    },
    "evaluations": {"davis": {"protocol": "davis", "settings": {"root": "data/DAVIS", "dataset": "DAVIS"}}},
}


def hashes(study, run="dino", heir="heir", davis="davis"):
    parsed = parse_study(study)
    specs = (parsed.run_spec(run, 0), parsed.run_spec(heir, 0), parsed.evaluation_spec(heir, 0, davis))
    return [spec.hash for spec in specs]


def test_names_and_paths_are_in_no_hash():
    other = copy.deepcopy(STUDY)
    other["videos"] = {"lisbon": {"source": "elsewhere/lisbon.mp4"}}
    other["images"] = {"dogs": {"source": "dogs"}}
    other["curations"] = {"pool": {"data": ["lisbon", "dogs"], "backbone": "weights", "duplicates": 0.9}}
    other["checkpoints"] = {"weights": {"file": "weights.pth", "arch": "vit_small_patch16"}}
    labels = {"method": "DINO", "arch": "ViT-S/16", "pretraining_data": "a walk"}
    other["runs"] = {
        "first": {**STUDY["runs"]["dino"], "init": "weights", "data": ["lisbon", "dogs"]},
        "second": {**STUDY["runs"]["heir"], "init": "first", "data": ["pool"], "labels": labels},
    }
    other["evaluations"] = {"objects": {"protocol": "davis", "settings": {"root": "data/DAVIS", "dataset": "Objects"}}}
    assert hashes(other, "first", "second", "objects") == hashes(STUDY)
    paths = [parse_study(study).run_spec(run, 0).path(Path("results")) for study, run in ((STUDY, "dino"), (other, "first"))]
    assert paths[0] != paths[1], "the files that jobs read do name them"


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda s: s["videos"]["walk"].update(short_side=240), (False, False, False)),
        (lambda s: s["runs"]["dino"].update(data=["pets", "walk"]), (False, False, False)),
        (lambda s: s["runs"]["dino"].update(settings={"steps": 7}), (False, False, False)),
        (lambda s: s["curations"]["chosen"].update(duplicates=0.8), (True, False, False)),
        (lambda s: s["checkpoints"]["dino_s16"].update(key="teacher"), (False, False, False)),
        (lambda s: s["runs"]["heir"].update(settings={"steps": 7}), (True, False, False)),
        (lambda s: s["evaluations"]["davis"]["settings"].update(top_k=3), (True, True, False)),
        (lambda s: s["evaluations"]["davis"]["settings"].update(root="other"), (True, True, False)),
    ],
)
def test_every_setting_is(change, same):
    other = copy.deepcopy(STUDY)
    change(other)
    assert tuple(a == b for a, b in zip(hashes(STUDY), hashes(other), strict=True)) == same


def test_the_hash_of_what_a_run_starts_from_may_be_given():
    spec = parse_study(STUDY).run_spec("heir", 0).model_dump(mode="json")
    assert identity(spec) != identity(spec, "0" * 12) == identity({**spec, "init": {**spec["init"], "hash": "0" * 12}})


@pytest.mark.parametrize("change", [{"stride": 16}, {"mean": [0.5] * 3, "std": [0.5] * 3}])
def test_how_a_checkpoint_is_read_is_in_the_hash(change):
    study = copy.deepcopy(STUDY)
    study["checkpoints"]["resnet"] = {"file": "cnn.safetensors", "arch": "timm/resnet18.a1_in1k"}
    study["runs"]["cnn"] = {"method": "none", "init": "resnet"}
    before = parse_study(study).run_spec("cnn", 0).hash
    study["checkpoints"]["resnet"].update(change)
    assert parse_study(study).run_spec("cnn", 0).hash != before
