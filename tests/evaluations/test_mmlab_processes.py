"""Heads and detectors trained in two processes, and in parts, against one process with the whole batch."""

import json

import pytest
import torch
from torch import nn

from densewalk.cli import job_commands as commands
from densewalk.cli.parser import parser
from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.evaluations.coco import evaluate as coco
from densewalk.evaluations.coco.settings import CocoSettings
from densewalk.evaluations.knn.settings import KnnSettings
from densewalk.evaluations.mmlab.data import ItemStream
from densewalk.evaluations.segmentation.settings import Ade20kLinearSettings
from densewalk.jobs import evaluate as evaluate_job
from densewalk.jobs import train as train_job
from densewalk.models.origin import RandomWeights
from densewalk.results.records import read_result
from densewalk.study.specs import EvaluationSpec, RunSpec
from densewalk.training import launch
from densewalk.training.execution import Execution
from tests.fixtures import mmprocesses
from tests.fixtures.mmdata import write_ade, write_coco

KINDS = [*mmprocesses.KINDS]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data with an odd number of test images, a backbone, the specification of a job, and what two processes make of them."""
    folder = tmp_path_factory.mktemp("processes")
    write_ade(folder / "ade", training=8, validation=3)
    write_coco(folder / "coco", training=4, validation=3)
    run = RunSpec(run="r", seed=0, method="none", arch="vit_nano_patch16", init=RandomWeights())
    train_job.make_backbone(run, None, [], folder / "run-state", folder / "run", Execution())
    settings = Ade20kLinearSettings(root="ade", learning_rate=1e-2, **mmprocesses.ADE)
    named = {"run": "r", "seed": 0, "run_hash": run.hash, "evaluation": "linear", "protocol": "ade20k_linear", "labels": None}
    spec = EvaluationSpec(version=settings.VERSION, settings=settings, **named)
    (folder / "spec.json").write_text(spec.model_dump_json())
    return folder


@pytest.fixture(scope="module")
def one(place):
    """What one process makes of the same; of the detector, the trained state that two processes then test."""
    backbone = place / "run" / "backbone.safetensors"
    found = {kind: mmprocesses.train(kind, place / "one" / kind, place / "ade", backbone) for kind in KINDS}
    found["tested"] = coco.evaluate(mmprocesses.detector(place / "coco", "maskrcnn", 1), backbone, mmprocesses.job(place / "tested"))
    return found


@pytest.fixture(scope="module")
def two(place, one):
    (place / "tested" / "out" / "detections_val2017_bbox.json").rename(place / "alone.json")
    mmprocesses.in_two_processes(place)
    return torch.load(place / "found.pt", weights_only=False)  # written by this test's own processes


def end(place, *where, process=0):
    return torch.load(place.joinpath(*where, f"process-{process}.pt"), weights_only=True)


def distance(found, expected):
    """Of two lists of gradients, relative to the second."""
    flat = [torch.cat([g.flatten() for g in gradients]).double() for gradients in (found, expected)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_make_the_updates_of_one(place, one, two, kind):
    alone, both = end(place, "one", kind), end(place, "two", kind)
    assert both["updates"] == alone["updates"] == mmprocesses.KINDS[kind]("x").iterations
    assert distance(both["gradients"][0], alone["gradients"][0]) < 1e-4
    moved = {k: v for k, v in alone["weights"].items() if v.is_floating_point() and "running" in k}
    assert (kind == "without_norm") == (not moved)
    for name, value in moved.items():
        torch.testing.assert_close(both["weights"][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [*KINDS, "cascade"])
def test_all_processes_end_with_the_same_weights(place, two, kind):
    first, second = (end(place, "two", kind, process=number) for number in (0, 1))
    assert first["updates"] == second["updates"] > 0
    assert all(torch.equal(v, second["weights"][k]) for k, v in first["weights"].items())


def test_parts_have_the_gradient_of_the_whole_batch(place, one, two):
    whole = end(place, "one", "without_norm")["gradients"][0]
    assert distance(end(place, "two", "parts")["gradients"][0], whole) < 1e-4
    mmprocesses.train("without_norm", place / "one" / "parts", place / "ade", place / "run" / "backbone.safetensors", parts=4)
    parts = end(place, "one", "parts")
    assert distance(parts["gradients"][0], whole) < 1e-4
    assert parts["updates"] == 4


def test_each_image_is_scored_once(place, one, two):
    assert two["tested"] == one["tested"].metrics
    assert json.loads((place / "tested/out/detections_val2017_bbox.json").read_text()) == json.loads((place / "alone.json").read_text())
    pixels = int(one["with_norm"]["confusion"].sum())
    assert all(int(two[kind]["confusion"].sum()) == pixels for kind in KINDS)
    assert [list(two[kind]["shown"]) for kind in KINDS] == [list(one[kind]["shown"]) for kind in KINDS]


def test_cascade_trains_in_two_processes(two):
    assert two["cascade"].keys() == CocoSettings.METRICS.keys()


def test_a_signal_to_one_process_stops_all_and_the_resume_is_exact(place, two):
    for number in (0, 1):
        whole, resumed = (end(place, "two", kind, process=number)["weights"] for kind in ("with_norm", "interrupted"))
        assert all(torch.equal(v, resumed[k]) for k, v in whole.items())
    assert torch.equal(two["with_norm"]["confusion"], two["interrupted"]["confusion"])


def test_a_job_in_two_processes_writes_one_record(place, two):
    record = read_result(place / "job" / "linear.json")
    assert [attempt.processes for attempt in record.made] == [2]
    assert record.n == 3
    points = [json.loads(line)["step"] for line in (place / "job/linear/metrics.jsonl").read_text().splitlines()]
    assert points == [0]


# -- without processes -------------------------------------------------------------------------------------------------------


def test_shares_are_parts_of_the_same_batches(monkeypatch):
    groups = [i % 3 == 0 for i in range(11)]
    whole = ItemStream(11, 5, batch_size=4, groups=groups)
    items = [item for item, _ in zip(whole, range(40), strict=False)]
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "world_size", lambda: 2)
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        stream = ItemStream(11, 5, batch_size=4, groups=groups)
        expected = [item for at, item in enumerate(items) if at % 4 // 2 == rank]
        assert [item for item, _ in zip(stream, expected, strict=False)] == expected
        stream.skip(6)
        assert [item for item, _ in zip(stream, expected[6:], strict=False)] == expected[6:]
    with pytest.raises(UserError, match="batch_size 3 cannot be shared evenly by 2 processes"):
        ItemStream(11, 5, batch_size=3)


def test_only_what_can_be_shared_becomes_processes(place, monkeypatch):
    became = []
    monkeypatch.chdir(place)
    monkeypatch.setattr(launch, "become_processes", lambda *arguments: became.append(arguments))
    monkeypatch.setattr(evaluate_job, "evaluate", lambda *_, **__: None)
    given = ["--backbone", "b", "--state", "s", "--out", "o", "--gpus", "3", "--threads", "8", "--spec"]
    args = parser().parse_args(["evaluate", *given, "spec.json"])
    args.execution = Execution(device="cpu")
    commands.evaluate(args)
    assert became == [(3, 1, 8)]
    frozen = json.loads((place / "spec.json").read_text())
    monkeypatch.setattr(KnnSettings, "PROCESSES", False)
    frozen |= {"protocol": "knn", "settings": {"root": "d", "dataset": "d"}, "version": KnnSettings.VERSION}
    (place / "frozen.json").write_text(json.dumps(frozen))
    args = parser().parse_args(["evaluate", *given, "frozen.json"])
    args.execution = Execution(device="cpu")
    commands.evaluate(args)
    assert became[1:] == [(1, 1, 8)]


def test_parts_are_refused_where_batch_normalization_looks_across_them():
    settings = Ade20kLinearSettings(root="x", dataset="x")
    assert settings.obstacle_to_parts(1, 4) is None
    assert "batch normalization looks across the batch" in settings.obstacle_to_parts(2)
    assert "cannot be shared evenly by 3 processes" in settings.obstacle_to_parts(1, 3)
    ibot = Ade20kLinearSettings(root="x", dataset="x", preset="ibot")
    assert ibot.obstacle_to_parts(4, 4) is None
    assert "batch_size 16 shared by 4 processes does not split into 3" in ibot.obstacle_to_parts(3, 4)
    assert "batch normalization" in CocoSettings(root="x", dataset="x").obstacle_to_parts(4)
    assert CocoSettings(root="x", dataset="x", head="maskrcnn").obstacle_to_parts(4) is None


@pytest.mark.parametrize("head", ["cascade", "maskrcnn"])
def test_the_settings_know_who_normalizes_batches(place, head):
    from mmengine.config import ConfigDict
    from mmengine.registry import MODELS, DefaultScope

    from densewalk.evaluations.coco import experiment as mmdet
    from densewalk.evaluations.mmlab import detection, vit  # noqa: F401
    from densewalk.models.timm_models import named_architecture

    settings = mmprocesses.detector(place / "coco", head, 1)
    arch = named_architecture("vit_nano_patch16")
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(ConfigDict(mmdet.detector(settings, str(place / "run" / "backbone.safetensors"), arch, classes=3)))
    assert any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()) == settings.normalizes_batches
