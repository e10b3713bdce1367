"""Linear segmentation with reduced masks: against loops, through interruptions, and with bad data."""

import json
import os
import signal
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F

from densewalk.core.errors import Interrupted, UserError
from densewalk.core.imagenet import IMAGENET
from densewalk.data.benchmarks.label_maps import Example
from densewalk.evaluations.common import dense_features
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.common.dense_features import reduce_masks, whole_batches
from densewalk.evaluations.linear_segmentation import evaluate as linear_segmentation
from densewalk.evaluations.linear_segmentation.evaluate import TrainingImages, crop, epoch_batches, evaluate, list_splits, logits, step
from densewalk.evaluations.linear_segmentation.settings import LinearSegmentationSettings
from densewalk.models.feature_cache import FeatureCache
from densewalk.models.loading import load
from tests.fixtures.dense import MeanColors, image_of, label_map, write_backbone, write_masks, write_voc


def settings_of(root=".", layout="masks", **changes):
    own = {"images": "images", "masks": "masks", "num_classes": 4} if layout == "masks" else {}
    every = {"train_every": 2, "val_every": 2, "val_offset": 1}
    small = {"input_size": 32, "mask_size": 8, "epochs": 2, "drop_epoch": 1, "batch_size": 3}
    return LinearSegmentationSettings(**{"root": str(root), "dataset": "toy", "layout": layout, **own, **every, **small, **changes})


def job_in(folder, **changes):
    return Job(out=folder / "out", state=folder / "state", **changes)


# -- Cityscapes --------------------------------------------------------------------------------------------------------


CITY_COLORS = np.array([[30, 30, 30], [220, 40, 40], [40, 220, 40], [40, 40, 220]], np.uint8)
CITY_IDS = np.array([7, 33, 19, 4], np.uint8)  # road, bicycle, traffic light, and one that is no class


def write_cityscapes(root, *, ids=CITY_IDS):
    """Quadrants of road, bicycle, traffic light and an id that is not scored."""
    for split, count in (("train", 2), ("val", 2)):
        for i in range(count):
            quadrants = np.roll(np.array([[0, 1], [2, 3]]), i).repeat(16, 0).repeat(16, 1)
            name = f"aachen_00000{i}_000019"
            for kind, array, end in (("leftImg8bit", CITY_COLORS[quadrants], "leftImg8bit"), ("gtFine", ids[quadrants], "gtFine_labelIds")):
                folder = root / kind / split / "aachen"
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / f"{name}_{end}.png")


def by_color(*_):
    """A head that gives each patch the class whose color is nearest: 2 c.x - |c|^2."""
    colors = (torch.from_numpy(CITY_COLORS[:3]).double() / 255 - torch.tensor(IMAGENET.mean)) / torch.tensor(IMAGENET.std)
    head = nn.Linear(3, 19)
    head.weight.data[:], head.bias.data[:] = 0, -1e3
    for color, label in zip(colors, (0, 18, 6), strict=True):
        head.weight.data[label], head.bias.data[label] = 2 * color.float(), -float(color.square().sum())
    return head


def test_ids_of_cityscapes_become_its_19_classes(tmp_path, monkeypatch):
    """Through `evaluate` itself, with a head that knows the colors: road, traffic light and bicycle are classes 0, 6 and 18."""
    write_cityscapes(tmp_path)
    monkeypatch.setattr("densewalk.evaluations.common.base.load", lambda _path: MeanColors())
    monkeypatch.setattr(linear_segmentation, "train", by_color)
    monkeypatch.setattr(linear_segmentation, "training_state", lambda *_: nullcontext())
    settings = settings_of(tmp_path, layout="cityscapes")
    result = evaluate(settings, tmp_path, job_in(tmp_path))
    assert result.metrics["mIoU"] == 100
    assert {name for name, value in result.details["IoU"].items() if value is not None} == {"road", "traffic light", "bicycle"}
    assert result.n == 2
    assert "linear 8x8 masks" in settings.protocol


def test_bad_cityscapes_is_refused_before_the_backbone_is_loaded(tmp_path):
    write_cityscapes(tmp_path)
    (tmp_path / "gtFine/val/aachen/aachen_000001_000019_gtFine_labelIds.png").unlink()
    with pytest.raises(UserError, match=r"aachen_000001_000019.*labelIds"):
        evaluate(settings_of(tmp_path, layout="cityscapes"), tmp_path / "no.safetensors", job_in(tmp_path))
    with pytest.raises(UserError, match=r"leftImg8bit/train does not exist"):
        evaluate(settings_of(tmp_path / "nowhere", layout="cityscapes"), tmp_path / "no.safetensors", job_in(tmp_path))


# -- the arithmetic --------------------------------------------------------------------------------------------------


def test_logits_are_a_convolution_of_interpolated_features():
    """The order of the two linear maps does not matter; written as published, in float64."""
    head, maps = nn.Linear(6, 4).double(), torch.randn(2, 6, 3, 5, dtype=torch.float64)
    published = F.conv2d(F.interpolate(maps, (10, 11), mode="bilinear"), head.weight[:, :, None, None], head.bias)
    torch.testing.assert_close(logits(head, maps, (10, 11)), published, rtol=1e-12, atol=1e-12)


def test_reduced_masks_take_every_so_manieth_pixel():
    mask = torch.randint(256, (2, 14, 21), dtype=torch.int32)
    expected = [[[int(m[i * 14 // 10, j * 21 // 10]) for j in range(10)] for i in range(10)] for m in mask]
    assert reduce_masks(mask, 10).tolist() == expected


def mean_colors(images):
    """Features of patches."""
    return F.avg_pool2d(images, 16)


def test_a_step_is_sgd_on_the_whole_batch(monkeypatch):
    """Split into passes of two images it gives the update of the plain form, ignored pixels weighing nothing."""
    monkeypatch.setattr(linear_segmentation, "BATCH", 2)
    settings = settings_of(ignore=3, weight_decay=0.1)
    images, masks = torch.randn(5, 3, 32, 32), torch.randint(4, (5, 32, 32))
    masks[0] = 3
    head, plain = nn.Linear(3, 4), nn.Linear(3, 4)
    plain.load_state_dict(head.state_dict())
    optimizer = torch.optim.SGD(head.parameters(), 0.5, momentum=0.9, weight_decay=0.1)
    buffers = {}
    for _ in range(3):
        found = step(settings, mean_colors, head, optimizer, images, masks, [Example(Path("a"), Path("b"), settings.rule)] * 5)
        features = F.interpolate(F.avg_pool2d(images, 16), (8, 8), mode="bilinear")
        scores = F.conv2d(features, plain.weight[:, :, None, None], plain.bias).log_softmax(1)
        labels = reduce_masks(masks, 8)
        losses = -scores.gather(1, labels[:, None])[:, 0][labels != 3]
        loss = losses.sum() / len(losses)
        gradients = torch.autograd.grad(loss, list(plain.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
                gradient = gradient + 0.1 * parameter
                buffers[parameter] = 0.9 * buffers[parameter] + gradient if parameter in buffers else gradient
                parameter -= 0.5 * buffers[parameter]
        assert found == pytest.approx(loss.item(), rel=1e-5)
    for a, b in zip(head.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_batch_without_a_label_changes_nothing():
    head = nn.Linear(3, 4)
    before = head.weight.clone()
    optimizer = torch.optim.SGD(head.parameters(), 0.5, weight_decay=0.1)
    images, masks = torch.randn(2, 3, 32, 32), torch.full((2, 32, 32), 3)
    assert step(settings_of(ignore=3), mean_colors, head, optimizer, images, masks, []) == 0.0
    assert torch.equal(head.weight, before)


def test_crops_move_image_and_mask_together():
    """The picture's color gives the label back wherever the crop lies, but for pixels at edges."""
    labels = label_map(1, 64)
    x, mask = crop(image_of(labels, 0), torch.from_numpy(labels.astype(np.int32)), 64, (0.3, 0.6), IMAGENET, seed=3)
    y, _ = crop(image_of(labels, 0), torch.from_numpy(labels.astype(np.int32)), 64, (0.3, 0.6), IMAGENET, seed=4)
    assert not torch.equal(x, y)
    green = x[1] > x[2]
    assert ((mask == 1) == green).float().mean() > 0.93


def test_each_image_once_an_epoch_and_the_released_order():
    paper = [list(epoch_batches(settings_of(), 8, epoch, 0)) for epoch in (0, 1)]
    assert [[len(b) for b in batches] for batches in paper] == [[3, 3, 2]] * 2
    orders = [[i for batch in batches for _, i in batch] for batches in paper]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(8))
    assert orders[0] != orders[1]
    for layout, shuffled in (("voc", False), ("ade20k", False), ("cityscapes", True)):
        batches = epoch_batches(settings_of(layout=layout, compat="released").resolved(), 8, 0, 0)
        assert ([i for batch in batches for _, i in batch] != list(range(8))) == shuffled


def test_the_released_code_drops_validation_images():
    released = settings_of(layout="voc", compat="released")
    many = [Example(f"{i}.jpg", f"{i}.png", released.rule) for i in range(1449)]
    assert len(whole_batches(released, many, 128)) == 1408
    assert len(whole_batches(released, many, 32)) == 1440
    assert len(whole_batches(settings_of(layout="voc"), many, 128)) == 1449
    assert len(whole_batches(settings_of(layout="ade20k", compat="released"), many, 128)) == 1449
    with pytest.raises(UserError, match="12 images fill no batch of 128"):
        whole_batches(released, many[:12], 128)


def test_each_deviation_can_be_studied_alone():
    many = [Example(f"{i}.jpg", f"{i}.png", settings_of(layout="voc").rule) for i in range(10)]
    assert len(whole_batches(settings_of(layout="voc", drop_incomplete_batch=True), many, 4)) == 8
    assert len(whole_batches(settings_of(layout="voc", compat="released", drop_incomplete_batch=False), many, 4)) == 10
    for changes, shuffled in (({"fixed_order": True}, False), ({"compat": "released", "fixed_order": False}, True)):
        batches = epoch_batches(settings_of(layout="voc", **changes).resolved(), 8, 0, 0)
        assert ([i for batch in batches for _, i in batch] != list(range(8))) == shuffled
    assert settings_of(count_absent_classes=True).resolved().count_absent_classes


# -- the whole -------------------------------------------------------------------------------------------------------


def test_it_learns_colors_and_is_the_same_twice(tmp_path):
    write_masks(tmp_path)
    backbone = write_backbone(tmp_path / "b.safetensors")
    settings = settings_of(tmp_path, epochs=15, drop_epoch=13, learning_rate=1.0, mask_size=2)
    cache = FeatureCache(tmp_path / "cache", 2**24)
    result = evaluate(settings, backbone, job_in(tmp_path / "a", cache=cache))
    assert result.metrics["mIoU"] > 60
    assert result.n == 4
    assert result.details["training_images"] == 4
    assert Image.open(tmp_path / "a/out/strip.png").size[0] > 500
    json.dumps(result.details, allow_nan=False)
    assert list((tmp_path / "cache").glob("??/*"))
    assert evaluate(settings, backbone, job_in(tmp_path / "b")) == result  # without the cache, too


def test_voc_is_read_with_its_border(tmp_path):
    write_voc(tmp_path)
    backbone = write_backbone(tmp_path / "b.safetensors")
    full = evaluate(settings_of(tmp_path, "voc", scoring="full"), backbone, job_in(tmp_path))
    assert full.n == 5
    released = evaluate(settings_of(tmp_path, "voc", compat="released"), backbone, job_in(tmp_path / "r"))
    assert released.n == 3


def test_full_scoring_counts_every_pixel_of_the_file(tmp_path, monkeypatch):
    write_masks(tmp_path)
    for i in (1, 3, 5, 7):  # validation images of another shape
        labels = label_map(i).repeat(2, 1)
        image_of(labels, i).save(tmp_path / f"images/{i:03d}.png")
        Image.fromarray(labels).save(tmp_path / f"masks/{i:03d}.png")
    seen = []
    counted = dense_features.counted
    monkeypatch.setattr(dense_features, "counted", lambda t, p, *rest, **options: (seen.append((t, p)), counted(t, p, *rest, **options))[1])
    backbone = write_backbone(tmp_path / "b.safetensors")
    for scoring, size in (("full", (32, 64)), ("reduced", (8, 8))):
        seen.clear()
        evaluate(settings_of(tmp_path, scoring=scoring), backbone, job_in(tmp_path / scoring))
        assert {tuple(t.shape) for pair in seen for t in pair} == {size}
        if scoring == "full":
            assert seen[0][0].tolist() == label_map(1).repeat(2, 1).tolist()


def test_an_interrupted_training_goes_on_where_it_was(tmp_path, monkeypatch):
    write_masks(tmp_path)
    backbone = write_backbone(tmp_path / "b.safetensors")
    settings = settings_of(tmp_path)
    whole = evaluate(settings, backbone, job_in(tmp_path / "whole"))
    original, calls = linear_segmentation.step, []

    def stopping(*arguments):
        calls.append(1)
        if len(calls) == 3:  # within the second epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(linear_segmentation, "step", stopping)
    with pytest.raises(Interrupted, match="after step 3 of 4"):
        evaluate(settings, backbone, job_in(tmp_path / "parts"))
    assert evaluate(settings, backbone, job_in(tmp_path / "parts")) == whole
    assert len(calls) == 4


def test_a_random_part_of_the_training_images(tmp_path):
    write_masks(tmp_path)
    chosen = list_splits(settings_of(tmp_path, train_images=2), 0)[0]
    assert len(chosen) == 2
    assert chosen == list_splits(settings_of(tmp_path, train_images=2), 0)[0]
    assert len({tuple(map(str, list_splits(settings_of(tmp_path, train_images=2), seed)[0])) for seed in range(5)}) > 1
    with pytest.raises(UserError, match="train_images 9 of 4"):
        list_splits(settings_of(tmp_path, train_images=9), 0)


# -- bad input -------------------------------------------------------------------------------------------------------


def damage(root, how):
    mask, image = root / "masks/002.png", root / "images/002.png"
    if how == "gap":
        Image.fromarray(np.full((32, 32), 7, np.uint8)).save(mask)
    elif how == "size":
        Image.fromarray(np.zeros((16, 16), np.uint8)).save(mask)
    elif how == "png":
        mask.write_bytes(mask.read_bytes()[:50])
    elif how == "image":
        image.write_bytes(b"no picture")
    elif how == "folder":
        (root / "masks").rename(root / "elsewhere")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("gap", r"masks/002.png holds label 7; allowed: 0 to 3"),
        ("size", r"002.png is 16x16, but .*002.png is 32x32"),
        ("png", r"masks/002.png cannot be read"),
        ("image", r"images/002.png cannot be read"),
        ("folder", r"folder .*masks does not exist"),
    ],
)
def test_bad_data_names_the_file(tmp_path, how, message):
    write_masks(tmp_path)
    backbone = write_backbone(tmp_path / "b.safetensors")
    damage(tmp_path, how)
    with pytest.raises(UserError, match=message):
        evaluate(settings_of(tmp_path), backbone, job_in(tmp_path))
    assert not (tmp_path / "out").exists()


def test_masks_without_a_label(tmp_path):
    write_masks(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(np.full((32, 32), 255, np.uint8)).save(path)
    with pytest.raises(UserError, match=r"no pixel of the 4 validation images in .* is labelled"):
        evaluate(settings_of(tmp_path, ignore=255), write_backbone(tmp_path / "b.safetensors"), job_in(tmp_path))


def test_features_that_are_not_numbers_name_the_image(tmp_path, monkeypatch):
    write_masks(tmp_path)
    sick = load(write_backbone(tmp_path / "b.safetensors"))
    monkeypatch.setattr("densewalk.evaluations.common.base.load", lambda _: sick)
    sick.vit.norm.weight.data[0] = torch.nan
    with pytest.raises(UserError, match=r"features of .*00\d.png are not finite"):
        evaluate(settings_of(tmp_path), tmp_path / "b.safetensors", job_in(tmp_path))


def test_a_training_sample_depends_on_its_item_alone(tmp_path):
    write_masks(tmp_path)
    settings = settings_of(tmp_path)
    data = TrainingImages(settings, list_splits(settings, 0)[0], 32, IMAGENET, seed=0)
    torch.manual_seed(1)
    first = data[1, 2][0]
    torch.manual_seed(2)
    assert torch.equal(first, data[1, 2][0])
    assert not torch.equal(first, data[0, 2][0])


# -- settings --------------------------------------------------------------------------------------------------------


def test_published_protocol_only_where_everything_agrees():
    def published(**changes):
        own = {"root": ".", "layout": "voc", "dataset": "PascalVOC", "compat": "released"}
        return LinearSegmentationSettings(**{**own, **changes}).published_protocol

    assert published() == "linear 100x100 masks"
    assert published(layout="ade20k", dataset="ADE20K") == "linear 100x100 masks"
    others = [
        *({"compat": "paper"}, {"dataset": "mini"}, {"scoring": "full"}, {"mask_size": 50}, {"epochs": 20}, {"input_size": 512}),
        *({"train_list": "train"}, {"batch_size": 64}, {"crop_scale": (0.5, 1.0)}, {"momentum": 0.8}, {"train_images": 9}),
        {"layout": "coco_things", "dataset": "COCO-Things"},
    ]
    assert [published(**change) for change in others] == [None] * len(others)


def test_protocol_names_tell_settings_apart():
    changes = [
        *({}, {"scoring": "full"}, {"mask_size": 50}, {"compat": "released"}),
        *({"epochs": 3}, {"train_images": 2}, {"crop_scale": (0.5, 1.0)}),
    ]
    names = {settings_of(**change).protocol for change in changes}
    assert len(names) == len(changes)
    assert settings_of(mask_size=100).protocol.startswith("linear 100x100 masks, ")
    assert not settings_of(mask_size=100, scoring="full").protocol.startswith("linear 100x100 masks")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_every": 4, "val_every": 6, "val_offset": 2}, "both train and val"),
        ({"crop_scale": (0.9, 0.5)}, "no range"),
        ({"num_classes": None}, "needs num_classes"),
    ],
)
def test_contradictory_settings(changes, message):
    with pytest.raises(ValidationError, match=message):
        settings_of(**changes)
