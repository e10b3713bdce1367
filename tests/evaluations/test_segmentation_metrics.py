"""Confusion matrices, mIoU and cluster matching against loops, brute force and the released implementations."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densewalk.evaluations.metrics import segmentation
from densewalk.evaluations.metrics.segmentation import (
    COMPILED_FROM,
    Confusion,
    confusion_matrix,
    hungarian,
    iou,
    many_to_one,
    match_clusters,
    mean_iou,
    pixel_accuracy,
    reassign,
)
from tests.fixtures.helpers import shared

PARITY = "parity/neco_eval.npz"


def loop_confusion(target, prediction, classes, clusters, ignore=None):
    counts = [[0] * clusters for _ in range(classes)]
    for t, p in zip(target, prediction, strict=True):
        if t != ignore:
            counts[t][p] += 1
    return torch.tensor(counts)


def loop_iou(target, prediction, label):
    intersection = sum(t == label and p == label for t, p in zip(target, prediction, strict=True))
    union = sum(t == label or p == label for t, p in zip(target, prediction, strict=True))
    return intersection / union if union else float("nan")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0, 1, 2, 3, 255]), st.integers(0, 5)), min_size=1, max_size=60))
def test_confusion_equals_the_loop(pairs):
    target, prediction = (list(x) for x in zip(*pairs, strict=True))
    found = confusion_matrix(torch.tensor(target, dtype=torch.uint8), torch.tensor(prediction), 4, 6, ignore=255)
    assert torch.equal(found, loop_confusion(target, prediction, 4, 6, 255))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=50))
def test_iou_equals_the_loop(pairs):
    target, prediction = (list(x) for x in zip(*pairs, strict=True))
    found = iou(confusion_matrix(torch.tensor(target), torch.tensor(prediction), 4, 4))
    expected = torch.tensor([loop_iou(target, prediction, c) for c in range(4)], dtype=torch.float64)
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=0, atol=1e-15)


def test_streaming_in_any_order_equals_one_call():
    generator = torch.Generator().manual_seed(0)
    target, prediction = torch.randint(0, 5, (6, 9, 7), generator=generator), torch.randint(0, 8, (6, 9, 7), generator=generator)
    confusion = Confusion(5, 8, ignore=3)
    for i in (4, 0, 5, 2, 1, 3):
        confusion.add(target[i], prediction[i])
    assert torch.equal(confusion.matrix, confusion_matrix(target, prediction, 5, 8, ignore=3))
    assert confusion.matrix.sum() == (target != 3).sum()


def test_the_prediction_of_an_ignored_pixel_counts_for_nothing():
    confusion = confusion_matrix(torch.tensor([1, 255]), torch.tensor([1, 0]), 2, 2, ignore=255)
    assert confusion.tolist() == [[0, 0], [0, 1]]


def test_an_ignored_class_inside_the_range_has_an_empty_row():
    """ADE20K: 0 is ignored, yet remains one of 151 labels."""
    confusion = confusion_matrix(torch.tensor([0, 1, 2]), torch.tensor([2, 1, 2]), 3, 3, ignore=0)
    assert confusion.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert mean_iou(confusion) == 1.0
    assert mean_iou(confusion, absent="zero") == pytest.approx(2 / 3)


@pytest.fixture(params=["compiled", "of a few pixels"])
def way(request, monkeypatch):
    """Both ways of counting."""
    monkeypatch.setattr(segmentation, "COMPILED_FROM", 0 if request.param == "compiled" else 1 << 62)


@pytest.mark.parametrize(("target", "prediction"), [([0, 3], [0, 0]), ([0, -1], [0, 0]), ([0, 0], [0, 3]), ([0, 0], [-1, 0])])
@pytest.mark.parametrize("ignore", [None, 255, -2])
def test_a_label_out_of_range_never_lands_in_another_row(way, target, prediction, ignore):
    with pytest.raises(ValueError, match="expected 0 to 2"):
        confusion_matrix(torch.tensor(target), torch.tensor(prediction), 3, 3, ignore=ignore)


def test_an_ignored_pixel_does_not_excuse_a_prediction_out_of_range(way):
    with pytest.raises(ValueError, match="prediction labels run from 0 to 3, expected 0 to 2"):
        confusion_matrix(torch.tensor([255, 1]), torch.tensor([3, 0]), 3, 3, ignore=255)


@pytest.mark.parametrize("ignore", [None, 0, 4, 255, -1])
@pytest.mark.parametrize(
    "types", [(torch.uint8, torch.int64), (torch.int64, torch.uint8), (torch.int16, torch.int32), (torch.int8, torch.bool)]
)
def test_both_ways_of_counting_equal_the_loop(way, types, ignore):
    generator = torch.Generator().manual_seed(0)
    target, prediction = torch.randint(0, 5, (7, 11), generator=generator), torch.randint(0, 2, (7, 11), generator=generator)
    if ignore is not None and types[0] != torch.int8:
        target[2:4] = ignore % 256 if types[0] == torch.uint8 else ignore
    if ignore == -1 and types[0] == torch.uint8:
        target[target == 255] = 0
    pair = target.to(types[0]), prediction.to(types[1])
    expected = loop_confusion(*(x.flatten().int().tolist() for x in pair), 5, 6, ignore)
    assert torch.equal(confusion_matrix(pair[0].T, pair[1].T, 5, 6, ignore=ignore), expected)


def test_an_image_of_many_pixels_is_counted_by_the_compiled_loop(monkeypatch):
    target, prediction = (torch.arange(COMPILED_FROM).add(i).remainder(21).to(torch.uint8) for i in (0, 5))
    found = confusion_matrix(target, prediction, 21, 21, ignore=20)
    monkeypatch.setattr(segmentation, "COMPILED_FROM", 1 << 62)
    assert torch.equal(found, confusion_matrix(target, prediction, 21, 21, ignore=20))
    assert found.sum() == (target != 20).sum()


def test_mean_of_nothing_is_an_error_not_a_number():
    with pytest.raises(ValueError, match="no pixel"):
        mean_iou(torch.zeros(3, 3, dtype=torch.int64))


def test_pixel_accuracy():
    assert pixel_accuracy(torch.tensor([[3, 1], [0, 4]])) == pytest.approx(7 / 8)


# -- matching --------------------------------------------------------------------------------------------------------


def brute_force_matching(confusion):
    """The largest total IoU over all one-to-one matchings of a square matrix."""
    union = confusion.sum(1, keepdim=True) + confusion.sum(0, keepdim=True) - confusion
    table = confusion.double() / union.clamp(min=1)
    return max(float(sum(table[r, c] for c, r in enumerate(order))) for order in permutations(range(len(confusion))))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=25, max_size=25).filter(any))
def test_hungarian_is_the_best_of_all_matchings(cells):
    confusion = torch.tensor(cells).view(5, 5)
    matched = reassign(confusion, hungarian(confusion))
    assert matched.sum() == confusion.sum()
    assert mean_iou(matched, absent="zero") * 5 == pytest.approx(brute_force_matching(confusion), abs=1e-12)


def test_hungarian_undoes_a_relabeling():
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, 9, (500,), generator=generator)
    names = torch.randperm(9, generator=generator)
    confusion = confusion_matrix(target, names[target], 9, 9)
    assert mean_iou(reassign(confusion, hungarian(confusion))) == 1.0
    assert torch.equal(hungarian(confusion), names.argsort())


def test_clusters_without_a_class_become_the_background():
    confusion = torch.tensor([[9, 0, 2, 0], [0, 8, 0, 1]])
    assignment = hungarian(confusion)
    assert assignment.tolist() == [0, 1, -1, -1]
    assert reassign(confusion, assignment).tolist() == [[11, 0], [1, 8]]
    assert reassign(confusion, assignment, unmatched=1).tolist() == [[9, 2], [0, 9]]


def test_fewer_clusters_than_classes():
    confusion = torch.tensor([[9, 0], [0, 8], [1, 1]])
    assert reassign(confusion, hungarian(confusion)).tolist() == [[9, 0, 0], [0, 8, 0], [1, 1, 0]]


def test_many_to_one_is_the_majority_of_every_cluster():
    confusion = torch.tensor([[5, 0, 2, 0], [4, 7, 3, 0]])
    assert many_to_one(confusion).tolist() == [0, 1, 1, -1]
    assert reassign(confusion, many_to_one(confusion)).tolist() == [[5, 2], [4, 10]]


def test_many_to_one_by_iou_is_a_loop():
    counts = np.random.default_rng(0).integers(0, 9, (4, 7)) * np.random.default_rng(1).integers(0, 2, (4, 7))
    counts[:, 3] = 0
    expected = []
    for cluster in range(7):
        best, chosen = 0.0, -1
        for target in range(4):
            inside = int(counts[target, cluster])
            iou = inside / max(1, int(counts[target].sum()) + int(counts[:, cluster].sum()) - inside)
            if iou > best:
                best, chosen = iou, target
        expected.append(chosen)
    assert match_clusters(torch.from_numpy(counts), "many_to_one_iou").tolist() == expected
    assert expected[3] == -1


def test_iou_and_precision_choose_differently():
    """Most of the second cluster's pixels are of the large class, but it covers all of the small one."""
    confusion = torch.tensor([[90, 5], [0, 4]])
    assert match_clusters(confusion, "many_to_one").tolist() == [0, 0]
    assert match_clusters(confusion, "many_to_one_iou").tolist() == [0, 1]


# -- the released implementations ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", range(3))
def test_parity_with_neco(case):
    data = np.load(shared(PARITY))
    k, c, gt, pred, miou, linear, many = (data[f"miou/{case}/{name}"] for name in ("K", "C", "gt", "pred", "miou", "linear", "many_to_one"))
    confusion = confusion_matrix(torch.from_numpy(gt), torch.from_numpy(pred), int(c), int(k))
    if not linear:
        confusion = reassign(confusion, many_to_one(confusion) if many else hungarian(confusion))
    assert mean_iou(confusion, absent="zero") == pytest.approx(float(miou), abs=1e-12)
    hits = confusion.diagonal()
    for name, found in (("tp", hits), ("fp", confusion.sum(0) - hits), ("fn", confusion.sum(1) - hits)):
        assert found.tolist() == data[f"miou/{case}/{name}"].tolist()


@pytest.mark.parametrize("case", ["voc_unbounded", "voc_bounded_2aug"])
def test_parity_with_open_hummingbird(case):
    data = np.load(shared("parity/hummingbird.npz"))
    masks = np.concatenate([data[f"cases/{case}/val/{batch}/1"][:, 0] for batch in (0, 1)])
    target, pred = torch.from_numpy((masks * 255).round().astype(np.uint8)), torch.from_numpy(data[f"cases/{case}/pred"])
    confusion = confusion_matrix(target, pred, 21, 21, ignore=255)
    matched = reassign(confusion, hungarian(confusion))
    assert mean_iou(confusion, absent="zero") == pytest.approx(float(data[f"cases/{case}/miou_identity"]), abs=1e-12)
    assert mean_iou(matched, absent="zero") == pytest.approx(float(data[f"cases/{case}/miou_hungarian"]), abs=1e-12)


@pytest.mark.parametrize("case", range(5))
def test_parity_with_time_tuning(case):
    data = np.load(shared("parity/timetuning_eval.npz"))
    at = f"cases/{case}/"
    groups = {"frame-wise": (12, -1), "sample-wise": (3, -1), "dataset-wise": (1, -1)}[str(data[at + "protocol"])]
    scores = []
    for gt, pred in zip(data["annotations"].reshape(groups), data[at + "cluster_maps"].reshape(groups), strict=True):
        labels, target = np.unique(gt, return_inverse=True)
        confusion = confusion_matrix(torch.from_numpy(target), torch.from_numpy(pred), len(labels), int(pred.max()) + 1)
        match = many_to_one if data[at + "many_to_one"] else hungarian
        scores.append(mean_iou(reassign(confusion, match(confusion)), absent="zero"))
    assert np.mean(scores) == pytest.approx(float(data[at + "score"]), abs=1e-12)
