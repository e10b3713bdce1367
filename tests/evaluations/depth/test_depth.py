"""The depth probe as a whole: learning, resuming, floors, perfect predictions, and bad data."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from densewalk.core.errors import Interrupted, UserError
from densewalk.data.benchmarks.depth import list_depth, read_depth
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.depth import train as training
from densewalk.evaluations.depth.data import MeanDepth, TrainingCrops, border, list_splits
from densewalk.evaluations.depth.evaluate import describe_data, evaluate, score
from densewalk.evaluations.depth.head import blocks_of, features_of
from densewalk.evaluations.depth.settings import DATASETS, DepthSettings
from densewalk.models.loading import create
from densewalk.training.sampler import Item
from tests.fixtures.dense import write_backbone
from tests.fixtures.depth import depth_map, write_nyu

SMALL = {"iterations": 6, "batch_size": 4, "warmup": 2, "learning_rate": 1e-3, "loss_warmup": 2, "bins": 16, "crop": (32, 32)}


def settings_of(root=".", **changes):
    own = {"root": str(root), "dataset": "toy", **SMALL, **changes}
    return DepthSettings(**{k: v for k, v in own.items() if not (k == "crop" and own.get("augment") == "none")})


def job_in(folder, **changes):
    return Job(out=folder / "out", state=folder / "state", **changes)


def test_it_learns_what_is_near(tmp_path):
    """Red is near: the probe beats both floors. The strip is written, and every number of the record is finite."""
    write_nyu(tmp_path, size=(96, 128))
    backbone = write_backbone(tmp_path / "b.safetensors")
    settings = settings_of(
        tmp_path, augment="none", preset="dinov3", iterations=200, learning_rate=0.02, batch_size=6, max_depth=5, box="none"
    )
    result = evaluate(settings, backbone, job_in(tmp_path / "a"))
    assert result.n == 3
    assert result.metrics.keys() == settings.METRICS.keys()
    assert result.metrics["AbsRel"] < result.metrics["AbsRel_position"] < result.metrics["AbsRel_constant"]
    assert Image.open(tmp_path / "a/out/depth.png").size[0] > 500
    json.dumps(result.details, allow_nan=False)
    assert result.units is not None
    assert list(result.units.ids) == [f"office_0001/rgb_{i:05d}.jpg" for i in range(3)]


@pytest.mark.parametrize("changes", [{}, {"preset": "dinov3", "augment": "none"}])
def test_an_interrupted_training_goes_on_where_it_was(changes, tmp_path, monkeypatch):
    write_nyu(tmp_path / "data")
    backbone = write_backbone(tmp_path / "b.safetensors")
    settings = settings_of(tmp_path / "data", select="test", select_every=2, **changes)
    whole = evaluate(settings, backbone, job_in(tmp_path / "whole"))
    plain, seen = training.step, []

    def stopping(*args):
        seen.append(args)
        if len(seen) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*args)

    monkeypatch.setattr(training, "step", stopping)
    with pytest.raises(Interrupted, match="step 3 of 6"):
        evaluate(settings, backbone, job_in(tmp_path / "parts"))
    assert evaluate(settings, backbone, job_in(tmp_path / "parts")) == whole
    assert len(seen) == 6
    last = [torch.load(tmp_path / name / "state/training/step-00000006.pt", weights_only=True)["head"] for name in ("whole", "parts")]
    for name, weight in last[0].items():
        assert torch.equal(weight, last[1][name])


@pytest.mark.parametrize("align", ["none", "least_squares"])
def test_perfect_predictions_are_perfect(align, tmp_path):
    """Through the very code that scores; an image without depth is left out."""
    base = write_nyu(tmp_path)
    Image.fromarray(np.zeros((48, 64), np.uint16)).save(base / "office_0001/sync_depth_00002.png")
    settings = settings_of(tmp_path, align=align).resolved()
    _, scored = list_splits(settings)
    found = score(settings, scored, lambda image, example, size: {"model": torch.from_numpy(read_depth(example))}, job_in(tmp_path))
    assert found.names == ["office_0001/rgb_00000.jpg", "office_0001/rgb_00001.jpg"]
    assert found.mean("model") == pytest.approx({name: float(name.startswith("d")) for name in found.mean("model")}, abs=1e-6)


def test_floors_are_means_of_the_training_depth(tmp_path):
    write_nyu(tmp_path, training=3)
    settings = settings_of(tmp_path).resolved()
    found = MeanDepth(settings, list_splits(settings)[0])
    maps = np.stack([depth_map(i) / 1000 for i in range(3)])
    assert found.constant == pytest.approx(maps.sum() / (maps > 0).sum())
    at = found.at((48, 64))
    expected = np.where((maps > 0).any(0), maps.sum(0) / np.maximum((maps > 0).sum(0), 1), found.constant)
    np.testing.assert_allclose(at["position"], expected, rtol=1e-6)
    assert at["constant"].unique().item() == pytest.approx(found.constant)


def test_image_and_depth_are_cropped_together(tmp_path):
    """Red stays near after every rotation, flip and crop; equal items give equal crops."""
    write_nyu(tmp_path)
    for augment in ("dinov2", "dinov3"):
        settings = settings_of(tmp_path, augment=augment).resolved()
        data = TrainingCrops(settings, list_splits(settings)[0])
        near = []
        for seed in range(12):
            image, depth, number = data[Item(seed % 6, seed)]
            again = data[Item(seed % 6, seed)]
            assert torch.equal(image, again[0])
            assert number == seed % 6
            assert image.shape == (3, 32, 32)
            known = depth[0] > 0
            near.append((((image[0] > image[2]) == (depth[0] < 2)) & known).sum() / known.sum())
        assert min(near) > 0.85
    assert border(480, 640) == (45, 472, 43, 608)


def test_features_are_patches_with_their_cls_token():
    backbone = create("vit_nano_patch16", seed=0).eval()
    images = torch.randn(2, 3, 32, 48)
    depth = backbone.depth
    with torch.no_grad():
        x, grid = backbone.embed(images)
        x = backbone.run(x, grid)
        found = features_of(settings_of(), backbone)(images)
        assert torch.equal(features_of(settings_of(preset="dinov3"), backbone)(images), backbone.dense(images))
    patches = x[:, backbone.prefix :].transpose(1, 2).unflatten(2, grid)
    torch.testing.assert_close(found[:, : backbone.dim], patches)
    torch.testing.assert_close(found[:, backbone.dim :], x[:, 0, :, None, None].expand_as(patches))
    assert blocks_of("last", depth) == [depth - 1]
    assert [blocks_of("four", n) for n in (4, 12, 24, 40)] == [[0, 1, 2, 3], [2, 5, 8, 11], [4, 11, 17, 23], [9, 19, 29, 39]]
    with pytest.raises(UserError, match="backbone has 3 blocks"):
        blocks_of("four", 3)


# -- data ----------------------------------------------------------------------------------------------------------------


def refused(root, backbone, tmp_path, *said):
    """One error, before the backbone is read."""
    with pytest.raises(UserError) as error:
        evaluate(settings_of(root), backbone, job_in(tmp_path))
    for part in said:
        assert part in str(error.value)
    assert not (tmp_path / "out").exists()


def test_bad_data_are_refused_by_name(tmp_path):
    """The backbone does not exist: nothing is computed before."""
    base = write_nyu(tmp_path)
    nowhere = tmp_path / "no-backbone"
    lines = (base / "nyu_train.txt").read_text().splitlines()
    cases = [
        ([*lines[:2], lines[2].split()[0]], ("nyu_train.txt, line 3: 1 fields, and so no depth",)),
        ([*lines, lines[0]], ("line 7", "listed twice")),
        ([*lines, lines[0].replace("/kitchen", "../kitchen")], ("line 7", "no file inside its folder")),
        ([*lines, lines[0].replace("rgb_00000", "rgb_00009")], ("line 7", "rgb_00009.jpg does not exist")),
        ([*lines, "/office_0001/rgb_00000.jpg /office_0001/sync_depth_00000.png"], ("scene office_0001 is in both lists",)),
        (["a.jpg None 1"], ("lists no image with depth",)),
    ]
    for content, said in cases:
        (base / "nyu_train.txt").write_text("\n".join(content))
        refused(tmp_path, nowhere, tmp_path, *said)
    (base / "nyu_train.txt").write_text("\n".join(lines))
    path = base / "kitchen_0001/sync_depth_00001.png"
    stored = np.array(Image.open(path))
    for wrong, said in (((stored // 20).astype(np.uint8), "has 8 bits a pixel"), (stored.T.copy(), "(width and height are swapped)")):
        Image.fromarray(wrong).save(path)
        refused(tmp_path, nowhere, tmp_path, str(path), said)
    path.unlink()
    refused(tmp_path, nowhere, tmp_path, "line 2", f"{path} does not exist")


def test_depth_of_other_than_16_bits_is_refused_by_name(tmp_path):
    base = write_nyu(tmp_path)
    lists, path = base / "nyu_train.txt", base / "kitchen_0001/other.tif"
    lists.write_text(lists.read_text().replace("sync_depth_00001.png", "other.tif"))
    stored = depth_map(1)
    for other, said in (
        (stored.astype(np.int32), "has 32 bits a pixel"),
        (stored.astype(np.float32), "has a floating-point number a pixel"),
    ):
        Image.fromarray(other).save(path)
        refused(tmp_path, tmp_path / "no-backbone", tmp_path, f"depth map {path} {said}; allowed: one channel of 16 bits, 1000 a meter")


def test_lines_without_depth_are_skipped_and_others_sorted(tmp_path):
    base = write_nyu(tmp_path)
    lines = (base / "nyu_train.txt").read_text().splitlines()
    (base / "nyu_train.txt").write_text("\n".join([*reversed(lines), "kitchen_0001/x.jpg None 518.8"]))
    found, skipped = list_depth(tmp_path, "nyu", "nyu_train.txt")
    assert skipped == 1
    assert [example.name for example in found] == sorted(line.split()[0].lstrip("/") for line in lines)
    np.testing.assert_array_equal(read_depth(found[1]), depth_map(1).astype(np.float32) / 1000)
    assert describe_data(settings_of(tmp_path)) == {"training images": 6, "scored images": 3}


def test_kitti_is_cut_and_its_scenes_are_drives(tmp_path):
    """input/ and gt_depth/, 1/256 m; 375 x 1242 becomes the lower middle 352 x 1216."""
    for day, drive, name in (("d1", "d1_a", "kitti_eigen_train.txt"), ("d1", "d1_b", "kitti_eigen_test.txt")):
        image, depth = tmp_path / f"kitti/input/{day}/{drive}/image_02", tmp_path / f"kitti/gt_depth/{drive}/image_02"
        for folder in (image, depth):
            folder.mkdir(parents=True)
        Image.fromarray(np.zeros((375, 1242, 3), np.uint8)).save(image / "7.png")
        Image.fromarray(np.arange(375, dtype=np.uint16)[:, None].repeat(1242, 1) * 8).save(depth / "7.png")
        (tmp_path / "kitti" / name).write_text(f"{day}/{drive}/image_02/7.png {drive}/image_02/7.png 721.5\n")
    settings = DepthSettings(root=str(tmp_path), dataset="KITTI", layout="kitti").resolved()
    (train,), (test,) = list_splits(settings)
    assert (train.scene, test.scene) == ("d1/d1_a", "d1/d1_b")
    image, depth, _ = TrainingCrops(settings, [train])[Item(0, 0)]
    assert image.shape == (3, 352, 704)
    assert depth.max() <= 374 * 8 / 256
    whole = MeanDepth(settings, [train]).map
    assert whole.shape == (1, 1, 352, 1216)
    assert whole[0, 0, 0, 0].item() == pytest.approx(23 * 8 / 256)
    assert (settings.max_depth, settings.box) == (80.0, "garg")


# -- settings ------------------------------------------------------------------------------------------------------------


def test_published_only_where_everything_agrees():
    for preset, name in (
        ("dinov2_lin1", "linear 256 bins, 1 layer (DINOv2)"),
        ("dinov2_lin4", "linear 256 bins, 4 layers (DINOv2)"),
        ("dinov3", "linear 256 bins (DINOv3)"),
    ):
        own = {"root": ".", "dataset": "NYUv2", "preset": preset, "compat": "released"}
        assert DepthSettings(**own).published_protocol == name
        assert DepthSettings(**own).resolved().select == ("last" if preset == "dinov3" else "test")
        for change in ({"compat": "paper"}, {"dataset": "mine"}, {"learning_rate": 2e-4}, {"augment": "none"}, {"crop_padding": True}):
            assert DepthSettings(**{**own, **change}).published_protocol is None
    for layout in ("kitti", "sunrgbd"):
        own = {"root": ".", "dataset": DATASETS[layout], "layout": layout, "compat": "released"}
        assert DepthSettings(**own).published_protocol == "linear 256 bins, 1 layer (DINOv2)"
        assert DepthSettings(**own, preset="dinov3").published_protocol is None


def test_smaller_batches_see_as_many_images():
    settings = DepthSettings(root=".", dataset="x", batch_size=8)
    assert (settings.iterations, settings.warmup, settings.learning_rate) == (76_800, 25_600, pytest.approx(5e-5))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 3}, "loss_group 2 does not divide"),
        ({"max_depth": 1e-4}, "is not above min_depth"),
        ({"warmup": 50_000}, "longer than the training"),
        ({"augment": "none", "crop": (32, 32)}, "leave out crop"),
        ({"preset": "dinov4"}, "is unknown, did you mean dinov3.; allowed: dinov2_lin1"),
    ],
)
def test_contradictory_settings(changes, message):
    with pytest.raises(ValidationError, match=message):
        DepthSettings(root=".", dataset="x", **changes)


def test_a_crop_must_fit_and_whole_images_be_of_one_size(tmp_path):
    base = write_nyu(tmp_path)
    with pytest.raises(UserError, match="smaller than crop 44 x 64"):
        list_splits(settings_of(tmp_path, crop=(44, 64)).resolved())
    for kind, mode in (("rgb", ".jpg"), ("sync_depth", ".png")):
        path = base / f"kitchen_0001/{kind}_00003{mode}"
        with Image.open(path) as image:
            image.crop((0, 0, 60, 48)).save(path)
    with pytest.raises(UserError, match=r"rgb_00003\.jpg is 48 x 60"):
        list_splits(settings_of(tmp_path, augment="none").resolved())


def test_gradient_loss_and_paddings_change_what_is_learned(tmp_path):
    """Every choice of the recipe reaches the numbers."""
    write_nyu(tmp_path, size=(52, 70))
    backbone = write_backbone(tmp_path / "b.safetensors")
    job = job_in(tmp_path / "a")
    found = set()
    for i, change in enumerate([{}, {"gradient_loss": "intended"}, {"crop_padding": False}, {"flip": "none"}]):
        result = evaluate(settings_of(tmp_path, iterations=2, warmup=0, **change), backbone, replace(job, state=tmp_path / str(i)))
        found.add(result.metrics["RMSE"])
    assert len(found) == 4
