"""(Over)clustering: against loops and the released implementation, end to end, and with bad data."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from densewalk.core.errors import UserError
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.overcluster import evaluate as overcluster
from densewalk.evaluations.overcluster.evaluate import evaluate, match
from densewalk.evaluations.overcluster.settings import OverclusterSettings
from densewalk.models.feature_cache import FeatureCache
from densewalk.models.loading import load
from densewalk.ops.clustering import PrincipalComponents, kmeans, nearest_center
from tests.fixtures.dense import COLORS, write_backbone, write_masks, write_voc
from tests.fixtures.helpers import shared


def settings_of(root=".", layout="masks", **changes):
    own = {"images": "images", "masks": "masks", "num_classes": 4} if layout == "masks" else {}
    small = {"val_every": 1, "val_offset": 0, "input_size": 32, "mask_size": 8, "iterations": 10, "restarts": 2, "repeats": 2}
    return OverclusterSettings(**{"root": str(root), "dataset": "toy", "layout": layout, **own, **small, **changes})


def job_in(folder, **changes):
    return Job(out=folder / "out", state=folder / "state", **changes)


# -- the released implementation -------------------------------------------------------------------------------------


def test_components_equal_the_released_ones():
    """But for each component's sign, which is anybody's choice."""
    data = np.load(shared("parity/neco_eval.npz"))
    x, expected = torch.from_numpy(data["pca/x"]), torch.from_numpy(data["pca/z"])
    found = PrincipalComponents(x).project(x, int(data["pca/pca_dim"]))
    signs = (found * expected).sum(0).sign()
    torch.testing.assert_close(found * signs, expected, atol=2e-4, rtol=1e-3)


def test_clusters_are_as_tight_as_the_released_ones():
    """The released k-means starts at other points: the sums of squared distances are compared."""
    data = np.load(shared("parity/neco_eval.npz"))
    x, assigned = torch.from_numpy(data["pca/z"]), torch.from_numpy(data["cluster/0/assign"]).flatten()
    count = int(data["cluster/0/K"])

    def spread(labels):
        return sum(float((x[labels == k] - x[labels == k].mean(0)).square().sum()) for k in labels.unique())

    ours = nearest_center(x, kmeans(x, count, seed=0, iterations=100, restarts=5))
    assert spread(ours) <= 1.01 * spread(assigned)


# -- the arithmetic --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clusters", [None, 9])
def test_match_against_its_loop(clusters):
    rng = np.random.default_rng(0)
    count = clusters or 4
    assigned, masks = rng.integers(0, count, (3, 2, 2)), rng.integers(0, 5, (3, 8, 8))
    confusion = np.zeros((4, count), dtype=int)
    for image in range(3):
        for i in range(8):
            for j in range(8):
                if masks[image, i, j] != 4:
                    confusion[masks[image, i, j], assigned[image, i // 4, j // 4]] += 1
    settings = settings_of(clusters=clusters, ignore=4)
    counts = overcluster.count(settings, torch.from_numpy(assigned), torch.from_numpy(masks), count)
    found, assignment = match(settings, counts.matrix)
    if clusters:
        assert assignment.tolist() == confusion.argmax(0).tolist()
    else:
        assert sorted(assignment.tolist()) == [0, 1, 2, 3]
    expected = np.zeros((4, 4), dtype=int)
    for k, label in enumerate(assignment.tolist()):
        expected[:, label] += confusion[:, k]
    assert found.tolist() == expected.tolist()


# -- the whole -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clusters", [None, 6])
def test_ground_truth_as_features_scores_one_hundred(tmp_path, monkeypatch, clusters):
    write_masks(tmp_path)
    backbone = write_backbone(tmp_path / "b.safetensors")
    monkeypatch.setattr(Job, "cached", lambda *_: lambda images: F.avg_pool2d(images, 16))
    result = evaluate(settings_of(tmp_path, clusters=clusters, restarts=10), backbone, job_in(tmp_path))
    assert result.metrics == {"mIoU": 100.0}


def test_it_is_of_no_matter_which_number_the_ignored_label_has(tmp_path, monkeypatch):
    """Three classes that clusters find, and a border that is not scored: among the classes, its label takes no cluster from them."""
    rng = np.random.default_rng(0)
    for name in ("images", "first", "last", "outside"):
        (tmp_path / name).mkdir()
    for number in range(12):
        label = (number + np.array([[0, 1], [1, 2]])).repeat(16, 0).repeat(16, 1) % 3
        noise = rng.integers(-30, 30, (32, 32, 3))
        Image.fromarray((COLORS[label] + noise).clip(0, 255).astype(np.uint8)).save(tmp_path / f"images/{number:03d}.png")
        border = np.zeros((32, 32), bool)
        border[15:17], border[:, 15:17] = True, True
        for name, shift, ignored in (("first", 1, 0), ("last", 0, 3), ("outside", 0, 255)):
            Image.fromarray(np.where(border, ignored, label + shift).astype(np.uint8)).save(tmp_path / f"{name}/{number:03d}.png")
    backbone = write_backbone(tmp_path / "b.safetensors")
    monkeypatch.setattr(Job, "cached", lambda *_: lambda images: F.avg_pool2d(images, 16))
    wanted = {"first": (4, 0), "last": (4, 3), "outside": (3, 255)}
    for masks, (classes, ignored) in wanted.items():
        settings = settings_of(tmp_path, masks=masks, num_classes=classes, ignore=ignored, restarts=5)
        result = evaluate(settings, backbone, job_in(tmp_path))
        assert result.metrics == {"mIoU": 100.0}, masks
        assert result.details["clusters"] == 3
        assert result.units.statistics["mIoU"].of_weights(np.ones((1, 12)))[0] == pytest.approx(100)
    released = settings_of(tmp_path, masks="first", num_classes=4, ignore=0, restarts=5, count_absent_classes=True)
    assert evaluate(released, backbone, job_in(tmp_path)).metrics["mIoU"] < 75, "the label costs a quarter, as released"


def test_it_is_the_same_with_and_without_the_cache(tmp_path, monkeypatch):
    write_masks(tmp_path)
    backbone = write_backbone(tmp_path / "b.safetensors")
    cache = FeatureCache(tmp_path / "cache", 2**24)
    cached = evaluate(settings_of(tmp_path), backbone, job_in(tmp_path, cache=cache))
    assert evaluate(settings_of(tmp_path), backbone, job_in(tmp_path)) == cached
    assert cached.n == 8
    assert cached.metrics["mIoU"] == pytest.approx(np.mean(cached.details["mIoU_per_run"]))
    assert len(cached.details["mIoU_per_run"]) == 2
    assert Image.open(tmp_path / "out/strip.png").size[0] > 500
    json.dumps(cached.details, allow_nan=False)

    computed = []
    sick = load(backbone)
    monkeypatch.setattr(sick, "dense", lambda images: computed.append(images))
    monkeypatch.setattr("densewalk.evaluations.common.base.load", lambda _: sick)
    another = evaluate(settings_of(tmp_path, clusters=6), backbone, job_in(tmp_path, cache=cache))
    assert not computed  # the features of the first evaluation serve the second
    assert another.details["clusters"] == 6


def test_seeds_of_the_runs_follow_from_the_job_s(tmp_path, monkeypatch):
    write_masks(tmp_path)
    backbone, seeds = write_backbone(tmp_path / "b.safetensors"), []
    original = overcluster.cluster
    monkeypatch.setattr(overcluster, "cluster", lambda *a: (seeds.append(a[-1]), original(*a))[1])
    for seed in (0, 1):
        evaluate(settings_of(tmp_path), backbone, job_in(tmp_path, seed=seed))
    assert len(set(seeds)) == 4


def test_the_released_code_drops_validation_images(tmp_path, monkeypatch):
    write_voc(tmp_path, validation=33)
    backbone, seen = write_backbone(tmp_path / "b.safetensors"), []

    class Enough(Exception):
        """The images are chosen."""

    def stop(_features, examples, *_):
        seen.append(len(examples))
        raise Enough

    monkeypatch.setattr(overcluster, "project_features", stop)
    for compat in ("paper", "released"):
        with pytest.raises(Enough):
            evaluate(settings_of(tmp_path, "voc", compat=compat), backbone, job_in(tmp_path))
    assert seen == [33, 32]


# -- bad input -------------------------------------------------------------------------------------------------------


def test_bad_data_names_the_file(tmp_path):
    write_masks(tmp_path)
    backbone = write_backbone(tmp_path / "b.safetensors")
    Image.fromarray(np.full((32, 32), 9, np.uint8)).save(tmp_path / "masks/005.png")
    with pytest.raises(UserError, match=r"masks/005.png holds label 9"):
        evaluate(settings_of(tmp_path), backbone, job_in(tmp_path))
    (tmp_path / "images/005.png").unlink()
    with pytest.raises(UserError, match=r"masks/005.png has no image"):
        evaluate(settings_of(tmp_path), backbone, job_in(tmp_path))


def test_masks_without_a_label(tmp_path):
    write_masks(tmp_path)
    for path in (tmp_path / "masks").iterdir():
        Image.fromarray(np.full((32, 32), 255, np.uint8)).save(path)
    with pytest.raises(UserError, match=r"no pixel of the 8 validation images in .* is labelled"):
        evaluate(settings_of(tmp_path, ignore=255), write_backbone(tmp_path / "b.safetensors"), job_in(tmp_path))


def test_features_that_are_not_numbers_name_the_image(tmp_path, monkeypatch):
    write_masks(tmp_path)
    sick = load(write_backbone(tmp_path / "b.safetensors"))
    sick.vit.norm.weight.data[0] = torch.nan
    monkeypatch.setattr("densewalk.evaluations.common.base.load", lambda _: sick)
    with pytest.raises(UserError, match=r"features of .*000.png are not finite"):
        evaluate(settings_of(tmp_path), tmp_path / "b.safetensors", job_in(tmp_path))


# -- settings --------------------------------------------------------------------------------------------------------


def test_published_protocols_only_where_everything_agrees():
    def published(**changes):
        own = {"root": ".", "layout": "voc", "dataset": "PascalVOC", "compat": "released"}
        return OverclusterSettings(**{**own, **changes}).published_protocol

    assert published() == "k-means K=GT Hungarian"
    assert [published(clusters=k) for k in (300, 500, 200)] == ["k-means K=300 many-to-one", "k-means K=500 many-to-one", None]
    for change in ({"compat": "paper"}, {"dataset": "mini"}, {"repeats": 1}, {"input_size": 224}, {"val_list": "train"}, {"components": 9}):
        assert published(**change) is None
