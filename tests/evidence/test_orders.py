"""Sampled orders: exact where all orders are drawn, sums that hold for each, standard errors that shrink."""

from itertools import permutations

import numpy as np
import pytest

from densewalk.evidence.orders import draw_orders, prefixes, sampled_shapley
from densewalk.evidence.shares import shapley


def test_all_orders_give_the_exact_shares():
    scores = np.random.default_rng(0).normal(size=16)
    orders = [list(order) for order in permutations(range(4))]
    found = sampled_shapley(lambda s: float(scores[s]), 4, [o for order in orders for o in (order, order[::-1])])
    np.testing.assert_allclose(found.shares, shapley(scores), atol=1e-12)


def test_few_orders_sum_to_the_difference_and_come_with_an_error_that_covers_the_truth():
    scores = np.random.default_rng(1).normal(size=2**8)
    found = sampled_shapley(lambda s: float(scores[s]), 8, draw_orders(8, 200, seed=0))
    assert found.shares.sum() == pytest.approx(scores[-1] - scores[0], abs=1e-9)
    assert (np.abs(found.shares - shapley(scores)) < 4 * found.standard_error).all()


def test_orders_come_with_their_reverse_and_an_additive_score_has_no_error():
    orders = draw_orders(7, 3, seed=0)
    assert orders[0] == orders[1][::-1]
    assert orders == draw_orders(7, 3, seed=0)
    assert prefixes([2, 0]) == [0, 4, 5]
    terms = np.arange(7.0)
    found = sampled_shapley(lambda s: float(sum(terms[i] for i in range(7) if s >> i & 1)), 7, orders)
    np.testing.assert_allclose(found.shares, terms)
    np.testing.assert_allclose(found.standard_error, 0, atol=1e-12)
    assert np.isnan(sampled_shapley(lambda _: 0.0, 7, orders[:2]).standard_error).all()
