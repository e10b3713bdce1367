"""Many comparisons, and comparisons of right and wrong answers. Free of torch."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import binomtest


def holm(p: Float[np.ndarray, " comparisons"]) -> Float[np.ndarray, " comparisons"]:
    """p of each comparison, adjusted so that the chance of any false one stays below alpha (Holm, 1979).

    for i, j in sorted order, ascending: adjusted[i] = max over j <= i of min(1, (m - j + 1) p[j]), counted from 1
    """
    m, order = len(p), np.argsort(p, kind="stable")
    adjusted = np.empty(m)
    adjusted[order] = np.maximum.accumulate(np.minimum(1, (m - np.arange(m)) * np.asarray(p)[order]))
    return adjusted


def benjamini_hochberg(p: Float[np.ndarray, " comparisons"]) -> Float[np.ndarray, " comparisons"]:
    """p of each comparison, adjusted for the share of false ones among those found (Benjamini and Hochberg, 1995).

    for i in sorted order, ascending: adjusted[i] = min over j >= i of p[j] m / j, counted from 1
    """
    m, order = len(p), np.argsort(p, kind="stable")
    adjusted = np.empty(m)
    adjusted[order] = np.minimum(1, np.minimum.accumulate((np.asarray(p)[order] * m / np.arange(1, m + 1))[::-1])[::-1])
    return adjusted


@dataclass(frozen=True)
class Discordant:
    """Units that one row has right and the other wrong.

    only_a, only_b: how many. difference: share right of B - that of A. variance: of the difference over resamples, exact.
    p: of the two-sided sign test, exact.
    """

    only_a: int
    only_b: int
    difference: float
    variance: float
    p: float


def discordant(a: Bool[np.ndarray, " units"], b: Bool[np.ndarray, " units"]) -> Discordant:
    """Compare two rows of right and wrong answers: Var = ((n01 + n10) / n - ((n01 - n10) / n)^2) / n."""
    n, only_b, only_a = len(a), int((b & ~a).sum()), int((a & ~b).sum())
    d, either = (only_b - only_a) / n, only_a + only_b
    p = float(binomtest(only_b, either, 0.5).pvalue) if either else 1.0
    return Discordant(only_a, only_b, d, (either / n - d * d) / n, p)
