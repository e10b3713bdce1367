"""How a difference between two protocols divides among the settings in which they differ. Free of torch.

`scores[s]`: with the settings whose bits are set in s taken from B, the others from A; so scores[0] is A's and scores[-1] is B's.
"""

from collections.abc import Sequence
from itertools import permutations
from math import factorial

import numpy as np
from jaxtyping import Float

Table = Float[np.ndarray, " subsets"]


def settings_in(scores: Table) -> int:
    """K of a table of 2^K scores."""
    number = len(scores).bit_length() - 1
    if len(scores) != 2**number:
        raise ValueError(f"{len(scores)} scores are not those of all subsets")
    return number


def sequential(scores: Table, order: Sequence[int]) -> Float[np.ndarray, " settings"]:
    """What each setting adds when they are turned from A's to B's in this order; indexed by setting. Depends on the order."""
    found, done = np.zeros(settings_in(scores)), 0
    for setting in order:
        found[setting] = scores[done | 1 << setting] - scores[done]
        done |= 1 << setting
    return found


def shapley(scores: Table) -> Float[np.ndarray, " settings"]:
    """The mean of `sequential` over all orders, which sums to the difference.

    phi_i = sum over S without i of |S|! (K - |S| - 1)! / K! (v(S + i) - v(S))
    """
    k = settings_in(scores)
    found = np.zeros(k)
    for i in range(k):
        for s in range(2**k):
            if not s >> i & 1:
                size = s.bit_count()
                found[i] += factorial(size) * factorial(k - size - 1) / factorial(k) * (scores[s | 1 << i] - scores[s])
    return found


def one_at_a_time(scores: Table) -> tuple[Float[np.ndarray, " settings"], Float[np.ndarray, " settings"]]:
    """Each setting alone turned to B's in A, and alone missing from B; neither sums to the difference."""
    bits = 1 << np.arange(settings_in(scores))
    return scores[bits] - scores[0], scores[-1] - scores[len(scores) - 1 - bits]


def interactions(scores: Table) -> Float[np.ndarray, "settings settings"]:
    """What two settings do together beyond what each does: Shapley's interaction index; the diagonal is 0.

    I_ij = sum over S without i, j of |S|! (K - |S| - 2)! / (K - 1)! (v(S + i + j) - v(S + i) - v(S + j) + v(S))
    """
    k = settings_in(scores)
    found = np.zeros((k, k))
    for i, j in permutations(range(k), 2):
        for s in range(2**k):
            if not (s >> i & 1 or s >> j & 1):
                weight = factorial(s.bit_count()) * factorial(k - s.bit_count() - 2) / factorial(k - 1)
                both = s | 1 << i | 1 << j
                found[i, j] += weight * (scores[both] - scores[s | 1 << i] - scores[s | 1 << j] + scores[s])
    return found
