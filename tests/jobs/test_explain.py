"""`densewalk explain` end to end: in-context `paper` against `released` on small images, its files, and what it refuses."""

import csv
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.evaluations.common import dense_features
from densewalk.evaluations.common.base import Result
from densewalk.jobs import ladder_scores as module
from densewalk.jobs.explain import Question, explain, plan
from densewalk.jobs.train import make_backbone
from densewalk.models.backbone import Backbone
from densewalk.results.ladder import read_ladders
from densewalk.results.page.ladders import ladder_parts
from densewalk.study.config import load_study
from densewalk.training.execution import Execution
from tests.fixtures.dense import write_masks

STUDY = """
study: ladder
runs:
  start: {method: none, init: random, arch: vit_nano_patch16}
evaluations:
  paper: {protocol: incontext, settings: &plain {root: ., dataset: toy, layout: masks, images: images, masks: masks, num_classes: 5,
    ignore: 4, memory_every: 2, query_every: 2, query_offset: 1, input_size: 32, augmentation_epochs: 0, neighbours: 3}}
  released: {protocol: incontext, settings: {<<: *plain, compat: released, neighbours: 2}}
  davis: {protocol: davis, settings: {root: d, dataset: d}}
execution: {device: cpu, workers: 0}
"""
EXECUTION = Execution(device="cpu", workers=0)


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(dense_features, "write_segmentation_strip", lambda *_: None)  # slower than the scoring
    write_masks(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        mask = np.array(Image.open(path))
        mask[:6] = 4
        Image.fromarray(mask).save(path)
    (tmp_path / "config.yaml").write_text(STUDY)
    found = load_study("config.yaml")
    make_backbone(found.run_spec("start", 0), None, [], tmp_path / "state", tmp_path / "results/start/s0", EXECUTION)
    return found


def rows(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_a_ladder_sums_to_the_difference_computes_features_once_and_is_not_scored_twice(study, tmp_path, monkeypatch, capsys):
    calls: Counter[str] = Counter()
    dense, evaluation = Backbone.dense, module.evaluation_module("incontext").evaluate

    def counted_dense(self, images):
        calls["images"] += len(images)
        return dense(self, images)

    def counted(*arguments) -> Result:
        calls["scorings"] += 1
        return evaluation(*arguments)

    monkeypatch.setattr(Backbone, "dense", counted_dense)
    monkeypatch.setattr(module.evaluation_module("incontext"), "evaluate", counted)
    assert main(["explain", "paper", "released", "--run", "start", "--metric", "mIoU"]) == 0
    printed = capsys.readouterr().out
    assert "4 steps from paper to released, all combinations: 4 sets of features, 0 trainings, 16 scorings" in printed
    assert re.search(r"released [\d.]+ \([-+][\d.]+ points\)", printed), "a difference of percentages"
    assert calls == {"scorings": 16, "images": 16}, "two normalizations of eight images"
    folder = tmp_path / "results/explain/paper-released/start-s0"
    steps, scores = rows(folder / "steps.csv"), {name: float(value) for name, value in rows(folder / "scores.csv")[1:]}
    assert [row[0] for row in steps[1:]] == ["blue_std", "neighbours", "remember_ignored", "count_absent_classes"]
    assert (steps[2][1], steps[2][2]) == ("3", "2")
    difference = scores["released"] - scores["paper"]
    for column in ("shapley", "sequential"):
        assert sum(float(row[steps[0].index(column)]) for row in steps[1:]) == pytest.approx(difference, abs=1e-3)
    assert abs(difference) > 0.1
    assert len(scores) == 16
    assert len(rows(folder / "interactions.csv")) == 5
    svg = (folder / "waterfall.svg").read_text()
    assert all(name in svg for name in ("paper", "released", "blue_std", "neighbours"))
    (found,) = read_ladders(tmp_path / "results")
    assert (found.names, found.run, found.seed, found.metric) == (("paper", "released"), "start", 0, "mIoU")
    assert sum(step.shapley for step in found.steps) == pytest.approx(found.last - found.first)
    assert (found.interval.method, found.interval.unit, found.interval.units) == ("percentile", "image", 4)
    assert all(step.low <= step.high for step in found.steps)
    assert "95 % intervals over the choice of test units" in svg or "lines: their intervals over test units" in svg
    (part,) = ladder_parts(study.plan(), tmp_path / "results")
    assert part.heading.startswith("mIoU of start, seed 0: from paper to released, ")
    assert [row[0] for row in part.rows] == ["blue_std", "neighbours", "remember_ignored", "count_absent_classes"]
    assert part.rows[1][1:3] == ["3", "2"]
    assert part.svg.startswith("<svg role=")
    assert main(["explain", "paper", "released", "--run", "start", "--metric", "mIoU_hungarian"]) == 0
    assert calls["scorings"] == 16, "another metric of the same scores"


def test_the_ends_are_what_the_evaluations_themselves_give(study, tmp_path):
    from densewalk.evaluations.common.base import Job

    question = Question("paper", "released", "start")
    found = explain(study, question, plan(study, question), tmp_path / "results", EXECUTION)
    for name, score in (("paper", found.first), ("released", found.last)):
        means = Job(out=tmp_path / name, state=tmp_path / f"{name}_state", workers=0)
        backbone = tmp_path / "results/start/s0/backbone.safetensors"
        assert module.evaluation_module("incontext").evaluate(study.evaluations[name].settings, backbone, means).metrics["mIoU"] == score


def test_a_dry_run_scores_nothing(study, tmp_path, capsys):
    assert main(["explain", "paper", "released", "--run", "start", "--dry-run"]) == 0
    assert "neighbours: 3 -> 2" in capsys.readouterr().out
    assert not (tmp_path / "results/explain").exists()


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question("paper", "released", "other"), "no such run: other; allowed: start"),
        (Question("paper", "relased", "start"), "no such evaluation: relased"),
        (Question("paper", "davis", "start"), "different kinds of settings"),
        (Question("paper", "released", "start", metric="J"), "no such metric: J; allowed: mIoU, mIoU_hungarian"),
        (Question("paper", "released", "start", limit=15), "16 scorings for 4 steps .* allowed: 15"),
    ],
)
def test_what_cannot_be_explained_is_refused_before_anything_is_scored(study, question, message):
    with pytest.raises(UserError, match=message):
        plan(study, question)


def test_a_backbone_that_is_not_there_or_of_another_configuration_is_refused(study, tmp_path):
    question = Question("paper", "released", "start", seed=1)
    answer = plan(study, question)
    with pytest.raises(UserError, match="start has no seed 1; allowed: 0"):
        explain(study, question, answer, tmp_path / "results", EXECUTION)
    question = Question("paper", "released", "start")
    with pytest.raises(UserError, match="does not exist; to do: make the run first"):
        explain(study, question, answer, tmp_path / "elsewhere", EXECUTION)
    (tmp_path / "config.yaml").write_text(STUDY.replace("vit_nano_patch16", "vit_nano_patch8"))
    with pytest.raises(UserError, match="is of an earlier configuration"):
        explain(load_study("config.yaml"), question, answer, tmp_path / "results", EXECUTION)
