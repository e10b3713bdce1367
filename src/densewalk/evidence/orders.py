"""Shapley shares of many settings, estimated from random orders. Free of torch.

For up to six settings all subsets are scored (shares.py); beyond that, some orders, each with its reverse, which cancels much of the noise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float


@dataclass(frozen=True)
class SampledShares:
    """shares: mean over orders, which sum to the difference. standard_error: over the pairs of orders; NaN for one pair."""

    shares: Float[np.ndarray, " settings"]
    standard_error: Float[np.ndarray, " settings"]


def draw_orders(settings: int, pairs: int, seed: int) -> list[list[int]]:
    """Random orders, each followed by its reverse."""
    generator = np.random.default_rng(seed)
    drawn = [generator.permutation(settings).tolist() for _ in range(pairs)]
    return [order for one in drawn for order in (one, one[::-1])]


def prefixes(order: Sequence[int]) -> list[int]:
    """The subsets that an order passes through, the empty and the whole one included."""
    found = [0]
    for setting in order:
        found.append(found[-1] | 1 << setting)
    return found


def sampled_shapley(score: Callable[[int], float], settings: int, orders: Sequence[Sequence[int]]) -> SampledShares:
    """Mean over the orders of what each setting adds in its place.

    for order in orders:
        for setting in order:
            share[setting] += (score(those before it and itself) - score(those before it)) / len(orders)

    Args:
        orders: of `draw_orders`.
    """
    found = np.zeros((len(orders), settings))
    for number, order in enumerate(orders):
        passed = prefixes(order)
        for place, setting in enumerate(order):
            found[number, setting] = score(passed[place + 1]) - score(passed[place])
    pairs = found.reshape(-1, 2, settings).mean(1)
    error = pairs.std(0, ddof=1) / np.sqrt(len(pairs)) if len(pairs) > 1 else np.full(settings, np.nan)
    return SampledShares(found.mean(0), error)
