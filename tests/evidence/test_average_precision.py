"""AP of resampled images against recorded values: boxes are matched here by a plain loop."""

from dataclasses import replace

import numpy as np
import pytest

from densewalk.evidence.average_precision import RECALLS, AveragePrecision
from densewalk.evidence.bootstrap import counts_of
from densewalk.evidence.own_scores import class_scores, own_scores
from tests.fixtures.helpers import shared

THRESHOLDS = np.linspace(0.5, 0.95, 10)


def overlap(d, g, crowd):
    w = min(d[0] + d[2], g[0] + g[2]) - max(d[0], g[0])
    h = min(d[1] + d[3], g[1] + g[3]) - max(d[1], g[1])
    inter = max(w, 0) * max(h, 0)
    return inter / (d[2] * d[3] if crowd else d[2] * d[3] + g[2] * g[3] - inter)


def matched(truth, detections, images):
    """AveragePrecision of detections (image, category, x, y, w, h, score), each image and class matched by falling score."""
    categories = sorted({int(c) for c in truth[:, 1]} | {int(c) for c in detections[:, 1]})
    rows, objects = [], np.zeros((images, len(categories)), int)
    for image in range(images):
        for k, category in enumerate(categories):
            g = sorted(truth[(truth[:, 0] == image) & (truth[:, 1] == category)].tolist(), key=lambda x: x[6])
            d = detections[(detections[:, 0] == image) & (detections[:, 1] == category)]
            d = d[np.argsort(-d[:, 6], kind="stable")]
            objects[image, k] = sum(not x[6] for x in g)
            tp, ignored = np.zeros((2, len(d), 10), bool)
            for t, threshold in enumerate(THRESHOLDS):
                taken = set()
                for i, box in enumerate(d):
                    best, at = min(threshold, 1 - 1e-10), -1
                    for j, other in enumerate(g):
                        if j in taken and not other[6]:
                            continue
                        if at > -1 and not g[at][6] and other[6]:
                            break
                        value = overlap(box[2:6], other[2:6], other[6])
                        if value >= best:
                            best, at = value, j
                    if at > -1:
                        taken.add(at)
                        ignored[i, t] = bool(g[at][6])
                        tp[i, t] = not g[at][6]
            rows += [(image, k, box[6], tp[i], ignored[i]) for i, box in enumerate(d)]
    columns = [np.array([r[i] for r in rows]) for i in range(5)]
    return AveragePrecision(images, *columns, objects)


def at_thresholds(found, places):
    return AveragePrecision(
        found.number, found.image, found.category, found.score_of_detection, found.tp[:, places], found.ignored[:, places], found.objects
    )


def test_resampled_ap_equals_the_recorded_one():
    recorded = np.load(shared("parity/eval_bootstrap.npz"))
    images = int(recorded["coco/images"])
    weights = counts_of(recorded["coco/indices"].astype(int), images).astype(float)
    for row, name in enumerate("ab"):
        found = matched(recorded["coco/truth"], recorded[f"coco/{name}"], images)
        parts = [found, at_thresholds(found, [0]), at_thresholds(found, [5])]
        np.testing.assert_allclose([p.score for p in parts], recorded["coco/stats"][row, :3], rtol=0, atol=1e-9)
        replicates = np.stack([p.of_weights(weights) for p in parts], 1)
        np.testing.assert_allclose(replicates, recorded["coco/replicates_AP_AP50_AP75"][:, row], rtol=0, atol=1e-9)


def some_detections(images=7, classes=4, seed=0):
    """Detections and objects at random places, the third class without any object and the last image without all."""
    generator = np.random.default_rng(seed)

    def boxes(count, last):
        place = np.stack([generator.integers(images, size=count), generator.integers(classes, size=count)], 1)
        return np.concatenate([place, generator.integers(0, 12, (count, 2)), generator.integers(8, 14, (count, 2)), last(count)], 1)

    truth = boxes(30, lambda n: generator.random((n, 1)) < 0.1)
    truth = truth[(truth[:, 1] != 2) & (truth[:, 0] != images - 1)]
    found = np.concatenate([truth[:, :6], truth[::2, :6], boxes(40, lambda n: np.zeros((n, 1)))[:, :6]])
    found[:, 2:4] += generator.integers(-1, 2, (len(found), 2))  # near the objects, or anywhere
    return matched(truth, np.concatenate([found, generator.random((len(found), 1))], 1), images)


def test_an_image_alone_has_the_ap_of_its_classes():
    found = some_detections()
    own = own_scores(found)
    assert np.isnan(own[-1])
    for image in range(6):
        values = []
        for category in range(4):
            if not found.objects[image, category]:
                continue
            rows = (found.image == image) & (found.category == category)
            order = np.argsort(-found.score_of_detection[rows])
            of_thresholds = []
            for tp, ignored in zip(found.tp[rows][order].T, found.ignored[rows][order].T, strict=True):
                hits = np.cumsum(tp[~ignored])
                precision, recall = hits / np.arange(1, len(hits) + 1), hits / found.objects[image, category]
                best = [max([p for p, r in zip(precision, recall, strict=True) if r >= wanted], default=0) for wanted in RECALLS]
                of_thresholds.append(np.mean(best))
            values.append(np.mean(of_thresholds))
        assert own[image] == pytest.approx(100 * np.mean(values), abs=1e-9)
    assert len(set(own[:-1].round(3))) > 3


def test_the_mean_of_the_classes_is_the_ap_and_they_have_their_names():
    found = some_detections(seed=1)
    by_number = class_scores(found)
    assert list(by_number) == ["0", "1", "3"], "the third has no object"
    assert np.mean(list(by_number.values())) == pytest.approx(found.score)
    named = replace(found, classes=["cat", "dog", "cow", "car"])
    assert list(class_scores(named)) == ["cat", "dog", "car"]
    assert AveragePrecision.from_parts(*named.parts()).classes == named.classes
    assert "classes" not in found.parts()[0], "files of earlier versions are read"


def test_two_images_by_hand():
    # one class; image 0: a hit, then a miss; image 1: a hit with a lower score
    found = AveragePrecision(
        2,
        np.array([0, 0, 1]),
        np.array([0, 0, 0]),
        np.array([0.9, 0.8, 0.7]),
        np.array([[True], [False], [True]]),
        np.zeros((3, 1), bool),
        np.array([[1], [1]]),
        scale=1.0,
    )
    # recall 0 to .5 at precision 1 (51 of 101 points), then 2/3
    assert found.score == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert found.of_weights(np.array([[2.0, 0.0]]))[0] == pytest.approx(1.0)
    assert np.isnan(AveragePrecision(1, *[np.zeros(0, int)] * 3, *[np.zeros((0, 1), bool)] * 2, np.zeros((1, 1), int)).score)
