"""k-NN classification against the loop, the released values, and pictures whose classes are plain to see."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from densewalk.core.errors import UserError
from densewalk.core.imagenet import IMAGENET
from densewalk.evaluations.common import image_features
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.knn import evaluate as knn
from densewalk.evaluations.knn.settings import NEIGHBORS, KnnSettings
from densewalk.models.export import export_backbone
from densewalk.models.loading import create
from densewalk.ops.search.nearest_neighbors import nearest
from tests.fixtures.helpers import shared
from tests.fixtures.layouts import write_classes


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    export_backbone(create("vit_nano_patch8", seed=0), path, run="test", config_hash="test")
    return path


@pytest.fixture
def root(tmp_path):
    return write_classes(tmp_path / "imagenet", {"train": {"n01": 9, "n02": 8, "n03": 8}, "val": {"n01": 2, "n02": 3, "n03": 2}})


def small(root, **changes):
    return KnnSettings(root=str(root), dataset="colors", **{"resize": 18, "size": 16, **changes})


def test_parity_with_the_released_code():
    values = np.load(shared("parity/knn.npz"))
    train, ty, test, vy = (torch.from_numpy(values[f"k0/{name}"]) for name in ("train", "ty", "test", "vy"))
    ks = [1, *NEIGHBORS]
    similarity, index = nearest(train, test, ks[-1])
    predictions = knn.vote(similarity, ty[index], int(values["k0/nc"]), ks, 0.07)
    for k, prediction in zip(ks, predictions, strict=True):
        assert np.array_equal(prediction.numpy(), values[f"k0/rank{k}"][:, 0])
        assert 100 * (prediction == vy).double().mean().item() == pytest.approx(values[f"k0/acc{k}"][0], abs=1e-9)


def test_votes_equal_the_loop():
    rng = np.random.default_rng(3)
    similarity = -np.sort(-rng.uniform(0.4, 0.7, (20, 12)))
    labels = rng.integers(0, 4, (20, 12))
    ks = [1, 3, 12]
    expected = np.zeros((3, 20), int)
    for row, k in enumerate(ks):
        for q in range(20):
            score = np.zeros(4)
            for i in range(k):
                score[labels[q, i]] += math.exp(similarity[q, i] / 0.07)
            expected[row, q] = score.argmax()
    assert knn.vote(torch.from_numpy(similarity), torch.from_numpy(labels), 4, ks, 0.07).numpy().tolist() == expected.tolist()
    assert len({tuple(row) for row in expected.tolist()}) == 3, "the case must tell the numbers of neighbors apart"


def test_the_weights_matter():
    """Two near neighbors of class 1 outvote three far ones of class 0; a plain majority would not see it."""
    similarity, labels = torch.tensor([[0.9, 0.9, 0.1, 0.1, 0.1]]), torch.tensor([[1, 1, 0, 0, 0]])
    assert knn.vote(similarity, labels, 2, [5], 0.07).tolist() == [[1]]
    assert knn.vote(similarity, labels, 2, [5], 10.0).tolist() == [[0]]
    assert knn.vote(similarity, labels, 2, [5], 0.001).tolist() == [[1]], "small temperatures do not overflow"
    far = torch.tensor([[0.3, 0.2, 0.2]])
    assert knn.vote(far, torch.tensor([[2, 0, 0]]), 3, [3], 0.001).tolist() == [[2]], "and votes of what is far do not vanish"


def test_fewer_than_a_hundred_test_images_and_fewer_training_images_than_neighbors(root, backbone, tmp_path, caplog):
    """The released code cannot split fewer than 100 test pictures, and fails where there are not k neighbors."""
    result = knn.evaluate(small(root), backbone, Job(out=tmp_path, state=tmp_path))
    assert set(result.metrics) == set(KnnSettings.METRICS)
    assert (result.n, result.unit) == (7, "images")
    assert result.metrics["top1_k10"] == 100.0
    assert math.isnan(result.metrics["top1_k100"])
    assert math.isnan(result.metrics["top1_k200"])
    assert "25 training images: no value for k = 100, 200" in caplog.text
    with pytest.raises(UserError, match="9 training images are fewer than the smallest number of neighbors, 10"):
        knn.possible_neighbors(9)


def test_batches_do_not_change_the_numbers(root, backbone, tmp_path, monkeypatch):
    job = Job(out=tmp_path, state=tmp_path)
    whole = knn.evaluate(small(root), backbone, job).metrics
    monkeypatch.setattr(image_features, "BATCH", 2)
    assert str(knn.evaluate(small(root), backbone, job).metrics) == str(whole)


def test_crop_is_that_of_the_released_transforms():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8))
    ours = image_features.center_crop(image, 32, 16, IMAGENET)
    resized = image.resize((48, 32), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(resized.crop((16, 8, 32, 24)))).permute(2, 0, 1) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    assert torch.allclose(ours, (pixels - mean) / std, atol=1e-6)


def test_bad_input_is_named(root, backbone, tmp_path, monkeypatch):
    job = Job(out=tmp_path, state=tmp_path)
    with pytest.raises(UserError, match="size 18 is no multiple of the patch size; allowed: multiples of 8"):
        knn.evaluate(small(root, size=18), backbone, job)
    (root / "val/n02/001.JPEG").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"val/n02/001\.JPEG cannot be read"):
        knn.evaluate(small(root), backbone, job)
    broken = create("vit_nano_patch8", seed=0)
    nn.init.constant_(broken.vit.norm.weight, torch.nan)
    monkeypatch.setattr("densewalk.evaluations.common.base.load", lambda _: broken)
    with pytest.raises(UserError, match=r"features of .*train/n01/000\.JPEG are not finite"):
        knn.evaluate(small(root), backbone, job)


def test_features_are_normalized_cls_tokens_in_order(root):
    network = create("vit_nano_patch8", seed=0).eval()
    training, _ = knn.list_imagenet(root)
    ((features, targets),) = knn.features(network, training, small(root), Job(out=root, state=root), "x")
    assert targets.tolist() == training.targets
    image = image_features.center_crop(Image.open(training.paths[5]), 18, 16, IMAGENET)
    with torch.no_grad():
        assert torch.allclose(features[5], F.normalize(network.tokens(image[None]).cls[0], dim=0), atol=1e-5)


def test_protocol_names():
    settings = KnnSettings(root=".", dataset="ImageNet-1k")
    assert settings.published_protocol == "k-NN (DINO)"
    assert settings.model_copy(update={"recipe": "dinov2"}).published_protocol is None
    for change in ({"temperature": 0.1}, {"size": 256}, {"resize": 224}, {"training": "train10"}, {"recipe": "dinov2"}):
        changed = settings.model_copy(update=change)
        assert changed.protocol != settings.protocol, change
        assert change == {"recipe": "dinov2"} or changed.published_protocol is None
    assert settings.model_copy(update={"dataset": "mini"}).published_protocol is None
