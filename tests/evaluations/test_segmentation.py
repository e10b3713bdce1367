import csv
import json
import math
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import METRICS, MODELS, PARAM_SCHEDULERS, DefaultScope
from PIL import Image
from pydantic import ValidationError
from torch.nn.functional import interpolate

from densewalk.core.errors import Interrupted, TrainingError, UserError
from densewalk.core.imagenet import IMAGENET
from densewalk.data.benchmarks.label_maps import Example
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.mmlab import runner, segmentation
from densewalk.evaluations.mmlab.data import SeededDataset
from densewalk.evaluations.mmlab.experiment import normalization
from densewalk.evaluations.segmentation import evaluate as ade20k
from densewalk.evaluations.segmentation import experiment as mmseg
from densewalk.evaluations.segmentation.data import check_data, class_names
from densewalk.evaluations.segmentation.settings import (
    Ade20kLinearSettings,
    Ade20kUpernetSettings,
    SegmentationLinearSettings,
    SegmentationUpernetSettings,
)
from densewalk.models.loading import load
from densewalk.models.timm_models import named_architecture
from densewalk.results.published import published_numbers
from tests.fixtures.helpers import curves, events, shared
from tests.fixtures.mmdata import backbone_file, write_ade

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
    monkeypatch.setattr(ade20k, "write_segmentation_strip", lambda *arguments, **options: drawn.append((arguments, options)))
    monkeypatch.setattr(ade20k, "write_strip", write_strip)
    result = ade20k.evaluate(linear(data), nano, job(tmp_path, tensorboard=True))
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
    with (tmp_path / "out" / "optimizer.csv").open() as file:
        assert [row["parameter"] for row in csv.DictReader(file)] == [
            "decode_head.conv_seg.weight",
            "decode_head.conv_seg.bias",
            "decode_head.bn.weight",
            "decode_head.bn.bias",
        ]
    curve = [json.loads(line) for line in (tmp_path / "state/training/metrics.jsonl").read_text().splitlines()]
    assert curve[0]["step"] == 0
    assert curve[0]["loss"] > 0
    assert (tmp_path / "out/metrics.jsonl").read_bytes() == (tmp_path / "state/training/metrics.jsonl").read_bytes()
    assert events(tmp_path / "out") == curves(tmp_path / "out") != {}


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


def count(numbers):
    """One more of the last number."""
    numbers[-1] += 1


@pytest.mark.parametrize("kind", [linear, upernet])
def test_interrupted_and_resumed_equals_uninterrupted(data, nano, tmp_path, kind, monkeypatch):
    settings = kind(data, iterations=5)
    whole = ade20k.evaluate(settings, nano, job(tmp_path / "whole"))
    trained, loaded = [], [0]
    load_sample = SeededDataset.__getitem__
    monkeypatch.setattr(SeededDataset, "__getitem__", lambda data, item: (count(loaded), load_sample(data, item))[1])

    def train_and_be_stopped(hook, runner, **arguments):
        trained.append(runner.iter)
        if len(trained) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        after_train_iter(hook, runner, **arguments)

    after_train_iter = runner.StateHook.after_train_iter
    monkeypatch.setattr(runner.StateHook, "after_train_iter", train_and_be_stopped)
    with pytest.raises(Interrupted, match="after iteration 2 of 5"):
        ade20k.evaluate(settings, nano, job(tmp_path / "parts"))
    loaded.append(0)
    resumed = ade20k.evaluate(settings, nano, job(tmp_path / "parts"))
    assert trained == [0, 1, 2, 3, 4]
    assert loaded == [2 * 2, 3 * 2], "a resume must not read passed batches again"
    assert resumed == whole
    a, b = final_weights(tmp_path / "whole"), final_weights(tmp_path / "parts")
    assert all(torch.equal(v, b[k]) for k, v in a.items())


def test_a_loss_that_is_not_finite_ends_the_training_and_is_not_saved(data, nano, tmp_path):
    with pytest.raises(TrainingError, match="the loss is nan"):
        ade20k.evaluate(linear(data, warmup=0).model_copy(update={"learning_rate": 1e30}), nano, job(tmp_path))
    assert list((tmp_path / "state" / "training").glob("step-*.pt")) == []


def test_a_finished_training_is_only_tested_again_and_other_settings_start_over(data, nano, tmp_path, monkeypatch):
    steps = []
    save = runner.state_content
    monkeypatch.setattr(runner, "state_content", lambda r, done: steps.append(done) or save(r, done))
    first = ade20k.evaluate(linear(data), nano, job(tmp_path))
    assert ade20k.evaluate(linear(data), nano, job(tmp_path)) == first
    assert steps == [6]
    ade20k.evaluate(linear(data, iterations=4), nano, job(tmp_path))
    assert steps == [6, 4]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "arch", "iterations", "least"),
    [("linear", "vit_nano_patch8", 100, 90), ("upernet", "vit_nano_patch8", 110, 80), ("upernet", "timm/resnet10t", 60, 80)],
)
def test_four_images_are_overfitted(tmp_path, kind, arch, iterations, least):
    backbone = backbone_file(tmp_path, arch)
    size = 128 if kind == "linear" else 96
    root = write_ade(tmp_path, validation=4, size=(size, size), objects=1, same=True)
    common = {"classes": 4, "batch_size": 4, "short_side": size, "warmup": 5, "iterations": iterations}
    if kind == "linear":
        settings = linear(root, **common, crop=96, learning_rate=2e-2)
    else:
        settings = upernet(root, **common, crop=64, learning_rate=6e-3, channels=24, auxiliary_channels=16, drop_path=0.0)
    assert ade20k.evaluate(settings, backbone, job(tmp_path)).metrics["mIoU"] > least  # without training 5


# -- data and score --------------------------------------------------------------------------------------------------


def score_of(settings, change):
    """The score of predictions made from the ground truth, through the data set, pipeline and metric of the evaluation."""
    training, validation = check_data(settings)
    experiment = mmseg.experiment(settings, "unused", named_architecture("vit_nano_patch16"), training, validation)
    _, test = runner.loaders(experiment, NOWHERE)
    metric = METRICS.build(experiment.metric)
    for batch in test:
        (sample,) = batch["data_samples"]
        truth = sample.gt_sem_seg.data
        guess = change(torch.where(truth == segmentation.IGNORE, 0, truth))
        metric.process(batch, [sample.to_dict() | {"pred_sem_seg": {"data": guess}}])
    found = metric.evaluate(len(test))
    return ade20k.summarize(found["score/confusion"], class_names(settings), len(test))


@pytest.mark.parametrize("kind", [linear, upernet])
def test_ground_truth_as_prediction_scores_100(data, kind):
    result = score_of(kind(data), lambda truth: truth)
    assert result.metrics == {"mIoU": 100.0, "mAcc": 100.0, "aAcc": 100.0}
    assert score_of(kind(data), lambda truth: truth.roll(5, dims=-1)).metrics["mIoU"] < 95


def test_masks_are_read_at_their_own_size_with_the_first_label_ignored(data):
    settings = linear(data)
    training, validation = check_data(settings)
    experiment = mmseg.experiment(settings, "unused", named_architecture("vit_nano_patch16"), training, validation)
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
    elif what == "color":
        Image.fromarray(np.zeros((64, 96, 3), np.uint8)).save(mask)
    elif what == "size":
        Image.fromarray(np.ones((64, 95), np.uint8)).save(mask)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("folder", r"annotations/training does not exist"),
        ("mask", r"images/validation/ADE_valid_00000001.jpg has no mask \(1 of 2 images\)"),
        ("image", r"ADE_train_00000000.png has no image"),
        ("label", r"ADE_valid_00000001.png holds label 5"),
        ("color", r"ADE_valid_00000001.png is a color image"),
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
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_the_learning_rate_is_decay_times_warm_up(warmup, schedule):
    settings = linear("x", iterations=12, warmup=warmup, schedule=schedule)
    optimizer = torch.optim.AdamW([{"params": [torch.zeros(1)]}, {"params": [torch.zeros(1)], "lr": 0.5}], lr=1.0)
    schedulers = [PARAM_SCHEDULERS.build(config | {"optimizer": optimizer}) for config in mmseg.schedules(settings)]
    for t in range(12):
        expected = 1 - t / 12 if schedule == "linear" else (1 + math.cos(math.pi * t / 12)) / 2
        if t < warmup:
            expected *= 1 - (1 - t / warmup) * (1 - 1e-6)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected, expected / 2])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


def test_dinov3_s_linear_preset_counts_patches():
    card = Ade20kLinearSettings(root="x", dataset="ADE20K", preset="dinov3")
    assert card.published_protocol == "linear BN+1x1, 1024 patches (DINOv3)"
    assert (card.learning_rate, card.weight_decay, card.iterations, card.batch_size, card.warmup) == (1e-3, 1e-3, 40_000, 16, 1500)
    sides = {patch: card.fitted(patch) for patch in (14, 16, None)}
    assert {patch: (s.crop, s.short_side, s.stride) for patch, s in sides.items()} == {
        14: (448, 448, 298),
        16: (512, 512, 341),
        None: (512, 512, 341),
    }
    assert "crop 32x32 patches, slide 512/341" in card.protocol
    assert "cosine decay" in card.protocol
    assert mmseg.schedules(card)[-1]["type"] == "CosineAnnealingLR"
    plain = Ade20kLinearSettings(root="x", dataset="ADE20K")
    assert not {"schedule", "crop_patches"} & plain.model_dump().keys(), "the hashes of other recipes stay as they were"
    changed = Ade20kLinearSettings.model_validate(card.model_dump() | {"schedule": "linear"})
    assert Ade20kLinearSettings.model_validate(changed.model_dump()) == changed
    assert changed.published_protocol is None
    assert changed.protocol != card.protocol


def test_published_names_exist_and_need_the_published_settings():
    known = {(row["dataset"], row["protocol"]) for row in published_numbers()}
    for kind, change in ((Ade20kLinearSettings, {"learning_rate": 5e-4}), (Ade20kUpernetSettings, {"slide": False})):
        settings = kind(root="x", dataset="ADE20K")
        assert ("ADE20K", settings.published_protocol) in known
        assert kind(root="elsewhere", dataset="ADE20K").published_protocol == settings.published_protocol
        assert kind(root="x", dataset="mini").published_protocol is None
        changed = kind(root="x", dataset="ADE20K", **change)
        assert changed.published_protocol is None
        assert changed.protocol != settings.protocol
    assert Ade20kUpernetSettings(root="x", dataset="ADE20K", gradient_checkpointing=True).published_protocol is not None
    for kind in (Ade20kLinearSettings, Ade20kUpernetSettings):
        for preset in kind.PRESETS:
            name = kind(root="x", dataset="ADE20K", preset=preset).published_protocol
            assert name == kind.PUBLISHED.get(preset)
            assert name is None or ("ADE20K", name) in known


@pytest.mark.parametrize("kind", [Ade20kLinearSettings, Ade20kUpernetSettings])
def test_every_setting_that_matters_is_in_the_protocols_name(kind):
    settings = kind(root="x", dataset="x")
    settings = settings.model_copy(update={"multi_scale": True, "slide": True})
    others = {"levels": [1, 2, 3, 4], "channels": 5, "window_step": 100, "test_ratios": [1.0], "scale_range": (1.0, 2.0), "long_side": 900}
    others |= {"schedule": "cosine", "crop_patches": 20}
    for name in kind.model_fields.keys() - {"root", "dataset", "gradient_checkpointing", "preset"}:
        value = getattr(settings, name)
        other = others.get(name) or ((not value) if isinstance(value, bool) else value / 2 if isinstance(value, float) else value + 1)
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


# -- presets ---------------------------------------------------------------------------------------------------------


def values(kind, *names, **given):
    settings = kind(root="x", dataset="x", **given)
    return tuple(getattr(settings, name) for name in names)


def test_presets_are_the_published_recipes():
    upernet = ("iterations", "learning_rate", "layer_decay", "weight_decay", "drop_path", "batch_size", "warmup", "crop", "stride", "slide")
    same = (0.05, 0.1, 16, 1500, 512, 341, True)
    for length in (40, 80, 160):
        assert values(Ade20kUpernetSettings, *upernet, preset=f"small_{length}k") == (length * 1000, 3e-5, 0.9, *same)
        assert values(Ade20kUpernetSettings, *upernet, preset=f"base_{length}k") == (length * 1000, 8e-5, 0.65, *same)
    linear = ("layers", "batch_norm", "iterations", "learning_rate", "weight_decay", "crop", "short_side", "long_side", "slide", "stride")
    assert values(Ade20kLinearSettings, *linear) == (1, True, 40_000, 1e-3, 1e-4, 512, 512, None, False, 341)
    assert values(Ade20kLinearSettings, *linear, preset="dinov2_4layers") == (4, True, 40_000, 1e-3, 1e-4, 512, 512, None, False, 341)
    assert values(Ade20kLinearSettings, *linear, preset="dinov2_ms") == (4, True, 40_000, 1e-3, 1e-4, 640, 640, None, True, 320)
    assert values(Ade20kLinearSettings, *linear, preset="ibot") == ("spread", False, 160_000, 8e-4, 0.05, 512, 512, 2048, True, 341)
    with pytest.raises(ValidationError, match="preset 'large' is unknown; allowed: small_160k, "):
        Ade20kUpernetSettings(root="x", dataset="x", preset="large")


def test_a_smaller_batch_sees_as_many_images_at_a_lower_rate():
    names = ("batch_size", "learning_rate", "iterations", "warmup")
    assert values(Ade20kUpernetSettings, *names, batch_size=4) == (4, 3e-5 / 4, 640_000, 6000)
    assert values(Ade20kUpernetSettings, *names, preset="base_80k", batch_size=8) == (8, 4e-5, 160_000, 3000)
    assert values(Ade20kUpernetSettings, *names, batch_size=32) == (32, 6e-5, 80_000, 750)
    assert values(Ade20kUpernetSettings, *names, batch_size=16) == (16, 3e-5, 160_000, 1500)
    # what is given stands
    assert values(Ade20kUpernetSettings, *names, batch_size=4, learning_rate=3e-5, warmup=0) == (4, 3e-5, 640_000, 0)
    scaled = Ade20kUpernetSettings(root="x", dataset="ADE20K", batch_size=4)
    assert scaled.protocol == "UPerNet (iBOT), 640000 it, batch 4, crop 512, slide 512/341, learning_rate 7.5e-06, warmup 6000"
    assert scaled.published_protocol is None
    assert Ade20kUpernetSettings.model_validate_json(scaled.model_dump_json()) == scaled
    with pytest.raises(ValidationError, match="batch_size"):
        Ade20kUpernetSettings(root="x", dataset="x", batch_size=0)


def test_ranges_must_make_sense():
    for given, message in (
        ({"window_step": 600}, "window_step 600 leaves pixels out: at most crop, 512"),
        ({"scale_range": (2.0, 0.5)}, "must be above 0, the former ascending"),
        ({"test_ratios": [0.0]}, "must be above 0"),
    ):
        with pytest.raises(ValidationError, match=message):
            Ade20kUpernetSettings(root="x", dataset="x", **given)


# -- tests at several sizes ------------------------------------------------------------------------------------------


def test_sizes_and_weights_of_the_views():
    ibot = Ade20kUpernetSettings(root="x", dataset="x", multi_scale=True)
    assert mmseg.test_sides(ibot) == [512, 512, 512, 640, 768, 896]
    assert ibot.protocol.endswith("slide 512/341, ms + flip at 0.5/0.75/1/1.25/1.5/1.75")
    dinov2 = Ade20kLinearSettings(root="x", dataset="x", preset="dinov2_ms")
    assert mmseg.test_sides(dinov2) == [640, 844, 1107, 1459, 1920]
    found = mmseg.experiment(ibot, "unused", named_architecture("vit_nano_patch16"), *[[Example(Path("a"), Path("b"), ibot.rule)]] * 2)
    assert found.test_model["weights"] == [3, 3, 1, 1, 1, 1, 1, 1]
    assert mmseg.test_pipeline(upernet("x"))[1]["scale"] == (2048, 32)


def plain_windows(model, image, crop, step):
    """Logits of all windows, averaged where they overlap: the windows begin every `step` pixels, the last ones end with the image."""
    height, width = image.shape[-2:]
    total, seen = torch.zeros(1, 4, height, width), torch.zeros(1, 1, height, width)
    for i in range(1 + -(-max(0, height - crop) // step)):
        for j in range(1 + -(-max(0, width - crop) // step)):
            top, left = max(0, min(i * step, height - crop)), max(0, min(j * step, width - crop))
            window = image[:, :, top : top + crop, left : left + crop]
            logits = model.decode_head(model.neck(model.backbone(window)))
            total[:, :, top : top + crop, left : left + crop] += interpolate(logits, window.shape[-2:], mode="bilinear")
            seen[:, :, top : top + crop, left : left + crop] += 1
    return total / seen


def test_several_sizes_are_the_plain_average_of_every_view(data, nano):
    settings = upernet(data, multi_scale=True, test_ratios=[0.5, 1.0, 1.25, 1.5], short_side=32, crop=32)
    training, validation = check_data(settings)
    experiment = mmseg.experiment(settings, str(nano), load(nano).arch, training, validation)
    with DefaultScope.overwrite_default_scope("mmseg"):
        model = MODELS.build(ConfigDict(experiment.model)).eval()
    # so that every class is somewhere the likeliest
    classifier = model.decode_head.conv_seg
    torch.nn.init.normal_(classifier.weight, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        noise = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        classifier.bias -= model.decode_head(model.neck(model.backbone(noise))).mean((0, 2, 3))
    _, test = runner.loaders(experiment, NOWHERE)
    with torch.no_grad():
        (found,) = MODELS.build(experiment.test_model | {"segmentor": model}).test_step(next(iter(test)))
        mean, std = (torch.tensor(normalization(IMAGENET)[k])[:, None, None] for k in ("mean", "std"))
        picture = cv2.imread(str(validation[0].image))
        total = torch.zeros(4, 64, 96, dtype=torch.float64)
        for side in (32, 32, 40, 48):
            resized = cv2.resize(picture, (round(96 * side / 64), side), interpolation=cv2.INTER_LINEAR)
            image = (torch.from_numpy(resized[:, :, ::-1].copy()).permute(2, 0, 1) - mean) / std
            for mirrored in (False, True):
                logits = plain_windows(model, (image.flip(-1) if mirrored else image)[None], 32, 21)
                logits = logits.flip(-1) if mirrored else logits
                total += interpolate(logits, (64, 96), mode="bilinear")[0].double().softmax(0) / 8
    prediction = found.pred_sem_seg.data[0]
    decided = total.topk(2, dim=0).values.diff(dim=0)[0].abs() > 1e-4
    assert torch.equal(prediction[decided], total.argmax(0)[decided])
    assert decided.float().mean() > 0.99
    assert len(prediction.unique()) > 1
    assert not torch.equal(prediction, found.seg_logits.data.argmax(0)), "the last view alone would do"
    assert found.gt_sem_seg.data.shape[-2:] == (64, 96)


def test_a_training_is_tested_at_several_sizes(data, nano, tmp_path):
    settings = linear(data, preset="ibot", layers=1, multi_scale=True, test_ratios=[1.0, 1.5], iterations=2)
    result = ade20k.evaluate(settings, nano, job(tmp_path))
    assert all(0 <= value <= 100 for value in result.metrics.values())
    assert "decode_head.bn.weight" not in final_weights(tmp_path)


# -- other layouts ---------------------------------------------------------------------------------------------------


def write_layout(root, layout):
    """Three images in a layout, and its settings; the masks hold three classes and the ignored value."""
    values = {"voc": (0, 1, 20, 255), "cityscapes": (0, 9, 18, 255), "coco_stuff": (0, 12, 181, 255), "folders": (0, 2, 3, 1)}[layout]
    rng = np.random.default_rng(0)
    for split, names in (("train", ("a", "b")), ("val", ("c",))):
        for name in names:
            mask = np.array(values, np.uint8)[rng.integers(0, 4, (6, 8))].repeat(8, 0).repeat(8, 1)
            image, label = {
                "voc": (f"VOC2012/JPEGImages/{name}.jpg", f"VOC2012/SegmentationClass/{name}.png"),
                "cityscapes": (f"leftImg8bit/{split}/bonn/{name}_leftImg8bit.png", f"gtFine/{split}/bonn/{name}_gtFine_labelTrainIds.png"),
                "coco_stuff": (f"{split}2017/{name}.jpg", f"stuffthingmaps/{split}2017/{name}.png"),
                "folders": (f"pictures/{split}/{name}.jpg", f"labels/{split}/{name}.png"),
            }[layout]
            for path, array in ((image, mask[:, :, None].repeat(3, 2)), (label, mask)):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(root / path)
        if layout == "voc":
            (root / "VOC2012/ImageSets/Segmentation").mkdir(parents=True, exist_ok=True)
            (root / f"VOC2012/ImageSets/Segmentation/{split}.txt").write_text("\n".join(names))
    own = {"voc": {"training": "train"}, "folders": {"images": "pictures", "masks": "labels", "training": "train", "validation": "val"}}
    extra = own.get(layout, {}) | ({"num_classes": 4, "ignore": 1, "class_names": list("abcd")} if layout == "folders" else {})
    small = {name: value for name, value in SMALL.items() if name != "classes"}
    return SegmentationLinearSettings(root=str(root), layout=layout, **{**small, "iterations": 2, **extra})


@pytest.mark.parametrize(
    ("layout", "classes", "names"),
    [
        ("voc", [0, 1, 20], {0: "background", 20: "tvmonitor"}),
        ("cityscapes", [0, 9, 18], {0: "road", 9: "terrain", 18: "bicycle"}),
        ("coco_stuff", [0, 11, 170], {0: "person", 11: "stop sign", 170: "wood"}),
        ("folders", [0, 1, 2], {0: "a", 1: "c", 2: "d"}),
    ],
)
def test_every_layout_has_its_classes(tmp_path, layout, classes, names):
    settings = write_layout(tmp_path, layout)
    training, validation = check_data(settings)
    assert ([len(training), len(validation)], [e.image.stem[0] for e in validation]) == ([2, 1], ["c"])
    experiment = mmseg.experiment(settings, "unused", named_architecture("vit_nano_patch16"), training, validation)
    _, test = runner.loaders(experiment, NOWHERE)
    truth = next(iter(test))["data_samples"][0].gt_sem_seg.data[0].numpy()
    mask = np.asarray(Image.open(validation[0].mask))
    pairs = {(int(m), int(t)) for m, t in zip(mask.ravel(), truth.ravel(), strict=True)}
    order = sorted(v for v in np.unique(mask) if v != settings.rule.ignored)
    assert pairs == {*zip(order, classes, strict=True), (settings.rule.ignored, 255)}
    found = class_names(settings)
    assert {k: found[k] for k in names} == names
    assert len(found) == experiment.model["decode_head"]["num_classes"] == len(settings.rule.values)
    assert score_of(settings, lambda truth: truth).metrics["mIoU"] == 100.0


def test_a_class_beyond_an_ignored_one_is_learned_and_drawn(tmp_path, nano, monkeypatch):
    monkeypatch.setattr(ade20k, "write_strip", write_strip)
    drawn = []
    monkeypatch.setattr(ade20k, "write_segmentation_strip", lambda *arguments, **options: drawn.append((arguments, options)))
    result = ade20k.evaluate(write_layout(tmp_path, "folders"), nano, job(tmp_path))
    assert set(result.details["IoU"]) == {"1 a", "2 c", "3 d"}
    ((_, rows, names), options) = drawn.pop()
    assert (names, options) == (["a", "", "c", "d"], {"ignore": 1})
    assert set(np.unique(rows[0].target)) == {0, 1, 2, 3}
    assert 1 not in rows[0].prediction


def test_real_voc_masks_score_100_too():
    root = str(shared("data/voc"))
    settings = SegmentationUpernetSettings(root=root, dataset="mini", layout="voc", training="train")
    assert score_of(settings, lambda truth: truth).metrics["mIoU"] == 100.0


def test_the_halves_must_not_share_images(tmp_path):
    settings = write_layout(tmp_path, "voc")
    with pytest.raises(UserError, match=r"a.jpg is in the training and in the validation split"):
        check_data(settings.model_copy(update={"validation": "train"}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layout": "folders"}, "layout folders needs num_classes"),
        ({"layout": "folders", "num_classes": 2, "ignore": 0}, "num_classes 2 with ignore 0 leaves one class"),
        ({"layout": "folders", "num_classes": 3, "class_names": ["a"]}, "1 class_names for num_classes 3"),
        ({"layout": "voc", "num_classes": 3}, "layout voc knows its own num_classes: leave them out"),
        ({"layout": "cityscapes", "masks": "x"}, "layout cityscapes knows its own masks"),
        ({"layout": "nyu"}, "Input should be 'voc', 'cityscapes', 'coco_stuff' or 'folders'"),
    ],
)
def test_layouts_refuse_what_they_would_not_use(given, message):
    with pytest.raises(ValidationError, match=message):
        SegmentationLinearSettings(root="x", dataset="x", **given)


def test_other_data_is_another_table_and_has_no_published_value():
    settings = SegmentationUpernetSettings(root="x", dataset="PascalVOC", layout="voc")
    assert (settings.TABLE, Ade20kUpernetSettings.TABLE) == ("segmentation", "ade20k")
    assert settings.published_protocol is None
    assert settings.protocol == "UPerNet (iBOT), 160000 it, batch 16, crop 512, slide 512/341, voc, trainaug to val"
