"""metrics.jsonl is read while it is written."""

import json
import subprocess
import time

import pytest
import torch

from densewalk.results.page.sections import read_curve
from densewalk.training.learning_curve import LearningCurve
from densewalk.training.progress_files import append_point, as_line, quantities, read_points
from tests.fixtures.studies import REPOSITORY
from tests.fixtures.toy import command, fit

POINTS = [{"step": 10 * i, "time": 1e9 + i, "loss": 1.0 / (i + 1), **({"extra": 2.0} if i else {})} for i in range(3)]


@pytest.mark.parametrize("cut", [1, 5, 25])
def test_a_line_that_is_only_begun_is_left_out_and_nothing_else(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(map(as_line, POINTS)) + as_line({"step": 30, "time": 1.0, "loss": 0.1})[:cut])
    assert read_points(path) == POINTS
    assert read_curve(path)["step"] == [0, 10, 20]


def test_every_prefix_of_the_file_can_be_read(tmp_path):
    path, whole = tmp_path / "metrics.jsonl", "".join(map(as_line, POINTS))
    for size in range(len(whole) + 1):
        path.write_text(whole[:size])
        points = read_points(path)
        assert points == POINTS[: len(points)]
        assert len(points) >= whole[:size].count("\n")


def test_a_point_is_on_its_way_when_it_is_appended(tmp_path):
    for i, point in enumerate(POINTS):
        append_point(tmp_path / "metrics.jsonl", point)
        assert read_points(tmp_path / "metrics.jsonl") == POINTS[: i + 1]
    assert quantities(POINTS) == ["loss", "extra"]
    assert read_points(tmp_path / "none.jsonl") == []


def test_a_training_resumes_although_it_was_killed_in_a_line(tmp_path):
    whole = fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", dies_at=5, minutes=0.0)
    with open(tmp_path / "parts" / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "ti')
    fit(tmp_path / "parts")
    curves = [[json.loads(line) for line in (tmp_path / part / "metrics.jsonl").read_text().splitlines()] for part in ("whole", "parts")]
    assert [point["loss"] for point in curves[0]] == [point["loss"] for point in curves[1]]
    assert [point["step"] for point in curves[1]] == list(range(whole.total_steps))


@pytest.mark.slow
def test_points_appear_while_a_training_runs(tmp_path):
    process = subprocess.Popen(command(tmp_path, 1, 200), cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    path, seen, deadline = tmp_path / "0" / "metrics.jsonl", set(), time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        seen.add(len(read_points(path)))
        time.sleep(0.005)
    assert process.wait(1) == 0
    assert len(seen - {0, 200}) > 5, "a reader sees the curve grow"
    assert [point["step"] for point in read_points(path)] == list(range(200))


def test_a_collapse_is_warned_of_once(tmp_path, caplog):
    curve = LearningCurve(tmp_path / "metrics.jsonl", 0, every=1, settled=2)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    for step, rank in enumerate((1.0, 5.0, 1.05, 1.0)):
        curve.add(step, torch.tensor(0.5), {"feature_rank": torch.tensor(rank)}, optimizer)
    said = [record.message for record in caplog.records if "collapsed" in record.message]
    assert said == ["step 2: feature_rank is 1.05: the features of all images are nearly the same, the training has collapsed"]
