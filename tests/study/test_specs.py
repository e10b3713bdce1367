"""Specifications: damaged ones, and those of another kind of job, are refused by every command before anything is done."""

import copy
import json

import pytest

from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.methods.dino.settings import DinoSettings
from densewalk.study.config import parse_study
from densewalk.study.specs import CurationSpec, EvaluationSpec, RunSpec, read_spec

STUDY = {
    "study": "Specifications",
    "images": {"pets": {"source": "pets"}},
    "curations": {"chosen": {"data": ["pets"], "backbone": "start", "duplicates": 0.9}},
    "runs": {
        "start": {"method": "none", "init": "random", "arch": "vit_nano_patch16"},
        "dino": {"method": "dino", "init": "start", "data": ["pets"], "settings": {"steps": 6}},
        "scratch": {"method": "dino", "arch": "vit_nano_patch16", "data": ["pets"], "settings": {"steps": 6}},
    },
    "evaluations": {"davis": {"protocol": "davis", "settings": {"root": "data/DAVIS", "dataset": "DAVIS"}}},
}
PARSED = parse_study(STUDY)
SPECS = {
    "run": PARSED.run_spec("dino", 0),
    "evaluation": PARSED.evaluation_spec("dino", 0, "davis"),
    "curation": PARSED.curation_spec("chosen"),
}
VERSION = "(written by another version of densewalk?)"
ONLY = {
    "run": {
        "no such method": ("method", "dreamer", "settings: no such method: 'dreamer'; allowed: cis, crw, debias, dino"),
        "a setting": ("settings.out_dim", [8], "settings.out_dim: Input should be a valid integer (found [8])"),
        "an unknown setting": ("settings.wings", 2, "settings.wings: Extra inputs are not permitted"),
        "another version": ("version", 7, f"version: 7 of dino, which is at version {DinoSettings.VERSION} here"),
        "no settings": ("settings", "null", "settings: give them exactly where method is not none (method: dino)"),
        "a source": ("data.pets", {"source": 3}, "source: Input should be a valid string (found 3)"),
        "a list for a source": ("data.pets", [], "data.pets"),
        "kind of init": ("init.kind", "guess", "init: Input tag 'guess'"),
        "seed": ("seed", "0", "seed: Input should be a valid integer (found '0')"),
        "NaN": ("settings.local_scale", [float("nan"), 1.0], "settings.local_scale.0: not a finite number (found nan)"),
    },
    "evaluation": {
        "no such protocol": ("protocol", "davos", "settings: no such protocol: 'davos'; allowed: "),
        "a setting": ("settings.top_k", -3, "settings.top_k: Input should be greater than"),
        "labels": ("labels", {"method": "DINO"}, "labels.arch: Field required"),
        "version": ("version", [1], "version: Input should be a valid integer (found [1])"),
        "another version": ("version", 1, "version: 1 of davis, which is at version 3 here"),
    },
    "curation": {
        "backbone": ("backbone", None, "backbone: Field required"),
        "a setting": ("settings.data", "pets", "settings.data: Input should be a valid array (found 'pets')"),
        "infinity": ("settings.similarity", float("inf"), "settings.similarity: not a finite number (found inf)"),
    },
}
NOT_OURS = {
    "empty": ("", "is not JSON"),
    "cut off": ('{"run": "di', "is not JSON"),
    "list": ("[]", "it holds [], not an object"),
    "null": ("null", "it holds None, not an object"),
    "object": ("{}", "Field required"),
}


def command(kind, folder, name="spec.json"):
    """The commands that read a specification of this kind."""
    common = ["--spec", str(folder / name), "--out", str(folder / "out")]
    data = ["--data", str(folder / "pets.json")]
    backbone = ["--backbone", str(folder / "backbone.safetensors")]
    return {
        "run": [
            ["train", *common, "--state", str(folder / "state"), "--init", str(folder / "start.safetensors"), *data],
            ["features", *common, *backbone, "--settings", "{}"],
        ],
        "evaluation": [["evaluate", *common, *backbone, "--state", str(folder / "state")]],
        "curation": [["curate", *common, *backbone, *data]],
    }[kind]


def refuse(kind, folder, caplog, *messages):
    for arguments in command(kind, folder):
        caplog.clear()
        assert main(arguments) == UserError.exit_status
        (line,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
        assert line.startswith(f"error: {folder / 'spec.json'} is ")
        assert "to do: " in line
        for message in messages:
            assert message in line
    assert sorted(path.name for path in folder.iterdir()) == ["spec.json"], "nothing was begun"


@pytest.mark.parametrize("case", NOT_OURS)
@pytest.mark.parametrize("kind", SPECS)
def test_a_file_that_is_no_specification(kind, case, tmp_path, caplog):
    content, message = NOT_OURS[case]
    (tmp_path / "spec.json").write_text(content)
    refuse(kind, tmp_path, caplog, message)


@pytest.mark.parametrize(("kind", "case"), [(kind, case) for kind, cases in ONLY.items() for case in cases])
def test_what_is_wrong_with_a_specification_is_named(kind, case, tmp_path, caplog):
    path, value, message = ONLY[kind][case]
    content = copy.deepcopy(SPECS[kind].model_dump(mode="json"))
    *parents, last = path.split(".")
    place = content
    for key in parents:
        place = place[key]
    place[last] = None if value == "null" else value
    if value is None:
        del place[last]
    (tmp_path / "spec.json").write_text(json.dumps(content))
    refuse(kind, tmp_path, caplog, f"is no specification of a{'n' if kind == 'evaluation' else ''} {kind}: ", message)


@pytest.mark.parametrize("kind", SPECS)
def test_a_specification_of_another_version(kind, tmp_path, caplog):
    content = SPECS[kind].model_dump(mode="json")
    (tmp_path / "spec.json").write_text(json.dumps({**content, "priority": 3}))
    refuse(kind, tmp_path, caplog, f"priority: Extra inputs are not permitted {VERSION}")
    del content["settings"]
    (tmp_path / "spec.json").write_text(json.dumps(content))
    refuse(kind, tmp_path, caplog, "settings: ")


@pytest.mark.parametrize(("kind", "other"), [(kind, other) for kind in SPECS for other in SPECS if kind != other])
def test_a_specification_of_another_kind_of_job(kind, other, tmp_path, caplog):
    (tmp_path / "spec.json").write_text(json.dumps(SPECS[other].model_dump(mode="json")))
    refuse(kind, tmp_path, caplog, f"is the specification of {SPECS[other].OF}, not of {SPECS[kind].OF}")


def test_the_kinds_are_told_apart_by_their_keys():
    assert [kind.OF for kind in (RunSpec, EvaluationSpec, CurationSpec)] == ["a run", "an evaluation", "a curation"]


def test_a_missing_specification(tmp_path, caplog):
    for kind in SPECS:
        for arguments in command(kind, tmp_path, "none.json"):
            assert main(arguments) == UserError.exit_status
    assert caplog.text.count("none.json does not exist") == 4


@pytest.mark.parametrize(
    ("run", "more", "message"),
    [
        ("dino", [], "--init is missing: dino starts from start; to do: give that backbone's file"),
        ("scratch", [], "--data has 0 receipts, not 1; allowed: one for each of pets"),
        ("scratch", ["--data", "a.json", "b.json"], "--data has 2 receipts, not 1; allowed: one for each of pets"),
    ],
)
def test_files_that_do_not_go_with_the_specification(run, more, message, tmp_path, caplog):
    spec = PARSED.run_spec(run, 0)
    spec.write(tmp_path)
    arguments = ["train", "--spec", str(spec.path(tmp_path)), "--out", str(tmp_path / "out"), "--state", str(tmp_path / "state"), *more]
    assert main(arguments) == UserError.exit_status
    assert message in caplog.text
    assert not (tmp_path / "out").exists()


def test_a_file_without_a_version_is_of_version_one(tmp_path, monkeypatch):
    monkeypatch.setattr(DinoSettings, "VERSION", 1)
    spec = parse_study(STUDY).run_spec("dino", 0)
    spec.write(tmp_path)
    monkeypatch.setattr(DinoSettings, "VERSION", 2)
    with pytest.raises(UserError, match="version: 1 of dino, which is at version 2 here"):
        read_spec(spec.path(tmp_path), RunSpec)


def test_the_version_of_a_method_is_in_the_hash_above_one(monkeypatch):
    """Hashes from before methods had versions stay as they were."""
    monkeypatch.setattr(DinoSettings, "VERSION", 1)
    before = parse_study(STUDY)
    spec = before.run_spec("dino", 0)
    assert "version" not in spec.model_dump(mode="json")
    evaluation = before.evaluation_spec("dino", 0, "davis")
    monkeypatch.setattr(DinoSettings, "VERSION", 2)
    study = parse_study(STUDY)
    later = study.run_spec("dino", 0)
    assert later.model_dump(mode="json") == {**spec.model_dump(mode="json"), "version": 2}
    assert later.hash != spec.hash
    assert study.run_spec("start", 0).method == "none"
    assert study.run_spec("start", 0).hash == spec.init.hash, "a baseline has none"
    assert study.evaluation_spec("dino", 0, "davis").run_hash == later.hash != evaluation.run_hash
