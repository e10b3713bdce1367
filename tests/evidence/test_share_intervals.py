"""Intervals of shares: the same draw for all scores, against plain loops and the paired bootstrap of two rows."""

from itertools import permutations

import numpy as np
import pytest

from densewalk.evidence.bootstrap import draw_blocks, paired_bootstrap
from densewalk.evidence.share_intervals import share_intervals
from densewalk.evidence.shares import shapley
from densewalk.evidence.statistics import MeanIoU, MeanOfUnits

GENERATOR = np.random.default_rng(7)
SHAPLEY = np.stack([shapley(column) for column in np.eye(8)], axis=1)  # three settings, eight scores


def means(rows, units=24, seed=0):
    generator = np.random.default_rng(seed)
    common = generator.normal(50, 20, units)
    return [MeanOfUnits(common + 2 * s + generator.normal(0, 3, units)) for s in range(rows)]


def confusions(units=12, seed=0):
    return MeanIoU.of_confusions(np.random.default_rng(seed).integers(0, 30, (units, 3, 3)))


def plain_shapley(scores):
    """Mean over all orders of what each of three settings adds."""
    shares = [0.0, 0.0, 0.0]
    for order in permutations(range(3)):
        done = 0
        for setting in order:
            shares[setting] += (scores[done | 1 << setting] - scores[done]) / 6
            done |= 1 << setting
    return shares


def test_the_ends_are_quantiles_of_the_shares_on_each_draw():
    rows = [confusions(seed=s) for s in range(8)]
    found = share_intervals(rows, SHAPLEY, seed=3, resamples=200)
    replicates = []
    for block in draw_blocks(np.ones(12, np.int64), 200, 3):
        for drawn in block:
            scores = []
            for row in rows:
                intersection, union = row.dense()
                classes = [
                    sum(drawn[u] * intersection[u, c] for u in range(12)) / sum(drawn[u] * union[u, c] for u in range(12)) for c in range(3)
                ]
                scores.append(100 * sum(classes) / 3)
            replicates.append(plain_shapley(scores))
    low, high = np.quantile(np.array(replicates), [0.025, 0.975], axis=0)
    np.testing.assert_allclose(found.low, low, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.high, high, rtol=1e-9, atol=1e-9)
    assert (found.method, found.units, found.clusters) == ("percentile", 12, None)


@pytest.mark.parametrize("owner", [None, np.repeat(np.arange(8), 3)])
def test_the_share_of_a_single_step_has_the_interval_of_the_difference(owner):
    a, b = means(2)
    found = share_intervals([a, b], np.array([[-1.0, 1.0]]), owner=owner, seed=5)
    paired = paired_bootstrap([a], [b], owner=owner, seed=5)
    assert (found.low[0], found.high[0]) == (pytest.approx(paired.low, abs=1e-9), pytest.approx(paired.high, abs=1e-9))
    assert (found.method, found.resamples, found.clusters) == ("BCa", 9_999, paired.clusters)
    assert found.notes == paired.notes


def test_a_step_that_changes_nothing_has_no_width_and_a_common_part_cancels():
    zero, one = means(2)
    scores = [zero, zero, one, one, zero, zero, one, one]  # only the second of three settings matters
    found = share_intervals(scores, SHAPLEY, seed=1, resamples=999)
    np.testing.assert_allclose([found.low[[0, 2]], found.high[[0, 2]]], 0, atol=1e-12)
    assert 0 < found.low[1] < 2 < found.high[1] < 6, "the spread of 20 that both rows share is gone"


def test_many_rows_that_are_no_means_have_fewer_resamples():
    rows = [confusions(seed=s) for s in range(9)]
    coefficients = np.eye(9)[:2]
    assert share_intervals(rows, coefficients).resamples == 999
    assert share_intervals(rows[:8], coefficients[:, :8], resamples=50).resamples == 50


def test_one_cluster_and_rows_of_other_units_are_refused():
    with pytest.raises(ValueError, match="one unit, or one cluster"):
        share_intervals(means(2), np.eye(2), owner=np.zeros(24, int))
    with pytest.raises(ValueError, match="of the same units"):
        share_intervals([*means(1), *means(1, units=5)], np.eye(2))
