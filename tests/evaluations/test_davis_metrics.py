"""J and F against the definitions, pixel by pixel, and against the official tool."""

import math
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from densewalk.evaluations.metrics import davis as module
from densewalk.evaluations.metrics.davis import jf, jf_pairs, statistics
from tests.fixtures.helpers import shared


def contour_of(mask):
    """Pixels that differ from the right, lower or lower right neighbor; there is none beyond the edge."""
    height, width = mask.shape
    found = set()
    for y, x in product(range(height), range(width)):
        neighbors = [(min(y + dy, height - 1), min(x + dx, width - 1)) for dy, dx in ((0, 1), (1, 0), (1, 1))]
        if any(mask[n] != mask[y, x] for n in neighbors):
            found.add((y, x))
    return found


def plain_jf(truth, prediction, number, radius):
    """J and F of one object on one frame."""
    g, p = truth == number, prediction == number
    j = (g & p).sum() / (g | p).sum() if (g | p).any() else 1.0
    cg, cp = contour_of(g), contour_of(p)
    near = lambda point, others: any((point[0] - y) ** 2 + (point[1] - x) ** 2 <= radius**2 for y, x in others)  # noqa: E731
    precision = sum(near(c, cg) for c in cp) / len(cp) if cp else float(True)
    recall = sum(near(c, cp) for c in cg) / len(cg) if cg else float(True)
    if not cg and cp:
        precision, recall = 0.0, 1.0
    if cg and not cp:
        precision, recall = 1.0, 0.0
    return j, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def blobs(shape, objects, seed):
    """Label maps with a few rectangles."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, np.uint8)
    for number in range(1, objects + 1):
        y, x = (int(rng.integers(0, side)) for side in shape)
        labels[y : y + int(rng.integers(1, shape[0] + 1)), x : x + int(rng.integers(1, shape[1]))] = number
    return labels


@pytest.mark.parametrize("tolerance", [0.008, 0.1, 0.25])
@pytest.mark.parametrize("seed", range(6))
def test_equals_the_definition(monkeypatch, tolerance, seed):
    monkeypatch.setattr(module, "CONTOUR_TOLERANCE", tolerance)
    shape, objects = [(17, 23), (12, 9), (1, 30), (16, 8)][seed % 4], 1 + seed
    truth, prediction = blobs(shape, objects, seed), blobs(shape, objects, seed + 100)
    j, f = jf(truth[None], prediction[None], objects)
    for number in range(1, objects + 1):
        expected = plain_jf(truth, prediction, number, math.ceil(tolerance * math.hypot(*shape)))
        assert (j[number - 1, 0], f[number - 1, 0]) == expected


@settings(max_examples=40, deadline=None)
@given(arrays(np.uint8, (2, 7, 10), elements=st.integers(0, 3)))
def test_equals_the_definition_on_noise(labels):
    j, f = jf(labels[:1], labels[1:], 3)
    for number in (1, 2, 3):
        assert (j[number - 1, 0], f[number - 1, 0]) == plain_jf(labels[0], labels[1], number, 1)


@pytest.mark.parametrize("radius", range(1, 14))
def test_dilation_is_a_euclidean_disk(radius):
    rng = np.random.default_rng(radius)
    plane = np.zeros((11, 40), np.uint8)
    used = plane[:, : 40 - radius]  # the rest keeps rows apart
    used[rng.integers(0, 11, 4), rng.integers(0, used.shape[1], 4)] = [1, 2, 4, 8]
    used[3, -1] |= 16
    expected = np.zeros_like(plane)
    for y, x in product(range(11), range(40)):
        for v, u in zip(*np.nonzero(plane), strict=True):
            if (y - v) ** 2 + (x - u) ** 2 <= radius**2:
                expected[y, x] |= plane[v, u]
    assert np.array_equal(module._dilate(plane, radius)[:, : used.shape[1]], expected[:, : used.shape[1]])


def test_nothing_reaches_around_the_image_s_edge(monkeypatch):
    monkeypatch.setattr(module, "CONTOUR_TOLERANCE", 0.2)
    truth, prediction = np.zeros((2, 8, 32), np.uint8)
    truth[3, 30:], prediction[4, :2] = 1, 1
    assert jf(truth[None], prediction[None], 1)[1] == 0


def test_equal_maps_score_one_and_empty_ones_follow_the_official_rules():
    labels = blobs((20, 30), 2, 0)
    assert all((score == 1).all() for score in jf(labels[None], labels[None], 2))
    empty = np.zeros_like(labels)
    assert all((score == 1).all() for score in jf(empty[None], empty[None], 2))
    assert all((score == 0).all() for score in jf(labels[None], empty[None], 2))


@pytest.mark.parametrize("objects", [5, 9, 17, 33, 70])
def test_any_number_of_objects(objects):
    """8, 16, 32, 64 bits and more than one round: an object's score does not depend on how many others there are."""
    rng = np.random.default_rng(0)
    cells = rng.permutation(100).reshape(10, 10) + 1
    truth = np.where(cells <= objects, cells, 0).repeat(4, 0).repeat(4, 1).astype(np.int64)
    prediction = np.roll(truth, (1, 2), axis=(0, 1))
    j, f = jf(truth[None], prediction[None], objects)
    for number in range(1, objects + 1):
        alone = jf((truth == number)[None].astype(np.uint8), (prediction == number)[None].astype(np.uint8), 1)
        assert (j[number - 1, 0], f[number - 1, 0]) == (alone[0][0, 0], alone[1][0, 0])


@pytest.mark.parametrize(("objects", "proposals"), [(1, 3), (4, 2), (5, 20), (2, 62)])
def test_pairs_equal_one_by_one(objects, proposals):
    truth = np.stack([blobs((30, 40), objects, seed) for seed in range(2)])
    prediction = np.stack([blobs((30, 40), proposals, seed + 50) for seed in range(2)])
    truth[0, :3] = 200  # no object
    j, f = jf_pairs(truth, prediction, objects, proposals)
    for o, p in product(range(objects), range(proposals)):
        alone = jf((truth == o + 1).astype(np.uint8), (prediction == p + 1).astype(np.uint8), 1)
        assert np.array_equal(j[o, p], alone[0][0])
        assert np.array_equal(f[o, p], alone[1][0])


def test_too_many_pairs_are_refused():
    with pytest.raises(ValueError, match="40 objects and 25 proposals are more than 64"):
        jf_pairs(np.zeros((1, 4, 4), np.uint8), np.zeros((1, 4, 4), np.uint8), 40, 25)


def test_statistics_of_long_sequences_do_not_wrap():
    """The official tool counts frames in 8 bits; beyond 255 its quarters are nonsense or empty."""
    values = np.linspace(1, 0, 400)
    mean, recall, decay = statistics(values)
    edges = np.round(np.linspace(1, 400, 5) + 1e-10).astype(int) - 1
    assert mean == pytest.approx(0.5)
    assert recall == 0.5
    assert decay == pytest.approx(values[: edges[1] + 1].mean() - values[edges[3] :].mean())
    assert decay == pytest.approx(0.75, abs=0.01)


@pytest.mark.parametrize("case", ["a480", "b_small", "c_one"])
def test_parity_with_the_official_tool(case):
    values = np.load(shared("parity/davis_jf.npz"))
    j, f = jf(values[f"{case}/gt"], values[f"{case}/pred"], int(values[f"{case}/n"]))
    assert np.abs(j - values[f"{case}/J"]).max() <= 1e-12
    assert np.abs(f - values[f"{case}/F"]).max() <= 1e-12
    assert np.abs(np.stack([statistics(j), statistics(f)], axis=1) - values[f"{case}/stats"]).max() <= 1e-12
