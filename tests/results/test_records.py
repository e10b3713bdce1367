"""Damaged, foreign and outlived files: every command that reads one says in one line which file and key, and what to do."""

import copy
import json

import pytest

from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.core.typed_files import write_model
from densewalk.results.records import read_result, read_run
from densewalk.study.config import parse_study
from tests.fixtures.records import TRAINED, record, run_record

STUDY = {
    "study": "Damage",
    "images": {"pets": {"source": "pets"}},
    "runs": {
        "start": {"method": "none", "init": "random", "arch": "vit_nano_patch16"},
        "dino": {"method": "dino", "arch": "vit_nano_patch16", "data": ["pets"], "settings": {"steps": 6}},
    },
    "evaluations": {"davis": {"protocol": "davis", "settings": {"root": "data/DAVIS", "dataset": "DAVIS"}}},
}
RESULT = record("dino", 0, {"J&F": 60.0}, method="dino", task="davis", evaluation="davis", training=TRAINED, details={"IoU": {"cat": 1.0}})
RUN = run_record("dino", 0, spec={"run": "dino", "seed": 0, "method": "dino", "arch": "vit_nano_patch16", "init": {"kind": "random"}})
FEATURES = {"images": [{"source": "pets", "number": 3, "variance": [0.5, 0.25, 0.125]}], "heads": 2, "nearest": False}


@pytest.fixture
def folder(tmp_path):
    """A study's folder with one finished run and its result."""
    out = tmp_path / "results" / "dino" / "s0"
    out.mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(json.dumps(STUDY))
    (out / "davis.json").write_text(json.dumps(RESULT))
    (out / "run.json").write_text(json.dumps(RUN))
    (out / "backbone.safetensors").touch()
    return tmp_path


def commands(folder, *names):
    """Command lines that read the folder, by name."""
    config, results = str(folder / "config.yaml"), str(folder / "results")
    spec = next((folder / "results" / "specs").glob("*.json"), "none")
    backbone = folder / "results" / "dino" / "s0" / "backbone.safetensors"
    known = {
        "tables": ["tables", "--table", "all", "--out", str(folder / "all.csv"), results],
        "diff": ["diff", results, results],
        "status": ["status", config, "--results", results],
        "report": ["report", config, "--results", results],
        "evaluate": [
            "evaluate",
            "--spec",
            str(spec),
            "--backbone",
            str(backbone),
            "--state",
            str(folder / "s"),
            "--out",
            str(folder / "e"),
        ],
    }
    return [known[name] for name in names]


def changed(content, path, value):
    """The content with a dotted key replaced, or removed for None."""
    content = copy.deepcopy(content)
    *parents, last = path.split(".")
    place = content
    for key in parents:
        place = place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return json.dumps(content)


# what a file of any kind becomes -> what is said of it
NOT_OURS = {
    "empty": ("", "is not JSON"),
    "cut off": ('{"run": "di', "is not JSON"),
    "no text": (b"\x89\xff\xfe", "is not JSON"),
    "list": ("[]", "it holds [], not an object"),
    "null": ("null", "it holds None, not an object"),
    "number": ("3", "it holds 3, not an object"),
    "object": ("{}", "Field required"),
}
VERSION = "(written by another version of densewalk?)"
RESULTS = {
    **NOT_OURS,
    "list for a number": (changed(RESULT, "metrics.J&F", [60.0]), "metrics.J&F: Input should be a valid number (found [60.0])"),
    "text for a number": (changed(RESULT, "metrics.J&F", "60.0"), "metrics.J&F: Input should be a valid number (found '60.0')"),
    "truth for a number": (changed(RESULT, "n", True), "n: Input should be a valid integer (found True)"),
    "number for text": (changed(RESULT, "device", 3), "device: Input should be a valid string (found 3)"),
    "NaN": (changed(RESULT, "metrics.J&F", float("nan")), "metrics.J&F: not a finite number (found nan)"),
    "infinity": (changed(RESULT, "seconds", float("-inf")), "seconds: not a finite number (found -inf)"),
    "too large": (json.dumps(RESULT).replace("60.0", "1e999"), "metrics.J&F: not a finite number (found inf)"),
    "NaN inside": (changed(RESULT, "details.curve", [1.0, {"x": float("nan")}]), "details.curve.1.x: not a finite number (found nan)"),
    "negative": (changed(RESULT, "seconds", -1.0), "seconds: Input should be greater than or equal to 0 (found -1.0)"),
    "no metric": (changed(RESULT, "metrics", {}), "metrics: Dictionary should have at least 1 item"),
    "no steps": (changed(RESULT, "training.steps", 0), "training.steps: Input should be greater than or equal to 1 (found 0)"),
    "classes": (changed(RESULT, "details.IoU", [1.0]), "details.IoU: Input should be an object (found [1.0])"),
    "a class": (changed(RESULT, "details.IoU", {"cat": "good"}), "details.IoU.cat: Input should be a valid number (found 'good')"),
    "hash": (changed(RESULT, "config_hash", "12"), "config_hash: String should match pattern"),
    "init": (changed(RESULT, "init_seed", 0), "init_seed: 0 with init_kind checkpoint"),
    "an older version's": (changed(RESULT, "published_metrics", None), f"published_metrics: Field required {VERSION}"),
    "a newer version's": (changed(RESULT, "reviewed", True), f"reviewed: Extra inputs are not permitted {VERSION}"),
    "another run's": (changed(RESULT, "run", "start"), "belongs elsewhere: run: dino by its place (found start)"),
    "another seed's": (changed(RESULT, "seed", 7), "belongs elsewhere: seed: 0 by its place (found 7)"),
    "another evaluation's": (changed(RESULT, "evaluation", "knn"), "belongs elsewhere: evaluation: davis by its place (found knn)"),
}
RUNS = {
    **NOT_OURS,
    "negative": (changed(RUN, "training.gpu_hours", -1.0), "training.gpu_hours: Input should be greater than or equal to 0 (found -1.0)"),
    "init": (changed(RUN, "spec.init", {"kind": "guess"}), "spec.init: Input tag 'guess'"),
    "an older version's": (changed(RUN, "spec.arch", None), f"spec.arch: Field required {VERSION}"),
    "a newer version's": (changed(RUN, "reviewed", True), f"reviewed: Extra inputs are not permitted {VERSION}"),
    "another run's": (changed(RUN, "spec.run", "start"), "belongs elsewhere: run: dino by its place (found start)"),
    "another seed's": (changed(RUN, "spec.seed", 7), "belongs elsewhere: seed: 0 by its place (found 7)"),
}


def refuse(command, path, message, caplog):
    """The command ends with one line that names the file, says what is wrong and what to do."""
    caplog.clear()
    assert main(command) == UserError.exit_status
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert line.startswith(f"error: {path} ")
    assert message in line
    assert "to do: " in line


def damage(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_undamaged_files_are_read(folder, capsys):
    out = folder / "results" / "dino" / "s0"
    assert read_result(out / "davis.json").model_dump(mode="json", exclude_unset=True) == RESULT
    assert read_run(out / "run.json").model_dump(mode="json", exclude_unset=True) == RUN
    for command in commands(folder, "tables", "diff", "status", "report"):
        assert main(command) == 0
    assert "dino   0     outdated" in capsys.readouterr().out, "by the hash in its record"


def test_records_from_before_methods_had_versions_are_of_version_one(folder):
    out = folder / "results" / "dino" / "s0"
    (out / "davis.json").write_text(changed(RESULT, "method_version", None))
    (out / "run.json").write_text(changed(RUN, "version", None))
    assert read_result(out / "davis.json").method_version == read_run(out / "run.json").version == 1


@pytest.mark.parametrize("case", RESULTS)
def test_a_damaged_result_is_named_by_every_command(folder, caplog, case):
    content, message = RESULTS[case]
    path = damage(folder / "results" / "dino" / "s0" / "davis.json", content)
    for command in commands(folder, "tables", "diff", "status", "report"):
        refuse(command, path, message, caplog)


@pytest.mark.parametrize("case", RUNS)
def test_a_damaged_run_record_is_named_by_every_command(folder, caplog, case):
    content, message = RUNS[case]
    path = damage(folder / "results" / "dino" / "s0" / "run.json", content)
    parse_study(STUDY).evaluation_spec("dino", 0, "davis").write(folder / "results")
    for command in commands(folder, "status", "report", "evaluate"):
        refuse(command, path, message, caplog)


def test_a_result_without_its_run_s_record_is_compared_and_says_so(folder, capsys):
    other = {**RESULT, "metrics": {"J&F": 50.0}, "run_hash": "0123456789ab"}
    damage(folder / "other" / "dino" / "s0" / "davis.json", json.dumps(other))
    assert main(["diff", str(folder / "results"), str(folder / "other")]) == 1
    assert "the run: another configuration, of which run.json is not there" in capsys.readouterr().out


FEATURE_FILES = {
    **NOT_OURS,
    "list for a number": (changed(FEATURES, "heads", [2]), "heads: Input should be a valid integer (found [2])"),
    "NaN": (json.dumps(FEATURES).replace("0.25", "NaN"), "images.0.variance.1: not a finite number (found nan)"),
    "share": (json.dumps(FEATURES).replace("0.25", "25"), "images.0.variance.1: Input should be less than or equal to 1 (found 25"),
    "negative": (json.dumps(FEATURES).replace("3", "-3"), "images.0.number: Input should be greater than or equal to 0 (found -3)"),
    "an older version's": (changed(FEATURES, "nearest", None), f"nearest: Field required {VERSION}"),
}


@pytest.mark.parametrize("case", FEATURE_FILES)
def test_a_damaged_record_of_features_is_named_by_the_page(folder, caplog, case):
    content, message = FEATURE_FILES[case]
    path = damage(folder / "results" / "dino" / "s0" / "features.json", content)
    refuse(*commands(folder, "report"), path, message, caplog)


@pytest.mark.parametrize("content", [None, b"", b"\x89PNG\r\n\x1a\n cut off"])
def test_a_damaged_image_is_named_by_the_page(folder, caplog, content):
    damage(folder / "results" / "dino" / "s0" / "features.json", json.dumps(FEATURES))
    path = folder / "results" / "dino" / "s0" / "features" / "image_0.png"
    if content is not None:
        damage(path, content)
    refuse(*commands(folder, "report"), path, "cannot be read as an image", caplog)


PLAN = parse_study(STUDY).plan().model_dump(mode="json")
PLANS = {
    **NOT_OURS,
    "no seed": (changed(PLAN, "runs.dino.seeds", []), "runs.dino.seeds: List should have at least 1 item"),
    "unknown run": (changed(PLAN, "evaluations.davis.runs", ["doro"]), "evaluations.davis.runs: no such run: doro"),
    "no hash": (changed(PLAN, "hashes", {}), "hashes: none for start/s0/davis"),
    "direction": (changed(PLAN, "evaluations.davis.metrics.J.better", "wider"), "evaluations.davis.metrics.J.better: Input should be"),
    "a newer version's": (changed(PLAN, "reviewed", True), f"reviewed: Extra inputs are not permitted {VERSION}"),
}


@pytest.mark.parametrize("case", PLANS)
def test_a_damaged_plan_is_named(folder, caplog, case):
    content, message = PLANS[case]
    path = damage(folder / "plan.json", content)
    refuse(["report", "--plan", str(path), "--results", str(folder / "results")], path, message, caplog)


def test_a_plan_survives_its_file(folder):
    write_model(folder / "plan.json", parse_study(STUDY).plan())
    assert main(["report", "--plan", str(folder / "plan.json"), "--results", str(folder / "results")]) == 0


PROGRESS = {
    "plan.json": {
        **NOT_OURS,
        "negative": ('{"steps": 6, "gpus": -1}', "gpus: Input should be greater than or equal to 0 (found -1)"),
        "text for a number": ('{"steps": "6", "gpus": 0}', "steps: Input should be a valid integer (found '6')"),
    },
    "step-00000003.json": {
        **NOT_OURS,
        "list for a number": ('{"step": [3], "sha256": ""}', "step: Input should be a valid integer (found [3])"),
    },
    "metrics.jsonl": {
        "list": ("[]\n", "1 lines are no points of a learning curve and are left out, e.g. []"),
        "no step": ('{"loss": 1.0, "time": 1.0}\n', 'no points of a learning curve and are left out, e.g. {"loss"'),
        "no time": ('{"step": 1, "loss": 1.0}\n', 'no points of a learning curve and are left out, e.g. {"step": 1'),
        "text for a number": ('{"step": 1, "time": "noon", "loss": 1.0}\n', "no points of a learning curve"),
        "time that is none": ('{"step": 1, "time": NaN, "loss": 1.0}\n', "no points of a learning curve"),
        "more digits than 64 bits": (f'{{"step": 1, "time": 1.0, "loss": {10**400}}}\n', "no points of a learning curve"),
        "step before": ('{"step": 5, "time": 1.0}\n{"step": 5, "time": 2.0}\n', "no points of a learning curve"),
    },
}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name, cases in PROGRESS.items() for case in cases])
def test_a_damaged_file_of_a_training_under_way_is_named_by_status_and_stops_nothing(folder, caplog, name, case):
    content, message = PROGRESS[name][case]
    (folder / "results" / "dino" / "s0" / "backbone.safetensors").unlink()
    state = parse_study(STUDY).run_spec("dino", 0).state(folder / "results")
    damage(state / "plan.json", '{"steps": 6, "gpus": 0}')
    path = damage(state / name, content)
    (arguments,) = commands(folder, "status")
    assert main(arguments) == 0
    (line,) = [record.message for record in caplog.records]
    assert str(path) in line
    assert message in line
