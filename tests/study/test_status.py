"""What `densewalk status` says of a study that is waiting, under way, and done."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.core.hashing import config_hash
from densewalk.data.settings import ImagesSettings
from densewalk.jobs import train as train_job
from densewalk.jobs.prepare import prepare_images
from densewalk.results.changes import Changes, mark_written
from densewalk.results.records import RunRecord
from densewalk.study.config import Study, parse_study
from densewalk.study.specs import RunSpec
from densewalk.study.status import Status, seconds_per_step, status, table
from densewalk.study.upkeep.forgotten import Forgotten, forgotten
from densewalk.study.upkeep.former import take_over_states
from densewalk.study.upkeep.rename import rename
from densewalk.study.upkeep.why import why
from densewalk.training.execution import Execution
from densewalk.training.progress_files import HOLDER
from densewalk.training.state import State
from tests.fixtures.records import record

STUDY = {
    "study": "Status",
    "images": {"pets": {"source": "pets"}},
    "runs": {
        "start": {"method": "none", "init": "random", "arch": "vit_nano_patch16"},
        "dino": {
            "method": "dino",
            "arch": "vit_nano_patch16",
            "seeds": [0, 1],
            "data": ["pets"],
            "settings": {
                "steps": 6, "batch_size": 2, "global_size": 32, "local_size": 16, "local_crops": 0, "out_dim": 16, "warmup_epochs": 0,
            },
        },
    },
    "evaluations": {"davis": {"protocol": "davis", "settings": {"root": "data/DAVIS", "dataset": "DAVIS"}}},
}  # fmt: skip


@pytest.fixture
def study(tmp_path: Path) -> Study:
    """A study of which seed 0 of `dino` has been trained."""
    (tmp_path / "pets").mkdir()
    for i in range(4):
        Image.fromarray(np.full((40, 40, 3), 60 * i, dtype=np.uint8)).save(tmp_path / "pets" / f"{i}.png")
    prepare_images(ImagesSettings(source=str(tmp_path / "pets")), tmp_path / "pets.json")
    parsed = parse_study(STUDY)
    spec = parsed.run_spec("dino", 0)
    execution = Execution(device="cpu", workers=0, metrics_every=1, checkpoint_minutes=0)
    train_job.make_backbone(spec, None, [tmp_path / "pets.json"], state_of(tmp_path, spec), tmp_path / "dino" / "s0", execution)
    return parsed


def state_of(results: Path, spec: RunSpec) -> Path:
    return spec.state(results)


def write_result(study: Study, results: Path, **changes: Any) -> None:
    """The record of `davis` of seed 0 of `dino`, by default of the study's configuration."""
    changes = {"evaluation": "davis", "config_hash": study.evaluation_spec("dino", 0, "davis").hash, **changes}
    (results / "dino" / "s0" / "davis.json").write_text(json.dumps(record("dino", 0, {"J&F": 60.0}, **changes)))


def test_a_run_is_not_started_not_finished_or_done(study: Study, tmp_path: Path) -> None:
    write_result(study, tmp_path)
    assert list(status(study, tmp_path)) == [
        Status("start", 0, "not started", (0, 1)),
        Status("dino", 0, "done", (1, 1), 6, 6),
        Status("dino", 1, "not started", (0, 1)),
    ]
    (tmp_path / "dino" / "s0" / "backbone.safetensors").unlink()
    state = state_of(tmp_path, study.run_spec("dino", 0))
    lines = (state / "metrics.jsonl").read_text().splitlines()
    (state / "metrics.jsonl").write_text("\n".join(lines[:4]) + '\n{"step": 4, "ti')  # the last line is half written
    for path in state.glob("step-*6.*"):
        path.unlink()
    os.utime(state / "plan.json", (0, 0))
    newest = max(path.stat().st_mtime for path in [state / "metrics.jsonl", *state.glob("step-*.json")])
    row = list(status(study, tmp_path, now=newest + 90))[1]
    assert (row.state, row.step, row.total, row.checkpoint, row.evaluations) == ("not finished", 5, 6, 5, (1, 1))
    assert row.seen == pytest.approx(90)
    assert row.left == pytest.approx(seconds_per_step([json.loads(line) for line in lines[:4]]))
    assert row.loss == json.loads(lines[3])["loss"]


def test_results_that_are_outdated_or_have_failed_are_counted(study: Study, tmp_path: Path) -> None:
    write_result(study, tmp_path, config_hash="0" * 12)
    rows = list(status(study, tmp_path))
    assert (rows[1].evaluations, rows[1].problems) == ((0, 1), ", 1 outdated")
    (tmp_path / "dino" / "s0" / "davis.json").unlink()
    logs = tmp_path / "logs" / "dino"
    for log in (logs / "s0" / "davis.log", logs / "s1" / "train.log"):
        log.parent.mkdir(parents=True)
        log.write_text("12:01 error: data/DAVIS does not exist; to do: download it\n")
    rows = list(status(study, tmp_path))
    assert (rows[1].state, rows[1].evaluations, rows[1].problems) == ("done", (0, 1), ", 1 failed")
    assert (rows[2].state, rows[2].problems) == ("failed", ""), "its evaluation waits for it"
    lines = table(rows).splitlines()
    assert lines[2].endswith("0 of 1, 1 failed")
    error = "(12:01 error: data/DAVIS does not exist; to do: download it)"
    assert lines[-2:] == [
        f"failed: dino, seed 0: davis has failed {error}; log: {logs / 's0' / 'davis.log'}",
        f"failed: dino, seed 1: the training has failed {error}; log: {logs / 's1' / 'train.log'}",
    ]


def test_why_knows_tables_and_page_and_names_the_study_that_it_read(study: Study, tmp_path: Path) -> None:
    table_file, page = tmp_path / "tables" / "davis.csv", tmp_path / "report.html"

    def said(path: Path) -> str:
        (line,) = why(study, path, tmp_path, Path("my/config.yaml"))
        return line.removeprefix(f"{path}: ")

    assert (said(table_file), said(page)) == ("not there", "not there")
    table_file.parent.mkdir()
    for path, name in ((table_file, "davis"), (page, "report")):
        path.write_text("")
        assert said(path) == "outdated (written for another plan)"
        mark_written(study.plan(), tmp_path, name)
        assert said(path) == "outdated (made from what is made again)"
    with pytest.raises(UserError) as refused:
        list(why(study, tmp_path / "elsewhere.csv", tmp_path, Path("my/config.yaml")))
    assert f"the study in {Path('my/config.yaml').absolute()}" in refused.value.found
    assert "--config" in str(refused.value)
    assert "RUN/sSEED/backbone.safetensors" in str(refused.value)


def renamed_study(old: str, new: str, **settings: Any) -> Study:
    """The study with another name of a run or evaluation, and other settings of the run."""
    content = copy.deepcopy(STUDY)
    for section in ("runs", "evaluations"):
        content[section] = {new if name == old else name: one for name, one in content[section].items()}
    if settings:
        content["runs"][new]["settings"] |= settings
    return parse_study(content)


def test_a_name_that_was_changed_without_a_rename_is_told_and_the_command_moves_it(study: Study, tmp_path: Path) -> None:
    write_result(study, tmp_path)

    def told(one: Study) -> list[str]:
        return [found.text("config.yaml") for found in forgotten(Changes(one.plan(), tmp_path))]

    assert told(study) == []
    run, evaluation = renamed_study("dino", "teacher"), renamed_study("davis", "objects")
    said = f"{tmp_path}/dino is the run teacher under its old name: `densewalk rename config.yaml dino teacher` moves it"
    assert told(run) == [f"{said}, nothing is trained again"]
    (of_evaluation,) = told(evaluation)
    assert of_evaluation.startswith(f"{tmp_path}/dino/s0/davis.json is the evaluation objects under its old name: `densewalk rename")
    path = tmp_path / "teacher" / "s0" / "backbone.safetensors"
    lines = [f"{path}: not started", f"    {said}, nothing is trained again"]
    assert list(why(run, path, tmp_path, Path("config.yaml"))) == lines
    assert told(renamed_study("dino", "teacher", steps=7)) == [], "another run"
    list(rename(run, "dino", "teacher", tmp_path))
    assert told(run) == []
    assert list(status(run, tmp_path))[1].state == "done"


def test_an_interrupted_training_under_an_old_name_is_told_and_other_contents_are_another_run(study: Study, tmp_path: Path) -> None:
    run = renamed_study("dino", "teacher")
    record_file = tmp_path / "dino" / "s0" / "run.json"
    content = json.loads(record_file.read_text())
    record_file.write_text(json.dumps({**content, "contents": {**content["contents"], "data": ["0" * 64]}}))
    state = study.run_spec("dino", 0).state(tmp_path)
    state.rename(tmp_path / "elsewhere")
    (tmp_path / "pets").rename(tmp_path.parent / f"{tmp_path.name}-pets")
    assert list(forgotten(Changes(run.plan(), tmp_path))) == [Forgotten("run", "dino", "teacher", tmp_path / "dino")], "its data are gone"
    (tmp_path.parent / f"{tmp_path.name}-pets").rename(tmp_path / "pets")
    content_study = copy.deepcopy(STUDY)
    content_study["images"]["pets"]["source"] = str(tmp_path / "pets")
    content_study["runs"]["teacher"] = content_study["runs"].pop("dino")
    here = parse_study(content_study)
    assert list(forgotten(Changes(here.plan(), tmp_path))) == [], "trained on other images"
    record_file.unlink()
    (tmp_path / "elsewhere").rename(state)
    (found,) = forgotten(Changes(here.plan(), tmp_path))
    assert (found.old, found.new, found.place) == ("dino", "teacher", state)


def test_a_result_that_was_made_and_is_gone_is_called_removed(study: Study, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "dino" / "s0" / "davis.log"
    log.parent.mkdir(parents=True)
    log.write_text("==== attempt 1, 2026-01-01 00:00:00, here, process 7 ====\nerror in 2 of 3\n==== done ====\n")
    path = tmp_path / "dino" / "s0" / "davis.json"
    assert list(why(study, path, tmp_path, Path("config.yaml"))) == [
        f"{path}: removed (it was made, and its file is gone; Snakemake makes it again)"
    ]
    assert list(status(study, tmp_path))[1].problems == ", 1 removed"
    with log.open("a") as file:
        file.write("==== attempt 2, 2026-01-01 00:00:00, here, process 8 ====\n12:00 begun\n")
    assert list(why(study, path, tmp_path, Path("config.yaml"))) == [f"{path}: not finished (12:00 begun)"]


def test_gpu_hours_of_a_training_under_way_count_every_gpu_and_no_pause(study: Study, tmp_path: Path) -> None:
    state = state_of(tmp_path, study.run_spec("dino", 0))
    (tmp_path / "dino" / "s0" / "backbone.safetensors").unlink()
    (state / "plan.json").write_text('{"steps": 1000, "gpus": 4}')
    times = [*range(0, 50, 10), *range(100_000, 100_050, 10)]  # a second a step, and a day's pause
    lines = [json.dumps({"step": 10 * i, "time": t, "loss": 1.0}) for i, t in enumerate(times)]
    (state / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    row = list(status(study, tmp_path))[1]
    assert (row.step, row.left) == (91, pytest.approx(909))
    assert row.gpu_hours == pytest.approx(4 * 91 / 3600)


def test_the_command_prints_the_table(study: Study, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    command = [sys.executable, "-m", "densewalk", "status", str(tmp_path / "config.yaml"), "--results", str(tmp_path)]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert printed == table(list(status(study, tmp_path))) + "\n"
    head, _, trained, *_, total, left = printed.splitlines()
    assert head.split() == ["run", "seed", "state", "step", "loss", "left", "seen", "checkpoint", "GPU-h", "CPU-h", "evaluations"]
    assert trained.split() == ["dino", "0", "done", "6/6", "0.00", "0.00", "0", "of", "1"]
    assert total == "1 of 3 runs, 0 of 3 evaluations, 0.00 GPU-hours, 0.00 CPU-hours"
    assert re.fullmatch(r"left: about 0:00:\d\d for 1 jobs one after another; 3 more, whose time no earlier job tells", left)


def test_time_left_goes_by_the_steps_that_the_study_has_now(study: Study, tmp_path: Path) -> None:
    """Of a training that is outdated, and of the other seed, where the study's number of steps is ten times that of before."""
    seconds = RunRecord.model_validate_json((tmp_path / "dino" / "s0" / "run.json").read_text()).training.seconds
    longer = copy.deepcopy(STUDY)
    longer["runs"]["dino"]["settings"]["steps"] = 60
    rows = list(status(parse_study(longer), tmp_path))
    assert [row.state for row in rows[1:]] == ["outdated", "not started"]
    assert [row.to_do[0] for row in rows[1:]] == [pytest.approx(10 * seconds)] * 2


@pytest.mark.parametrize("command", ["status", "report", "stale", "plan"])
def test_a_folder_of_results_that_is_none_is_refused(command: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, file, nowhere = (tmp_path / name for name in ("config.yaml", "run.json", "nowhere"))
    config.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    file.write_text("{}")
    for results, message in ((file, "is a file, not a folder of results"), (nowhere, "there is no such folder")):
        assert main([command, str(config), "--results", str(results)]) == UserError.exit_status
        assert f"{results}" in caplog.text
        assert message in caplog.text
    assert not nowhere.exists()


def test_an_error_of_an_earlier_attempt_is_no_failure(study: Study, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "dino" / "s1" / "train.log"
    log.parent.mkdir(parents=True)
    head = "==== attempt {}, 2026-01-01 00:00:00, here, process 7 ====\n"
    log.write_text(f"{head.format(1)}error: no room\n{head.format(2)}train 1/8\n")
    assert list(status(study, tmp_path))[2].state == "not finished"


def test_too_short_a_curve_tells_no_speed() -> None:
    assert seconds_per_step([]) is None
    assert seconds_per_step([{"step": 0, "time": 1.0}]) is None


def test_what_somebody_works_on_is_running_and_a_dead_process_works_on_nothing(study: Study, tmp_path: Path) -> None:
    folder = state_of(tmp_path, study.run_spec("dino", 1))
    with State(folder, {"weights": "a"}):
        row = list(status(study, tmp_path))[2]
        assert row.state == "running"
        (text,) = row.running
        assert text == f"dino, seed 1: the training is running (by process {os.getpid()} on {os.uname().nodename})"
        assert f"now: {text}" in table([row])
    assert list(status(study, tmp_path))[2].state == "not started", "it has ended"
    (folder / HOLDER).write_text(f"process 4194304 on {os.uname().nodename}")  # above the largest number of a process
    assert list(status(study, tmp_path))[2].state == "not started", "it was killed"
    (folder / HOLDER).write_text("process 7 on node12, Slurm job 31")
    assert list(status(study, tmp_path))[2].running == ("dino, seed 1: the training is running (by process 7 on node12, Slurm job 31)",)
    for path in folder.iterdir():
        os.utime(path, (1, 1))
    assert list(status(study, tmp_path))[2].state == "not started", "no sign of life from another machine"


def test_a_deleted_record_is_missing_and_other_contents_are_outdated(study: Study, tmp_path: Path) -> None:
    write_result(study, tmp_path)
    Image.fromarray(np.zeros((40, 40, 3), dtype=np.uint8)).save(tmp_path / "pets" / "another.png")
    moved = parse_study({**STUDY, "images": {"pets": {"source": str(tmp_path / "pets")}}})
    row = list(status(moved, tmp_path))[1]
    assert (row.state, row.problems) == ("outdated", ", 1 outdated"), "an image more"
    (tmp_path / "pets" / "another.png").unlink()
    assert list(status(moved, tmp_path))[1].state == "done"
    (tmp_path / "dino" / "s0" / "run.json").unlink()
    assert list(status(moved, tmp_path))[1].state != "done"


def test_states_of_earlier_versions_are_taken_over(study: Study, tmp_path: Path) -> None:
    spec = study.run_spec("dino", 1)
    before = tmp_path / "state" / f"dino-s1-{config_hash(spec.model_dump(mode='json'))}"
    before.mkdir(parents=True)
    (before / "step-00000001.pt").touch()
    take_over_states(study, tmp_path)
    assert (spec.state(tmp_path) / "step-00000001.pt").is_file()
    assert not before.exists()
