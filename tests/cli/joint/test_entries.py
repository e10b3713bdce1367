"""Which evaluations share an entry of the queue, and what it asks for."""

import pytest

from densewalk.cli.forkserver.start import TRAIN_HEADS
from densewalk.cli.joint.entries import Entry, limit_of, share
from densewalk.core.errors import UserError
from densewalk.study.registry import evaluation_folder, evaluations
from densewalk.study.schedule.order import asks_as_a_training
from tests.cli.joint.jobs import FakeJob

RULES = {"evaluate_davis", "evaluate_knn", "features"}


def names(jobs):
    return [[job.evaluation for job in entry] for entry in share(jobs, RULES)]


def test_evaluations_of_one_backbone_share_an_entry_and_the_most_urgent_comes_first():
    jobs = [
        FakeJob("a", priority=3),
        FakeJob("b", priority=5, protocol="knn"),
        FakeJob("c", run="neco", priority=4),
        FakeJob("d", seed=1, priority=1),
    ]
    assert names(jobs) == [["b", "a"], ["c"], ["d"]]


@pytest.mark.parametrize(
    "other",
    [
        FakeJob("b", protocol="coco"),
        FakeJob("b", attempt=2),
        FakeJob("b", asked={"gpu": 4}),
        FakeJob("b", asked={"slurm_partition": "big"}),
        FakeJob("b", asked={"joint_minutes": 0}),
    ],
    ids=["trains heads", "was tried before", "other GPUs", "other partition", "switched off"],
)
def test_what_differs_in_this_has_an_entry_of_its_own(other):
    assert names([FakeJob("a", priority=2), other]) == [["a"], ["b"]]


def test_without_the_key_each_evaluation_has_an_entry_of_its_own():
    jobs = [FakeJob(name) for name in "ab"]
    for job in jobs:
        job.asked = {"joint_minutes": None}
    with pytest.raises(UserError, match="joint_minutes of evaluate_davis is None"):
        limit_of(jobs[0])
    for job in jobs:
        job.asked = {"joint_minutes": 0}
    assert names(jobs) == [["a"], ["b"]]


def test_an_entry_asks_for_no_more_minutes_than_the_key_says():
    minutes = {"a": 240, "b": 480, "c": 960, "d": 240, "e": 1440}
    jobs = [FakeJob(name, asked={"runtime": minutes[name]}, priority=9 - place) for place, name in enumerate(minutes)]
    assert names(jobs) == [["a", "b", "d"], ["c"], ["e"]]


def test_an_entry_asks_for_the_sum_of_the_minutes_and_the_most_of_all_else(tmp_path):
    jobs = [FakeJob("a", asked={"mem_mb": 32_000}), FakeJob("b", threads=8, asked={"runtime": 30})]
    entry = Entry(jobs, tmp_path)
    asked = entry.resources
    assert (asked.gpu, asked.mem_mb, asked.runtime, asked._cores, entry.threads) == (1, 32_000, 270, 8, 8)
    assert asked.get("slurm_partition") == "gpu"
    assert entry.wildcards == ["dora", "s0"]


def test_evaluations_that_train_heads_ask_for_as_much_time_as_a_training():
    found = {evaluation_folder(name) for name, settings in evaluations().items() if asks_as_a_training(settings)}
    assert found == set(TRAIN_HEADS)
