"""`densewalk evaluate --gpus 2` on the CPU."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from densewalk import __main__
from densewalk.jobs import evaluate as evaluate_job
from densewalk.jobs import train as train_job
from densewalk.results.records import read_result
from densewalk.study.config import parse_study
from densewalk.training import launch
from densewalk.training.execution import Execution
from tests.fixtures.layouts import write_classes
from tests.fixtures.studies import REPOSITORY

KNN = {"root": "data", "dataset": "toy", "resize": 18, "size": 16}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of one evaluation, with its backbone."""
    monkeypatch.chdir(tmp_path)
    write_classes(tmp_path / "data", {"train": {"n01": 80, "n02": 60}, "val": {"n01": 40, "n02": 40}})
    start = {"method": "none", "init": "random", "arch": "vit_nano_patch16"}
    evaluations = {name: {"protocol": name, "settings": KNN} for name in ("knn", "linear")}
    parsed = parse_study({"study": "s", "runs": {"start": start}, "evaluations": evaluations})
    train_job.make_backbone(parsed.run_spec("start", 0), None, [], tmp_path / "state/a", tmp_path / "start/s0", Execution(device="cpu"))
    return parsed


def command(study, name):
    spec = study.evaluation_spec("start", 0, name)
    spec.write(Path("results"))
    paths = {
        "--spec": spec.path(Path("results")),
        "--backbone": "start/s0/backbone.safetensors",
        "--state": "state/two",
        "--out": "two.json",
    }
    execution = Execution(device="cpu", workers=0).model_dump_json()
    return ["evaluate", *(str(x) for pair in paths.items() for x in pair), "--gpus", "2", "--threads", "2", "--execution", execution]


@pytest.mark.slow
def test_the_command_starts_two_processes_whose_result_is_that_of_one(study):
    spec = study.evaluation_spec("start", 0, "knn")
    backbone, execution = Path("start/s0/backbone.safetensors"), Execution(device="cpu", workers=0)
    evaluate_job.evaluate(spec, backbone, Path("state/one"), Path("one.json"), execution)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{REPOSITORY}/src"}
    done = subprocess.run([sys.executable, "-m", "densewalk", *command(study, "knn")], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (read_result(Path(name)) for name in ("one.json", "two.json"))
    assert two.metrics == one.metrics
    assert two.details == one.details
    assert done.stderr.count("top1_k20 ") == 1, "one process writes the result"


def test_an_evaluation_that_cannot_be_shared_runs_in_one_process_and_says_so(study, monkeypatch, caplog):
    called = []
    monkeypatch.setattr(launch, "torchrun", called.append)
    monkeypatch.setattr(evaluate_job, "evaluate", lambda *_, **__: called.append("here"))
    monkeypatch.setattr(type(study.evaluations["linear"].settings), "PROCESSES", False)
    with caplog.at_level(logging.INFO, logger="densewalk"):
        __main__.main(command(study, "linear"))
    assert called == ["here"]
    assert "linear runs in one process instead of 2: several cannot share its work" in caplog.text
