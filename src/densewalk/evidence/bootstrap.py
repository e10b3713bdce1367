"""Paired bootstrap of a difference between two rows over their common test units. Free of torch.

    found = paired_bootstrap([a], [b], owner=video_of_each_object, seed=1)
    found.difference, found.low, found.high, found.p

Test units are drawn with replacement once for each resample, and both rows are scored on the same draw. The interval covers the choice of
test units only: neither training seeds nor the start of a probe. Several statistics a row are its training seeds: their mean is compared.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int

from densewalk.evidence.statistics import MeanOfUnits, Scores, Statistic, Weights

RESAMPLES = 9_999
BLOCK_BYTES = 64 * 2**20
MOST_UNITS_FOR_BCA = 5_000  # the jackknife scores as many sets as there are units
FEW_CLUSTERS = 20
MOST_CHANGED = 0.05  # of the resamples may lack a class, or a score, before it is said
TIE, ROUNDING = 1e-6, 1e-11  # of the replicates' standard deviation, and more: as near to each other they differ by rounding alone
NORMAL = NormalDist()
Rows = Float[np.ndarray, "resamples *differences"]


@dataclass(frozen=True)
class Difference:
    """A difference B - A, and the interval that the choice of test units gives it.

    low, high: of the interval at `confidence`, by `method` (BCa or percentile). p: two-sided. units, clusters: drawn from;
    clusters is None where units are drawn one by one. notes: what a reader must know. replicates: the difference on each resample.
    """

    difference: float
    low: float
    high: float
    p: float
    confidence: float
    method: str
    units: int
    clusters: int | None
    notes: tuple[str, ...]
    replicates: Scores

    @property
    def beyond(self) -> bool:
        """The interval does not hold 0."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    a: Sequence[Statistic],
    b: Sequence[Statistic],
    *,
    owner: Int[np.ndarray, " units"] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    confidence: float = 0.95,
    method: str = "auto",
) -> Difference:
    """Compare two rows on the same units.

    Args:
        a, b: one statistic for each training seed of the row; the mean of their scores is the row's.
        owner: number of the cluster (video) that each unit belongs to, from 0; whole clusters are drawn.
        method: `BCa`, `percentile`, or `auto`: that of the statistics (`Statistic.INTERVAL`), BCa up to 5,000 units or clusters only.
    """
    units = _common_units([*a, *b])
    if owner is None and units > MOST_UNITS_FOR_BCA and method != "BCa" and (few := _distinct(a, b)) is not None:
        rows, sizes = few
        replicates = np.concatenate([_difference(*rows)(block) for block in draw_blocks(sizes, resamples, seed)])
        return _result(_difference(a, b), replicates, None, (confidence, units, None, []))
    owner = np.arange(units) if owner is None else np.asarray(owner)
    drawn = int(owner.max()) + 1
    if informative([*a, *b], owner) < 2:
        raise ValueError("one unit, or one cluster, tells nothing about the choice of others")
    clustered = drawn < units
    row = _difference(a, b)
    parts, changed = [], 0
    for block in draw_blocks(np.ones(drawn, np.int64), resamples, seed, units):
        weights = block[:, owner]
        parts.append(row(weights))
        changed += int(np.any([s.changed_classes(weights) for s in (*a, *b)], axis=0).sum())
    replicates, notes = np.concatenate(parts), []
    if (without := np.isnan(replicates).mean()) > MOST_CHANGED:
        notes.append(f"{without:.0%} of the resamples have no unit with a value, and are left out")
    if changed > MOST_CHANGED * len(replicates):
        notes.append(f"{changed / len(replicates):.0%} of the resamples lack a class that the whole set has")
    if clustered and drawn < FEW_CLUSTERS:
        notes.append(f"{drawn} clusters are few: the interval is optimistic")
    by_default = drawn <= MOST_UNITS_FOR_BCA and all(s.INTERVAL == "BCa" for s in (*a, *b))
    use_bca = method == "BCa" or (method == "auto" and by_default)
    return _result(row, replicates, owner if use_bca else None, (confidence, units, drawn if clustered else None, notes))


def _result(
    row: Callable[[Weights], Scores],
    replicates: Scores,
    owner: Int[np.ndarray, " units"] | None,
    facts: tuple[float, int, int | None, list[str]],
) -> Difference:
    """The interval of replicates: BCa if there is an owner for the jackknife. facts: confidence, units, clusters and notes."""
    confidence, units, clusters, notes = facts
    found, quantiles = float(row(np.ones((1, units)))[0]), None
    replicates, found = settled(replicates, found)
    if owner is not None:
        quantiles = bca_quantiles(replicates, found, jackknife(row, owner), confidence)
        if quantiles is None:
            notes = [*notes, "the difference lies outside all resamples: percentile interval"]
    low, high = np.nanquantile(replicates, percentile_quantiles(confidence) if quantiles is None else quantiles)
    name = "percentile" if quantiles is None else "BCa"
    p = two_sided_p(replicates)
    return Difference(found, float(low), float(high), p, confidence, name, units, clusters, tuple(notes), replicates)


def informative(statistics: Sequence[Statistic], owner: Int[np.ndarray, " units"] | None) -> int:
    """How many units, or clusters, have a value in any of the statistics: others say nothing, whether they are drawn or not."""
    known = np.flatnonzero(np.any([s.known for s in statistics], axis=0))
    return len(known) if owner is None else len(np.unique(owner[known]))


def settled(replicates: Scores, found: float) -> tuple[Scores, float]:
    """The replicates and the difference itself; what differs from 0, or from that difference, by rounding alone is exactly that.

    Of scores such as 0 and 1 many are equal. A mean of them is a sum of rounded numbers, whose last digits depend on the draw.
    """
    near = TIE * np.nanstd(replicates) + ROUNDING
    found = 0.0 if abs(found) <= near else found
    for value in (found, 0.0):
        replicates = np.where(np.abs(replicates - value) <= near, value, replicates)
    return replicates, found


def _distinct(a: Sequence[Statistic], b: Sequence[Statistic]) -> tuple[tuple[list[Statistic], list[Statistic]], np.ndarray] | None:
    """Rows of means with one unit for all that have the same values in all rows, and how many these are; None where that is no less.

    Drawing them as often as their units are drawn together is the same draw: top-1 of 50,000 images has four kinds of images.
    """
    means = [s for s in (*a, *b) if isinstance(s, MeanOfUnits) and not np.isnan(s.values).any()]
    if len(means) < len(a) + len(b):
        return None
    values, sizes = np.unique(np.stack([s.values for s in means]), axis=1, return_counts=True)
    if 2 * len(sizes) > means[0].units:
        return None
    few: list[Statistic] = [MeanOfUnits(v, s.scale) for s, v in zip(means, values, strict=True)]
    return (few[: len(a)], few[len(a) :]), sizes


def _common_units(statistics: Sequence[Statistic]) -> int:
    numbers = {s.units for s in statistics}
    if len(numbers) != 1:
        raise ValueError(f"statistics of {sorted(numbers)} units: rows are compared on the same units")
    return numbers.pop()


def _difference(a: Sequence[Statistic], b: Sequence[Statistic]) -> Callable[[Weights], Scores]:
    def row(weights: Weights) -> Scores:
        return np.mean([s.of_weights(weights) for s in b], axis=0) - np.mean([s.of_weights(weights) for s in a], axis=0)

    return row


def draw_blocks(
    sizes: Int[np.ndarray, " kinds"], resamples: int, seed: int, width: int | None = None
) -> Iterator[Float[np.ndarray, "block kinds"]]:
    """How often a unit of each kind is drawn in each resample of as many draws with replacement as there are units, block by block.

    Args:
        sizes: units of each kind; ones draw single units. width: numbers that a resample is spread to; blocks stay below 64 MB.
    """
    generator, total = np.random.default_rng(seed), int(sizes.sum())
    size = max(1, BLOCK_BYTES // (8 * (width or len(sizes))))
    for start in range(0, resamples, size):
        yield generator.multinomial(total, sizes / total, size=min(size, resamples - start)).astype(np.float64)


def counts_of(indices: Int[np.ndarray, "resamples draws"], number: int) -> Int[np.ndarray, "resamples number"]:
    """How often each unit occurs in each row of drawn indices."""
    rows = np.arange(len(indices))[:, None] * number
    return np.bincount((rows + indices).ravel(), minlength=len(indices) * number).reshape(-1, number)


def jackknife(row: Callable[[Weights], Rows], owner: Int[np.ndarray, " units"]) -> Rows:
    """The difference, or several, without each unit, or without each cluster."""
    drawn = int(owner.max()) + 1
    size = max(1, BLOCK_BYTES // (8 * len(owner)))
    parts = [np.arange(start, min(start + size, drawn)) for start in range(0, drawn, size)]
    return np.concatenate([row((owner != part[:, None]).astype(np.float64)) for part in parts])


def percentile_quantiles(confidence: float) -> tuple[float, float]:
    """The two quantiles of the percentile interval."""
    return (1 - confidence) / 2, (1 + confidence) / 2


def bias_and_acceleration(replicates: Scores, found: float, left_out: Scores) -> tuple[float, float]:
    """z0 = Phi^-1((#{T* < T} + #{T* = T} / 2) / R) and a = sum d^3 / (6 (sum d^2)^1.5), d = mean(jackknife) - jackknife.

    z0 is infinite where T lies outside all T*.
    """
    replicates = replicates[~np.isnan(replicates)]
    share = ((replicates < found).sum() + 0.5 * (replicates == found).sum()) / len(replicates)
    bias = NORMAL.inv_cdf(share) if 0 < share < 1 else float(np.copysign(np.inf, share - 0.5))
    d = left_out.mean() - left_out
    squares = (d**2).sum()
    return bias, float((d**3).sum() / (6 * squares**1.5)) if squares > 0 else 0.0


def bca_quantiles(replicates: Scores, found: float, left_out: Scores, confidence: float) -> tuple[float, float] | None:
    """Quantiles Phi(z0 + (z0 + z) / (1 - a (z0 + z))) of the BCa interval; None where z0 is infinite.

    Source: Efron, Better bootstrap confidence intervals, 1987.
    """
    z0, a = bias_and_acceleration(replicates, found, left_out)
    if np.isinf(z0):
        return None
    low, high = (NORMAL.cdf(z0 + (z0 + z) / (1 - a * (z0 + z))) for z in map(NORMAL.inv_cdf, percentile_quantiles(confidence)))
    return low, high


def two_sided_p(replicates: Scores) -> float:
    """min(1, 2 min((1 + #{T* <= 0}) / (R + 1), (1 + #{T* >= 0}) / (R + 1)))."""
    n = int((~np.isnan(replicates)).sum())
    return min(1.0, 2 * min(1 + int((replicates <= 0).sum()), 1 + int((replicates >= 0).sum())) / (n + 1))
