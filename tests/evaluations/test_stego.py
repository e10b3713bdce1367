"""STEGO: each loss against plain loops, the neighbors, the training and its resume, features that are the answer, bad input."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch.nn import functional as F

from densewalk.core.errors import Interrupted, UserError
from densewalk.evaluations.common import dense_features
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.metrics.image_counts import ImageCounts, entries
from densewalk.evaluations.metrics.segmentation import mean_iou
from densewalk.evaluations.stego import losses, views
from densewalk.evaluations.stego import train as training
from densewalk.evaluations.stego.evaluate import MATCHING, evaluate, match
from densewalk.evaluations.stego.head import Stego, drop_channels
from densewalk.evaluations.stego.losses import Centering, Places, correspondence_losses, sample_negatives
from densewalk.evaluations.stego.settings import StegoSettings
from densewalk.evaluations.stego.views import TrainingView, nearest_views
from tests.fixtures.dense import COLORS, MeanColors, write_backbone, write_masks

FEW = {"input_size": 32, "train_size": 32, "mask_size": 16, "crops": "none", "code_dim": 8, "knn": 2, "batch_size": 3, "iterations": 2}


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes longer than all the rest."""
    monkeypatch.setattr(dense_features, "write_segmentation_strip", lambda *_: None)


def settings_of(root=".", **changes):
    own = {"layout": "masks", "images": "images", "masks": "masks", "num_classes": 4, "val_every": 2, "val_offset": 1, "train_every": 2}
    return StegoSettings(**{"root": str(root), "dataset": "toy", **own, **FEW, **changes})


def job_in(folder, **changes):
    return Job(out=folder / "out", state=folder / "state", **changes)


def maps_of(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- losses ------------------------------------------------------------------------------------------------------------


def at_place(image, x, y):
    """Bilinear value of [dim, rows, columns] at x, y in -1..1."""
    rows, columns = image.shape[1:]
    row, column = (y + 1) / 2 * (rows - 1), (x + 1) / 2 * (columns - 1)
    top, left = min(int(row), rows - 2), min(int(column), columns - 2)
    down, right = row - top, column - left
    upper = (1 - right) * image[:, top, left] + right * image[:, top, left + 1]
    lower = (1 - right) * image[:, top + 1, left] + right * image[:, top + 1, left + 1]
    return (1 - down) * upper + down * lower


def pair_by_loops(feature_points, code_points, shift, pointwise, low, high):
    """feature_points, code_points: pairs of [image][place] vectors."""

    def cosine(a, b):
        return float(a @ b / a.norm() / b.norm())

    batch, places = len(feature_points[0]), len(feature_points[0][0])
    whole = [[[cosine(p, r) for r in feature_points[1][n]] for p in feature_points[0][n]] for n in range(batch)]
    flat = [value for image in whole for row in image for value in row]
    before = sum(flat) / len(flat)
    if pointwise:
        whole = [[[value - sum(row) / places for value in row] for row in image] for image in whole]
        flat = [value for image in whole for row in image for value in row]
        after = sum(flat) / len(flat)
        whole = [[[value - after + before for value in row] for row in image] for image in whole]
    total, above = 0.0, 0
    for n in range(batch):
        for p in range(places):
            for r in range(places):
                s = min(max(cosine(code_points[0][n][p], code_points[1][n][r]), low), high)
                total -= s * (whole[n][p][r] - shift)
                above += whole[n][p][r] > shift
    return total / batch / places**2, above / batch / places**2


@pytest.mark.parametrize("centering", [Centering(), Centering(False, -math.inf, 0.8)])
def test_the_three_losses_against_plain_loops(centering):
    features, codes = [maps_of(3, 5, 4, 6, seed=i) for i in (0, 1)], [maps_of(3, 3, 4, 6, seed=i) for i in (2, 3)]
    places = Places(*(torch.rand(3, 2, 2, 2, generator=torch.Generator().manual_seed(i), dtype=torch.float64) * 2 - 1 for i in (4, 5)))
    negatives, shifts = torch.tensor([[1, 2, 0], [2, 0, 0]]), (0.1, 0.02, -0.1)
    found = correspondence_losses(tuple(features), tuple(codes), places, negatives, shifts, centering)

    def points(maps, at, chosen=(0, 1, 2)):
        return [[at_place(maps[i], *map(float, xy)) for xy in at[n].reshape(-1, 2)] for n, i in enumerate(chosen)]

    own = points(features[0], places.own), points(codes[0], places.own)
    others = [(features[0], codes[0], places.own, (0, 1, 2)), (features[1], codes[1], places.other, (0, 1, 2))]
    others += [(features[0], codes[0], places.other, chosen) for chosen in negatives.tolist()]
    expected = [
        pair_by_loops((own[0], points(f, at, chosen)), (own[1], points(c, at, chosen)), shift, *centering)
        for (f, c, at, chosen), shift in zip(others, [*shifts, shifts[2]], strict=True)
    ]
    assert [float(found.own), float(found.knn), *found.random.tolist()] == pytest.approx([loss for loss, _ in expected], abs=1e-9)
    shares = [expected[0][1], expected[1][1], (expected[2][1] + expected[3][1]) / 2]
    assert found.shares.tolist() == pytest.approx(shares, abs=1e-6)


def test_the_losses_know_no_lengths_and_send_no_gradient_to_features_or_to_opposite_codes():
    features, codes = maps_of(2, 5, 4, 4), maps_of(2, 3, 4, 4, seed=1).requires_grad_()
    at = torch.rand(2, 3, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1

    def total(f, s, shifts=(0.1, 0.1, 0.1)):
        return correspondence_losses((f, f), (s, s), Places(at, at), torch.tensor([[1, 0]]), shifts, Centering())

    found, longer = total(features.requires_grad_(), codes), total(7 * features, 3 * codes)
    torch.testing.assert_close(found.own, longer.own)
    torch.testing.assert_close(found.own, found.knn)  # the same image at the same places
    (found.own + found.random.sum()).backward()
    assert features.grad is None
    assert codes.grad.any()
    flat = torch.ones(2, 3, 4, 4, dtype=torch.float64)
    flat[1] = -1
    opposite = flat.requires_grad_()
    random = total(features, opposite).random.sum()
    assert random.item() == 0
    assert not torch.autograd.grad(random, opposite)[0].any()
    assert total(features, torch.zeros_like(codes)).own.item() == 0


def test_negatives_are_never_the_image_itself():
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([sample_negatives(4, generator) for _ in range(200)])
    assert not (drawn == torch.arange(4)).any()
    assert any(len(set(row)) < 4 for row in drawn.tolist()), "no permutation, as released"


@pytest.mark.parametrize("sharpness", [None, 2.0])
def test_the_cluster_loss_against_its_loop(sharpness):
    codes, centers = maps_of(2, 3, 2, 2), maps_of(4, 3, seed=1).requires_grad_()
    values = []
    for n in range(2):
        for i in range(2):
            for j in range(2):
                code = codes[n, :, i, j]
                cosine = [float(code @ m / code.norm() / m.norm()) for m in centers.detach()]
                weights = [math.exp(sharpness * c) for c in cosine] if sharpness else [float(c == max(cosine)) for c in cosine]
                values.append(sum(w * c for w, c in zip(weights, cosine, strict=True)) / sum(weights))
    with_gradient = codes.requires_grad_()
    loss = losses.cluster_loss(with_gradient, centers, sharpness)
    assert loss.item() == pytest.approx(-sum(values) / 8, abs=1e-9)
    loss.backward()
    assert with_gradient.grad is None


def test_the_crf_loss_against_its_loop():
    images, codes, pixels = maps_of(1, 3, 4, 5), maps_of(1, 2, 4, 5, seed=1), torch.tensor([[0, 3, 1], [4, 0, 3]])
    total = 0.0
    for a in range(3):
        for b in range(3):
            (ra, ca), (rb, cb) = pixels[:, a].tolist(), pixels[:, b].tolist()
            d = (ra - rb) ** 2 + (ca - cb) ** 2
            c = float((images[0, :, ra, ca] - images[0, :, rb, cb]).square().sum())
            kernel = 10 * math.exp(-d / 1.0 - c / 0.3) + 3 * math.exp(-d / 0.1)
            total -= kernel * float(codes[0, :, ra, ca] @ codes[0, :, rb, cb])
    assert float(losses.crf_loss(images, codes, pixels)) == pytest.approx(total / 9, abs=1e-6)


# -- views -------------------------------------------------------------------------------------------------------------


def test_the_five_crops_are_the_corners_and_the_middle():
    pixels = np.arange(8 * 12, dtype=np.uint8).reshape(8, 12)
    image, mask = Image.fromarray(pixels).convert("RGB"), torch.from_numpy(pixels.astype(np.int32))
    settings = settings_of(crops="five")
    cuts = [TrainingView(settings, 16, MeanColors().statistics)(image, mask, n)[1] for n in range(5)]
    corners = [(0, 0), (0, 6), (4, 0), (4, 6), (2, 3)]
    assert [int(cut[0, 0]) for cut in cuts] == [int(pixels[corner]) for corner in corners]
    assert [int(cut[-1, -1]) for cut in cuts] == [int(pixels[top + 3, left + 5]) for top, left in corners]


@pytest.mark.parametrize(("crops", "gap"), [("none", 0), ("none", 2), ("five", 1), ("five", 0)])
def test_nearest_views_against_a_loop(crops, gap, monkeypatch):
    monkeypatch.setattr(views, "TILE", 3)
    settings, pooled = settings_of(crops=crops, knn_gap=gap), maps_of(10, 4)
    expected = []
    for i in range(10):
        others = [j for j in range(10) if j != i and abs(i // settings.views - j // settings.views) >= gap]
        expected.append(sorted(others, key=lambda j: -float(F.cosine_similarity(pooled[i], pooled[j], dim=0)))[:2])
    assert nearest_views(settings, pooled).tolist() == expected


def test_dropped_channels():
    maps = torch.ones(50, 40, 2, 2)
    dropped = drop_channels(maps, 0.25, torch.Generator().manual_seed(0))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(dropped.amax((2, 3)), dropped.amin((2, 3)))
    assert torch.equal(drop_channels(maps, 0.0, torch.Generator()), maps)


def test_neighbors_of_dropped_channels_follow_compat(undrawn, tmp_path, monkeypatch):
    write_masks(tmp_path)
    backbone, seen, original = write_backbone(tmp_path / "b.safetensors"), [], views.drop_channels
    monkeypatch.setattr(views, "drop_channels", lambda *a: (seen.append(1), original(*a))[1])
    for compat, calls in (("paper", 0), ("released", 4)):
        evaluate(settings_of(tmp_path, compat=compat, iterations=1), backbone, job_in(tmp_path / compat))
        assert len(seen) == calls


# -- the whole ---------------------------------------------------------------------------------------------------------


class Colors(MeanColors):
    """Features that tell the four colors apart and nothing else."""

    def __init__(self):
        super().__init__()
        self.dim = 4

    def tokens(self, images):
        found = super().tokens(images)
        mean, std = (torch.tensor(values) for values in (self.statistics.mean, self.statistics.std))
        distance = (found.patches[:, :, None] * std + mean - torch.from_numpy(COLORS) / 255).abs().sum(-1)
        patches = F.one_hot(distance.argmin(-1), 4).float()
        return replace(found, cls=patches[:, 0], registers=patches[:, :0], patches=patches)


@pytest.mark.parametrize("changes", [{}, {"refine": "pamr", "refine_dilations": [1, 2], "refine_iterations": 4}])
def test_perfect_features_score_one_hundred(changes, tmp_path, monkeypatch):
    """Shifts and lengths for features whose cosines are 0 or 1."""
    write_masks(tmp_path, 12)
    learning = {"iterations": 100, "learning_rate": 1e-2, "probe_learning_rate": 5e-2, "shift_random": 0.3, "dropout": 0.0, "knn": 3}
    settings = settings_of(tmp_path, batch_size=4, feature_samples=4, **learning, **changes)
    original = Stego.__init__

    def from_codes(self, *args):  # of random centers, one that is nobody's nearest would never move
        original(self, *args)
        self.centers.data.copy_(self.head(torch.eye(4)[:, :, None, None])[:, :, 0, 0])

    monkeypatch.setattr(Stego, "__init__", from_codes)
    result = evaluate(settings, write_backbone(tmp_path / "b.safetensors"), job_in(tmp_path, network=Colors()))
    floor = {"mIoU_constant": pytest.approx(100 / 4 / 4)}
    assert result.metrics == {**dict.fromkeys(("mIoU", "mIoU_kmeans", "mIoU_features", "mIoU_linear"), 100.0), **floor}
    assert result.n == 6
    assert result.details["pixel_accuracy"] == 100
    json.dumps(result.details, allow_nan=False)
    assert (tmp_path / "out/strip.png").is_file()


def test_resume_is_bitwise_equal(undrawn, tmp_path, monkeypatch):
    write_masks(tmp_path)
    backbone = write_backbone(tmp_path / "b.safetensors")
    monkeypatch.setattr(training, "CRF_PIXELS", 50)
    settings = settings_of(tmp_path, iterations=4, weight_crf=0.1)
    expected = evaluate(settings, backbone, job_in(tmp_path / "whole"))
    original = training.PeriodicSaver.is_due

    def stop_after_two(self, done):
        self.stop.requested = done == 2
        return original(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(training.PeriodicSaver, "is_due", stop_after_two)
        with pytest.raises(Interrupted):
            evaluate(settings, backbone, job_in(tmp_path / "cut"))
    assert evaluate(settings, backbone, job_in(tmp_path / "cut")) == expected
    weights = [torch.load(tmp_path / name / "state/training/step-00000004.pt", weights_only=True) for name in ("whole", "cut")]
    assert all(torch.equal(weights[0]["model"][name], weights[1]["model"][name]) for name in weights[0]["model"])
    assert torch.equal(weights[0]["shares"], weights[1]["shares"])


def test_a_finished_training_is_not_made_again(undrawn, tmp_path, monkeypatch):
    write_masks(tmp_path)
    backbone = write_backbone(tmp_path / "b.safetensors")
    expected = evaluate(settings_of(tmp_path), backbone, job_in(tmp_path))
    monkeypatch.setattr("densewalk.evaluations.stego.evaluate.read_views", None)
    assert evaluate(settings_of(tmp_path), backbone, job_in(tmp_path)) == expected


def test_position_as_features(undrawn, tmp_path):
    write_masks(tmp_path)
    backbone = write_backbone(tmp_path / "b.safetensors")
    for features in ("position", "position_code", "without_position"):
        assert evaluate(settings_of(tmp_path, features=features), backbone, job_in(tmp_path / features)).n == 4


# -- bad input, settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 5}, "batch_size 5 of 4 training views; to do: lower batch_size"),
        ({"knn": 4}, "knn 4 of 3 views that are knn_gap 0 images away"),
        ({"knn": 2, "knn_gap": 2}, "knn 2 of 1 views that are knn_gap 2 images away"),
    ],
)
def test_too_few_views_are_refused(changes, message, tmp_path):
    write_masks(tmp_path)
    with pytest.raises(UserError, match=message):
        evaluate(settings_of(tmp_path, **changes), tmp_path / "no backbone is read", job_in(tmp_path))


def test_presets_are_the_released_configuration():
    def of(**changes):
        s = StegoSettings(root=".", dataset="x", layout="voc", **changes)
        return [s.weight_self, s.weight_knn, s.weight_random, s.shift_self, s.shift_knn, s.shift_random]

    assert of() == [0.67, 0.25, 0.63, 0.08, 0.02, 0.66]
    assert of(preset="cityscapes") == [1.0, 0.577, 0.906, 0.458, 0.175, 0.314]
    assert of(preset="coco27_base") == [0.1, 1.0, 0.154, 0.12, 0.2, 1.0]
    assert of(preset="potsdam", shift_self=0.5) == [0.67, 0.25, 0.63, 0.5, 0.02, 0.46]
    with pytest.raises(ValidationError, match="preset 'cocos27' is unknown"):
        of(preset="cocos27")
    with pytest.raises(ValidationError, match="both train and val"):
        settings_of(val_offset=2)
    assert "shift_random 0.46" in StegoSettings(root=".", dataset="x", layout="voc", preset="potsdam").protocol


@pytest.mark.parametrize(("ignored", "rows"), [(0, [1, 2, 3]), (2, [0, 1, 3]), (3, [0, 1, 2]), (255, [0, 1, 2])])
def test_it_is_of_no_matter_which_number_the_ignored_label_has(ignored, rows):
    """The third cluster meets no pixel of the third class, which has some: it is matched to it, and not to the ignored label."""
    table = np.array([[100, 0, 20], [0, 100, 20], [20, 20, 0]])
    classes = 3 if ignored == 255 else 4
    matrix = np.zeros((classes, classes), dtype=int)
    matrix[np.ix_(rows, range(3))] = table
    settings = settings_of(num_classes=classes, ignore=ignored)
    assert settings.clusters == 3
    counts = replace(ImageCounts.of([entries(torch.from_numpy(matrix))], classes, classes), clusters=3)
    matched, assignment = match(settings, counts)
    assert assignment.tolist() == rows
    value = mean_iou(matched, void=ignored)
    assert value == pytest.approx(2 * (100 / 140) / 3)
    statistic = counts.matched_iou(matching=MATCHING, void=ignored)
    assert statistic.of_weights(np.ones((1, 1)))[0] == pytest.approx(100 * value)
