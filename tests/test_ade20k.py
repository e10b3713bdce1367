import csv
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import METRICS, PARAM_SCHEDULERS
from PIL import Image
from pydantic import ValidationError

from densewalk.backbone import Architecture, load
from densewalk.errors import Interrupted, TrainingError, UserError
from densewalk.evals import ade20k
from densewalk.evals.base import Job
from densewalk.mmlab import runner, segmentation
from densewalk.settings.ade20k import Ade20kLinearSettings, Ade20kUpernetSettings
from tests.helpers import shared
from tests.mmdata import backbone_file, write_ade

SMALL = {"classes": 4, "batch_size": 2, "crop": 32, "short_side": 32, "warmup": 1, "dataset": "generated"}
NARROW = {"channels": 8, "auxiliary_channels": 8}
NOWHERE = Job(out=Path(), state=Path())
write_strip = ade20k.write_strip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_ade(tmp_path_factory.mktemp("ade"))


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    return backbone_file(tmp_path_factory.mktemp("backbone"))


@pytest.fixture(autouse=True)
def no_picture(monkeypatch):
    """Drawing takes longer than these trainings."""
    monkeypatch.setattr(ade20k, "write_strip", lambda *_: None)


def linear(data, **changes):
    return Ade20kLinearSettings(root=str(data), **{**SMALL, "iterations": 6, "learning_rate": 1e-2, **changes})


def upernet(data, **changes):
    return Ade20kUpernetSettings(root=str(data), **{**SMALL, **NARROW, "iterations": 3, "learning_rate": 1e-3, **changes})


def job(folder, **options):
    return Job(out=folder / "out", state=folder / "state", **options)


def final_weights(folder):
    return torch.load(max((folder / "state" / "training").glob("step-*.pt")), weights_only=True)["model"]


def backbone_weights(folder):
    prefix = "backbone.network.vit."
    return {k.removeprefix(prefix): v for k, v in final_weights(folder).items() if k.startswith(prefix)}


# -- the whole evaluation --------------------------------------------------------------------------------------------


def test_linear_trains_the_head_and_leaves_the_backbone(data, nano, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(ade20k, "segmentation_strip", lambda *arguments, **options: drawn.append((arguments, options)))
    monkeypatch.setattr(ade20k, "write_strip", write_strip)
    result = ade20k.evaluate(linear(data), nano, job(tmp_path))
    assert result.metrics.keys() == Ade20kLinearSettings.METRICS.keys()
    assert all(0 <= value <= 100 for value in result.metrics.values())
    assert (result.n, result.unit) == (2, "images")
    json.dumps(result.details, allow_nan=False)
    before = load(nano).vit.state_dict()
    assert all(torch.equal(before[k], v) for k, v in backbone_weights(tmp_path).items())
    assert backbone_weights(tmp_path).keys() == before.keys()
    assert final_weights(tmp_path)["decode_head.bn.bias"].abs().min() > 0
    ((path, rows, names), options) = drawn.pop()
    assert path == tmp_path / "out" / "strip.png"
    assert [row.title for row in rows] == ["ADE_valid_00000000", "ADE_valid_00000001"]
    assert {row.prediction.shape for row in rows} == {row.target.shape for row in rows} == {(64, 96)}
    assert set(np.unique(rows[0].target)) <= {0, 1, 2, 3, 4}
    assert set(np.unique(rows[0].prediction)) <= {1, 2, 3, 4}
    assert (len(names), options) == (5, {"ignore": 0})
    curve = [json.loads(line) for line in (tmp_path / "state/training/metrics.jsonl").read_text().splitlines()]
    assert curve[0]["step"] == 0
    assert curve[0]["loss"] > 0


def test_upernet_trains_every_part(data, nano, tmp_path):
    settings = upernet(data, drop_path=0.0)
    ade20k.evaluate(settings, nano, job(tmp_path))
    before, after = load(nano).vit.state_dict(), backbone_weights(tmp_path)
    assert {k for k, v in after.items() if torch.equal(before[k], v)} == set()
    heads = {k.split(".")[0] for k in final_weights(tmp_path)}
    assert heads == {"backbone", "neck", "decode_head", "auxiliary_head"}


@pytest.mark.parametrize("kind", [linear, upernet])
def test_a_seed_gives_the_same_weights_twice_and_another_gives_others(data, nano, tmp_path, kind):
    settings = kind(data, iterations=3)
    results = [ade20k.evaluate(settings, nano, job(tmp_path / name, seed=seed)) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    weights = [final_weights(tmp_path / name) for name in "abc"]
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())
    assert results[0] == results[1]
    assert not torch.equal(weights[0]["decode_head.conv_seg.weight"], weights[2]["decode_head.conv_seg.weight"])


def test_loading_processes_change_nothing(data, nano, tmp_path):
    # drop path and dropout draw from the generators that loading in the same process draws from too
    settings = upernet(data, drop_path=0.5)
    results = [ade20k.evaluate(settings, nano, job(tmp_path / str(n), workers=n)) for n in (0, 2)]
    assert results[0] == results[1]
    assert all(torch.equal(v, final_weights(tmp_path / "2")[k]) for k, v in final_weights(tmp_path / "0").items())


@pytest.mark.parametrize("kind", [linear, upernet])
def test_interrupted_and_resumed_equals_uninterrupted(data, nano, tmp_path, kind, monkeypatch):
    settings = kind(data, iterations=5)
    whole = ade20k.evaluate(settings, nano, job(tmp_path / "whole"))
    trained = []

    def train_and_be_stopped(hook, runner, **arguments):
        trained.append(runner.iter)
        if len(trained) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        after_train_iter(hook, runner, **arguments)

    after_train_iter = runner.StateHook.after_train_iter
    monkeypatch.setattr(runner.StateHook, "after_train_iter", train_and_be_stopped)
    with pytest.raises(Interrupted, match="after iteration 2 of 5"):
        ade20k.evaluate(settings, nano, job(tmp_path / "parts"))
    resumed = ade20k.evaluate(settings, nano, job(tmp_path / "parts"))
    assert trained == [0, 1, 2, 3, 4]
    assert resumed == whole
    a, b = final_weights(tmp_path / "whole"), final_weights(tmp_path / "parts")
    assert all(torch.equal(v, b[k]) for k, v in a.items())


def test_a_loss_that_is_not_finite_ends_the_training_and_is_not_saved(data, nano, tmp_path):
    with pytest.raises(TrainingError, match="the loss is nan"):
        ade20k.evaluate(linear(data, learning_rate=1e30, warmup=0), nano, job(tmp_path))
    assert list((tmp_path / "state" / "training").glob("step-*.pt")) == []


def test_a_finished_training_is_only_tested_again_and_other_settings_begin_anew(data, nano, tmp_path, monkeypatch):
    steps = []
    save = runner.content_of
    monkeypatch.setattr(runner, "content_of", lambda r, done: steps.append(done) or save(r, done))
    first = ade20k.evaluate(linear(data), nano, job(tmp_path))
    assert ade20k.evaluate(linear(data), nano, job(tmp_path)) == first
    assert steps == [6]
    ade20k.evaluate(linear(data, iterations=4), nano, job(tmp_path))
    assert steps == [6, 4]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["linear", "upernet"])
def test_four_images_are_learnt_by_heart(tmp_path, kind):
    backbone = backbone_file(tmp_path, "vit_nano_patch8")
    size = 128 if kind == "linear" else 96
    root = write_ade(tmp_path, validation=4, size=(size, size), objects=1, same=True)
    common = {"classes": 4, "batch_size": 4, "short_side": size, "warmup": 5}
    if kind == "linear":
        settings = linear(root, **common, iterations=100, crop=96, learning_rate=2e-2)
    else:
        settings = upernet(root, **common, iterations=110, crop=64, learning_rate=3e-3, channels=48, auxiliary_channels=32, drop_path=0.0)
    assert ade20k.evaluate(settings, backbone, job(tmp_path)).metrics["mIoU"] > 90


# -- data and score --------------------------------------------------------------------------------------------------


def score_of(settings, change):
    """The score of predictions made from the ground truth, through the data set, pipeline and metric of the evaluation."""
    training, validation = ade20k.check_data(settings)
    experiment = ade20k.experiment(settings, "unused", Architecture.named("vit_nano_patch16"), training, validation)
    _, test = runner.loaders(experiment, NOWHERE)
    metric = METRICS.build(experiment.metric)
    for batch in test:
        (sample,) = batch["data_samples"]
        truth = sample.gt_sem_seg.data
        guess = change(torch.where(truth == segmentation.IGNORE, 0, truth))
        metric.process(batch, [sample.to_dict() | {"pred_sem_seg": {"data": guess}}])
    found = metric.evaluate(len(test))
    return ade20k.score(found["score/confusion"], ade20k.class_names(settings), len(test))


@pytest.mark.parametrize("kind", [linear, upernet])
def test_ground_truth_as_prediction_scores_100(data, kind):
    result = score_of(kind(data), lambda truth: truth)
    assert result.metrics == {"mIoU": 100.0, "mAcc": 100.0, "aAcc": 100.0}
    assert score_of(kind(data), lambda truth: truth.roll(5, dims=-1)).metrics["mIoU"] < 95


def test_masks_are_read_at_their_own_size_with_the_first_label_ignored(data):
    settings = linear(data)
    training, validation = ade20k.check_data(settings)
    experiment = ade20k.experiment(settings, "unused", Architecture.named("vit_nano_patch16"), training, validation)
    batches, test = runner.loaders(experiment, NOWHERE)
    sample = next(iter(test))
    mask = np.asarray(Image.open(validation[0].mask)).astype(int)
    expected = np.where(mask == 0, 255, mask - 1)
    assert np.array_equal(sample["data_samples"][0].gt_sem_seg.data[0].numpy(), expected)
    assert sample["inputs"][0].shape == (3, 32, 48)
    batch = next(iter(batches))
    assert len(batch["inputs"]) == 2
    assert max(max(image.shape[1:]) for image in batch["inputs"]) <= 32


def test_real_masks_score_100_too():
    result = score_of(Ade20kLinearSettings(root=str(shared("data/ade20k_format_coco")), dataset="mini"), lambda truth: truth)
    assert result.metrics["mIoU"] == 100.0
    assert result.n == 16


def spoil(root, what):
    base = root / "ADEChallengeData2016"
    mask = sorted((base / "annotations/validation").iterdir())[1]
    if what == "folder":
        for path in (base / "annotations/training").iterdir():
            path.unlink()
        (base / "annotations/training").rmdir()
    elif what == "mask":
        mask.unlink()
    elif what == "image":
        sorted((base / "images/training").iterdir())[0].unlink()
    elif what == "label":
        Image.fromarray(np.full((64, 96), 5, np.uint8)).save(mask)
    elif what == "colour":
        Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(mask)
    elif what == "size":
        Image.fromarray(np.ones((64, 95), np.uint8)).save(mask)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("folder", r"annotations/training does not exist"),
        ("mask", r"1 images in .*images/validation have no mask, e.g. ADE_valid_00000001.jpg"),
        ("image", r"ADE_train_00000000.png has no image"),
        ("label", r"ADE_valid_00000001.png holds label 5"),
        ("colour", r"ADE_valid_00000001.png is a colour image"),
        ("size", r"ADE_valid_00000001.png is 95x64"),
    ],
)
def test_bad_data_is_named_before_anything_heavy(tmp_path, nano, what, message, monkeypatch):
    write_ade(tmp_path)
    spoil(tmp_path, what)
    monkeypatch.setattr(runner, "run", lambda *_: pytest.fail("trained on bad data"))
    with pytest.raises(UserError, match=message):
        ade20k.evaluate(linear(tmp_path), nano, job(tmp_path))


def test_levels_and_layers_must_exist(data, nano, tmp_path):
    with pytest.raises(UserError, match="allowed: ascending block numbers from 0 to 1"):
        ade20k.evaluate(upernet(data, levels=[0, 1, 1, 2]), nano, job(tmp_path))
    with pytest.raises(UserError, match="layers 3: vit_nano_patch16 has 2 blocks"):
        ade20k.evaluate(linear(data, layers=3), nano, job(tmp_path))


# -- settings and schedule -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0, 4])
def test_the_learning_rate_is_decay_times_warm_up(warmup):
    settings = linear("x", iterations=12, warmup=warmup)
    optimizer = torch.optim.AdamW([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 0.5}], lr=1.0)
    schedulers = [PARAM_SCHEDULERS.build(config | {"optimizer": optimizer}) for config in ade20k.schedules(settings)]
    for t in range(12):
        expected = 1 - t / 12
        if t < warmup:
            expected *= 1 - (1 - t / warmup) * (1 - 1e-6)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected, expected / 2])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


def test_published_names_exist_and_need_the_published_settings():
    with open(shared("published.csv")) as file:
        known = {(row["dataset"], row["protocol"]) for row in csv.DictReader(file)}
    for kind, change in ((Ade20kLinearSettings, {"learning_rate": 5e-4}), (Ade20kUpernetSettings, {"slide": False})):
        settings = kind(root="x", dataset="ADE20K")
        assert ("ADE20K", settings.published_protocol) in known
        assert kind(root="elsewhere", dataset="ADE20K").published_protocol == settings.published_protocol
        assert kind(root="x", dataset="mini").published_protocol is None
        changed = kind(root="x", dataset="ADE20K", **change)
        assert changed.published_protocol is None
        assert changed.protocol != settings.protocol
    assert Ade20kUpernetSettings(root="x", dataset="ADE20K", gradient_checkpointing=True).published_protocol is not None


@pytest.mark.parametrize("kind", [Ade20kLinearSettings, Ade20kUpernetSettings])
def test_every_setting_that_matters_is_in_the_protocols_name(kind):
    settings = kind(root="x", dataset="x")
    for name in kind.model_fields.keys() - {"root", "dataset", "gradient_checkpointing", "levels", "channels"}:
        value = getattr(settings, name)
        other = (not value) if isinstance(value, bool) else value / 2 if isinstance(value, float) else value + 1
        assert settings.model_copy(update={name: other}).protocol != settings.protocol, name


def test_protocol_names():
    assert linear("x").protocol.startswith("linear (DINOv2: BN + 1x1 conv, last layer), 6 it, batch 2, crop 32, whole, ")
    full = Ade20kUpernetSettings(root="x", dataset="x")
    assert full.protocol == "UPerNet (iBOT), 160000 it, batch 16, crop 512, slide 512/341"
    assert full.model_copy(update={"levels": [2, 5, 8, 11]}).protocol.endswith(", levels 2/5/8/11")


def test_settings_survive_json():
    settings = upernet("x", levels=[0, 0, 1, 1])
    assert Ade20kUpernetSettings.model_validate_json(settings.model_dump_json()) == settings
    with pytest.raises(ValidationError, match="warmup 6 must be shorter than iterations 6"):
        linear("x", warmup=6)
