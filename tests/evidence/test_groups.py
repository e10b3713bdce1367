"""Means over groups of units against the loop."""

import numpy as np
import pytest

from densewalk.evidence.groups import MeanOfGroups
from densewalk.evidence.own_scores import own_scores

GROUP, CORRECT, TOTAL = np.array([1, 0, 1, 2, 0]), np.array([1, 3, 0, 2, 4]), np.array([2, 3, 4, 4, 5])


def loop(units):
    """Mean over the groups among the units, each as often as it is there."""
    found = []
    for group in sorted({int(GROUP[i]) for i in units}):
        own = [i for i in units if GROUP[i] == group]
        found.append(sum(CORRECT[i] for i in own) / sum(TOTAL[i] for i in own))
    return 100 * sum(found) / len(found)


def test_every_multiset_is_scored_as_by_the_loop():
    statistic = MeanOfGroups(GROUP, CORRECT, TOTAL, 100.0)
    draws = np.random.default_rng(0).integers(0, 5, (50, 5))
    weights = np.stack([np.bincount(draw, minlength=5) for draw in draws]).astype(float)
    np.testing.assert_allclose(statistic.of_weights(weights), [loop(draw.tolist()) for draw in draws], rtol=1e-12)
    lacks = [len({int(GROUP[i]) for i in draw}) < 3 for draw in draws]
    assert statistic.changed_classes(weights).tolist() == lacks
    assert 0 < sum(lacks) < 50
    assert statistic.score == pytest.approx(100 * (7 / 8 + 1 / 6 + 1 / 2) / 3)
    np.testing.assert_allclose(own_scores(statistic), 100 * CORRECT / TOTAL)
