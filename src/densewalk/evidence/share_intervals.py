"""Intervals of the parts of a difference, over the choice of test units. Free of torch.

    found = share_intervals(rows, coefficients, owner=video_of_each_object, seed=1)
    found.low, found.high                       # of each share

A share is a weighted sum of scores of the same units: share_k = sum_s coefficients[k, s] score_s. All rows are scored on the same draw of
units, so that what they have in common cancels. Source: paired bootstrap, see bootstrap.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from densewalk.evidence.bootstrap import (
    FEW_CLUSTERS,
    MOST_UNITS_FOR_BCA,
    RESAMPLES,
    bca_quantiles,
    draw_blocks,
    informative,
    jackknife,
    percentile_quantiles,
    settled,
)
from densewalk.evidence.statistics import MeanOfUnits, RatioOfSums, Statistic, Weights

Shares = Float[np.ndarray, "resamples shares"]
MANY_ROWS = 8  # beyond which rows that are no means have fewer resamples
FEWER = 999


@dataclass(frozen=True)
class ShareIntervals:
    """low, high: of each share at `confidence`. method: BCa or percentile. clusters: None where units are drawn one by one."""

    low: Float[np.ndarray, " shares"]
    high: Float[np.ndarray, " shares"]
    confidence: float
    method: str
    resamples: int
    units: int
    clusters: int | None
    notes: tuple[str, ...]


def share_intervals(
    rows: Sequence[Statistic],
    coefficients: Float[np.ndarray, "shares rows"],
    *,
    owner: Int[np.ndarray, " units"] | None = None,
    resamples: int | None = None,
    seed: int = 0,
    confidence: float = 0.95,
) -> ShareIntervals:
    """The interval of each share.

    Args:
        owner: number of the cluster (video) that each unit belongs to, from 0; whole clusters are drawn.
        resamples: by default 9,999, or 999 for more than 8 rows of anything but means.

    Raises:
        ValueError: there is one unit or cluster only, or the rows are of other numbers of units.
    """
    numbers = {row.units for row in rows}
    if len(numbers) != 1:
        raise ValueError(f"statistics of {sorted(numbers)} units: shares are of the same units")
    units = numbers.pop()
    owner = np.arange(units) if owner is None else np.asarray(owner)
    drawn = int(owner.max()) + 1
    if informative(rows, owner) < 2:
        raise ValueError("one unit, or one cluster, tells nothing about the choice of others")
    means = all(isinstance(row, MeanOfUnits | RatioOfSums) for row in rows)
    number = resamples or (RESAMPLES if means or len(rows) <= MANY_ROWS else FEWER)
    shares = _shares(rows, np.asarray(coefficients, np.float64))
    blocks = draw_blocks(np.ones(drawn, np.int64), number, seed, units)
    replicates = np.concatenate([shares(block[:, owner]) for block in blocks])
    settle = [settled(column, float(value)) for column, value in zip(replicates.T, shares(np.ones((1, units)))[0], strict=True)]
    replicates, found = np.stack([column for column, _ in settle], axis=1), [value for _, value in settle]
    plain, clustered = percentile_quantiles(confidence), drawn < units
    use_bca = drawn <= MOST_UNITS_FOR_BCA and all(row.INTERVAL == "BCa" for row in rows)
    quantiles = [plain] * len(coefficients)
    if use_bca:
        left_out = jackknife(shares, owner)
        own = [bca_quantiles(replicates[:, k], found[k], left_out[:, k], confidence) for k in range(len(found))]
        quantiles = [plain if q is None else q for q in own]
    ends = np.array([np.nanquantile(replicates[:, k], q) for k, q in enumerate(quantiles)])
    notes = (f"{drawn} clusters are few: the interval is optimistic",) if clustered and drawn < FEW_CLUSTERS else ()
    method = "BCa" if use_bca else "percentile"
    return ShareIntervals(ends[:, 0], ends[:, 1], confidence, method, number, units, drawn if clustered else None, notes)


def _shares(rows: Sequence[Statistic], coefficients: Float[np.ndarray, "shares rows"]) -> Callable[[Weights], Shares]:
    def shares(weights: Weights) -> Shares:
        scores = np.stack([row.of_weights(weights) for row in rows])  # [rows, resamples]
        found: Shares = (coefficients @ scores).T
        return found

    return shares
