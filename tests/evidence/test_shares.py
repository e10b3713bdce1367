"""Shares of a difference against plain sums over orders, properties and recorded values."""

from itertools import permutations

import numpy as np
import pytest

from densewalk.evidence.shares import interactions, one_at_a_time, sequential, shapley
from tests.fixtures.helpers import shared


@pytest.mark.parametrize("case", ["0", "1", "2", "dummy_and_twins"])
def test_shares_equal_the_recorded_ones(case):
    recorded = np.load(shared("parity/eval_ladder.npz"))
    values = {k.removeprefix(f"{case}/"): recorded[k] for k in recorded.files if k.startswith(f"{case}/")}
    scores, close = values["scores"], {"rtol": 0, "atol": 1e-9}
    np.testing.assert_allclose(shapley(scores), values["shapley"], **close)
    if "orders" in values:
        np.testing.assert_allclose([sequential(scores, order) for order in values["orders"]], values["sequential"], **close)
        from_a, from_b = one_at_a_time(scores)
        np.testing.assert_allclose(from_a, values["one_at_a_time_from_a"], **close)
        np.testing.assert_allclose(from_b, values["one_at_a_time_from_b"], **close)
        np.testing.assert_allclose(interactions(scores), values["interaction"], **close)


def test_shapley_is_the_mean_over_all_orders_and_sums_to_the_difference():
    scores = np.random.default_rng(0).normal(size=16)
    orders = [sequential(scores, order) for order in permutations(range(4))]
    np.testing.assert_allclose(shapley(scores), np.mean(orders, 0), atol=1e-12)
    np.testing.assert_allclose([o.sum() for o in orders], scores[-1] - scores[0], atol=1e-12)


def test_additive_scores_give_their_own_terms_and_no_interaction():
    terms = np.array([1.0, -2.0, 0.5])
    scores = np.array([sum(terms[i] for i in range(3) if s >> i & 1) for s in range(8)])
    np.testing.assert_allclose(shapley(scores), terms, atol=1e-12)
    np.testing.assert_allclose(interactions(scores), 0, atol=1e-12)


def test_incomplete_tables_are_refused():
    with pytest.raises(ValueError, match="6 scores"):
        shapley(np.zeros(6))
