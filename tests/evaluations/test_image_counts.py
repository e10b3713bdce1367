"""Confusion matrices of single images against plain loops, and the statistics that are made of them."""

import numpy as np
import pytest
import torch

from densewalk.evaluations.metrics.image_counts import ImageCounts, counted
from densewalk.evaluations.metrics.segmentation import confusion_matrix, hungarian, many_to_one, mean_iou, pixel_accuracy, reassign

CLASSES = 5


def images(clusters=CLASSES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(0, CLASSES, (4, 6, 7), generator=generator)
    target[0, :3] = 255
    return target, torch.randint(0, clusters, (4, 6, 7), generator=generator)


def counts_of(target, prediction, clusters=CLASSES):
    pairs = zip(target, prediction, strict=True)
    return ImageCounts.of([counted(t, p, CLASSES, clusters, ignore=255) for t, p in pairs], CLASSES, clusters)


def test_the_sum_is_the_confusion_matrix_of_all_images():
    target, prediction = images()
    assert torch.equal(counts_of(target, prediction).matrix, confusion_matrix(target, prediction, CLASSES, CLASSES, ignore=255))


@pytest.mark.parametrize("absent", ["skip", "zero"])
def test_statistics_score_any_multiset_as_its_images_together_do(absent):
    target, prediction = images()
    target[target == 3], prediction[prediction == 3] = 2, 2  # an absent class
    counts = counts_of(target, prediction)
    drawn = [0, 2, 2, 3]
    whole = confusion_matrix(target[drawn], prediction[drawn], CLASSES, CLASSES, ignore=255)
    weights = np.bincount(drawn, minlength=4)[None].astype(float)
    assert counts.mean_iou(absent).of_weights(weights)[0] == pytest.approx(100 * mean_iou(whole, absent=absent), abs=1e-10)
    assert counts.pixel_accuracy().of_weights(weights)[0] == pytest.approx(100 * pixel_accuracy(whole), abs=1e-5)  # float32
    recall = [float(whole[c, c]) / float(whole[c].sum()) for c in range(CLASSES) if whole[c].sum()]
    assert counts.mean_accuracy().of_weights(weights)[0] == pytest.approx(100 * sum(recall) / len(recall), abs=1e-10)


@pytest.mark.parametrize(("matching", "match", "clusters"), [("hungarian", hungarian, 7), ("many_to_one", many_to_one, 9)])
@pytest.mark.parametrize("void", [None, 2])
def test_clusters_are_matched_again(matching, match, clusters, void):
    target, prediction = images(clusters)
    drawn = [1, 1, 3, 3]
    whole = confusion_matrix(target[drawn], prediction[drawn], CLASSES, clusters, ignore=255)
    assignment = match(whole)
    assignment[assignment == void] = -1
    expected = 100 * mean_iou(reassign(whole, assignment, unmatched=1))
    statistic = counts_of(target, prediction, clusters).matched_iou(matching=matching, unmatched=1, void=void)
    weights = np.bincount(drawn, minlength=4)[None].astype(float)
    assert statistic.of_weights(weights)[0] == pytest.approx(expected, abs=1e-10)
