"""Confusion matrices of single images against plain loops, and the statistics that are made of them."""

import itertools

import numpy as np
import pytest
import torch

from densewalk.evaluations.metrics.image_counts import ImageCounts, counted
from densewalk.evaluations.metrics.segmentation import confusion_matrix, iou, match_clusters, mean_iou, pixel_accuracy, reassign

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


@pytest.mark.parametrize(("matching", "clusters"), [("hungarian", 7), ("hungarian_pixels", 7), ("many_to_one", 9), ("many_to_one_iou", 9)])
@pytest.mark.parametrize("void", [None, 2, 255])
def test_clusters_are_matched_again(matching, clusters, void):
    """With a void class as on a table without it."""
    target, prediction = images(clusters)
    if void is not None:
        target[target == 2] = 255
    drawn = [1, 1, 3, 3]
    whole = confusion_matrix(target[drawn], prediction[drawn], CLASSES, clusters, ignore=255)
    rows = [c for c in range(CLASSES) if c != void]
    assignment = match_clusters(whole[rows], matching)
    expected = 100 * mean_iou(reassign(whole[rows], assignment, unmatched=rows.index(1)))
    statistic = counts_of(target, prediction, clusters).matched_iou(matching=matching, unmatched=1, void=void)
    weights = np.bincount(drawn, minlength=4)[None].astype(float)
    assert statistic.of_weights(weights)[0] == pytest.approx(expected, abs=1e-10)
    same = match_clusters(whole, matching, void)
    assert same.tolist() == [rows[c] if c >= 0 else -1 for c in assignment.tolist()]
    assert 100 * mean_iou(reassign(whole, same, unmatched=1), void=void) == pytest.approx(expected, abs=1e-10)


def test_pixels_and_iou_match_differently():
    counts = torch.tensor([[12, 5, 46], [6, 15, 34], [0, 8, 21]])

    def overlap(c, k):
        return float(counts[c, k]) / float(counts[c].sum() + counts[:, k].sum() - counts[c, k])

    orders = list(itertools.permutations(range(3)))  # class of each cluster
    by_pixels = max(orders, key=lambda order: sum(int(counts[c, k]) for k, c in enumerate(order)))
    by_iou = max(orders, key=lambda order: sum(overlap(c, k) for k, c in enumerate(order)))
    assert by_pixels != by_iou
    assert match_clusters(counts, "hungarian_pixels").tolist() == list(by_pixels)
    assert match_clusters(counts, "hungarian").tolist() == list(by_iou)


def test_a_predicted_void_class_is_left_out_of_the_mean():
    target, prediction = images()
    target[target == 2] = 255
    counts = counts_of(target, prediction)
    values = iou(counts.matrix)
    assert values[2] == 0, "it is predicted"
    expected = float(values[[c for c in range(CLASSES) if c != 2]].nanmean())
    assert mean_iou(counts.matrix, void=2) == pytest.approx(expected, abs=1e-12)
    assert counts.mean_iou(void=2).of_weights(np.ones((1, 4)))[0] == pytest.approx(100 * expected, abs=1e-10)
