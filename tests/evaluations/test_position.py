"""The position X-ray: files, splits and errors; and the setting `features` of dense evaluations."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.core.imagenet import IMAGENET
from densewalk.data.image_folder import ImageFolder
from densewalk.evaluations.common import dense_features
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.incontext.evaluate import evaluate as incontext
from densewalk.evaluations.incontext.settings import IncontextSettings
from densewalk.evaluations.linear_segmentation.evaluate import evaluate as linear_segmentation
from densewalk.evaluations.linear_segmentation.settings import LinearSegmentationSettings
from densewalk.evaluations.position import evaluate as module
from densewalk.evaluations.position.evaluate import SquareImages, describe_data, evaluate, split
from densewalk.evaluations.position.settings import PositionSettings
from densewalk.models.loading import load
from densewalk.ops.position import PlaceSums, fixed_code
from tests.fixtures.dense import MeanColors, write_backbone, write_masks

LABELLED = {"root": ".", "dataset": "toy", "layout": "masks", "images": "images", "masks": "masks", "num_classes": 4, "input_size": 32}


def settings_of(**changes) -> PositionSettings:
    return PositionSettings(**{"root": ".", "dataset": "toy", "images": "images", "input_size": 64, "held_out_every": 4, **changes})


def job(tmp_path: Path) -> Job:
    return Job(out=tmp_path / "out", state=tmp_path / "state")


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_masks(tmp_path)
    return tmp_path


def test_the_evaluation_scores_held_out_images_only(data):
    """Against a ridge solved on the stacked features of the other images."""
    backbone = write_backbone(data / "b.safetensors")
    result = evaluate(settings_of(), backbone, job(data))
    images = SquareImages(ImageFolder("images"), 64, IMAGENET)
    with torch.inference_mode():
        maps = torch.stack([load(backbone).eval().dense(images[i][0][None])[0] for i in range(8)]).double().numpy()
    rows = maps.transpose(0, 2, 3, 1).reshape(8, 16, -1)
    train, test = rows[[0, 1, 2, 4, 5, 6]].reshape(-1, rows.shape[-1]), rows[[3, 7]].reshape(-1, rows.shape[-1])
    yx = np.array([[y, x] for y in np.linspace(-1, 1, 4) for x in np.linspace(-1, 1, 4)])
    centered = train - train.mean(0)
    w = np.linalg.solve(centered.T @ centered + 1e-3 * len(train) * np.eye(train.shape[1]), centered.T @ np.tile(yx, (6, 1)))
    errors = ((np.tile(yx, (2, 1)) - (test - train.mean(0)) @ w) ** 2).sum(0)
    expected = 100 * (1 - errors / (2 * (yx**2).sum(0)))
    assert [result.metrics["R2_row"], result.metrics["R2_column"]] == pytest.approx(expected.tolist(), abs=1e-3)
    assert result.metrics["R2"] == pytest.approx(expected.mean(), abs=1e-3)
    assert (result.n, result.details["held_out_images"], result.details["grid"]) == (8, 2, [4, 4])
    assert set(result.metrics) == set(PositionSettings.METRICS)
    assert (result.units.ids, result.units.unit) == (["images/003.png", "images/007.png"], "image")
    result.units.require_scores(result.metrics)


def test_features_of_nothing_but_position_are_found_out(data, monkeypatch):
    class Code(MeanColors):
        def dense(self, images):
            return fixed_code(8, 8).expand(len(images), -1, -1, -1)

    monkeypatch.setattr(module, "load_network", lambda *_: Code())
    found = evaluate(settings_of(), Path("none"), job(data)).metrics
    assert found["R2"] > 99
    assert (found["eta2"], found["omega2"]) == pytest.approx((100, 100))


def test_what_cannot_be_scored_is_said(data):
    assert describe_data(settings_of()) == {"images to fit on": 6, "held-out images": 2}
    with pytest.raises(UserError, match="8 images in images leave none to hold out"):
        split(settings_of(held_out_every=9), ImageFolder("images"))
    with pytest.raises(UserError, match="map of one place"):
        evaluate(settings_of(input_size=16), write_backbone(data / "b.safetensors"), job(data))
    (data / "empty").mkdir()
    with pytest.raises(UserError, match="holds no image"):
        evaluate(settings_of(images="empty"), data / "b.safetensors", job(data))


# -- the setting `features` ---------------------------------------------------------------------------------------------


def incontext_settings(**changes) -> IncontextSettings:
    own = {"memory_every": 2, "query_every": 2, "query_offset": 1, "augmentation_epochs": 0, "neighbours": 3}
    return IncontextSettings(**{**LABELLED, **own, **changes})


def linear_settings(**changes) -> LinearSegmentationSettings:
    own = {"train_every": 2, "val_every": 2, "val_offset": 1, "mask_size": 8, "epochs": 2, "batch_size": 4}
    return LinearSegmentationSettings(**{**LABELLED, **own, **changes})


def test_the_default_changes_no_stored_hash_and_others_are_another_protocol():
    plain = incontext_settings()
    assert "features" not in plain.model_dump(mode="json")
    other = incontext_settings(features="position")
    assert other.model_dump(mode="json")["features"] == "position"
    assert "features position" in other.protocol
    published = {"root": ".", "dataset": "PascalVOC", "layout": "voc", "compat": "released"}
    assert IncontextSettings(**published).published_protocol
    assert IncontextSettings(**published, features="without_position").published_protocol is None


def test_position_features_are_the_same_for_every_image(data):
    backbone = write_backbone(data / "b.safetensors")
    settings = incontext_settings(features="position")
    network, features = dense_features.load_features(settings, 32, backbone, job(data))
    examples = dense_features.list_split(settings, "training", "", 2)
    chosen = dense_features.choose_features(settings, network, features, examples)
    maps = [m for m, _, _ in chosen.maps(examples, "queries")]
    sums = PlaceSums()
    for m, _, _ in features.maps(examples, "queries"):
        sums.add(m[None])
    assert all(torch.equal(m, maps[0]) for m in maps)
    torch.testing.assert_close(maps[0], sums.mean.float())
    without = dense_features.choose_features(incontext_settings(features="without_position"), network, features, examples)
    for (left, _, _), (whole, _, _) in zip(without.maps(examples, "queries"), features.maps(examples, "queries"), strict=True):
        torch.testing.assert_close(left / left.norm(dim=0), (whole - maps[0]) / (whole - maps[0]).norm(dim=0), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("run", "make"), [(incontext, incontext_settings), (linear_segmentation, linear_settings)])
def test_every_choice_of_features_is_scored(run, make, data):
    backbone, scores = write_backbone(data / "b.safetensors"), {}
    for features in ("all", "position", "position_code", "without_position"):
        means = Job(out=data / features, state=data / f"state_{features}")
        scores[features] = run(make(features=features), backbone, means).metrics["mIoU"]
    assert all(0 <= score <= 100 for score in scores.values())
    assert len(set(scores.values())) > 1


def test_the_code_needs_no_backbone_and_knows_the_mean_map(data):
    """Labels that depend on the place alone are learned from the code alone."""
    labels = np.zeros((32, 32), np.uint8)
    labels[16:] = 1
    for i in range(8):
        Image.fromarray(labels).save(data / "masks" / f"{i:03d}.png")
    backbone = write_backbone(data / "b.safetensors")
    assert incontext(incontext_settings(features="position_code"), backbone, job(data)).metrics["mIoU"] == pytest.approx(100)
