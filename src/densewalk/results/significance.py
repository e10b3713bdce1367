"""Means over seeds, paired differences, their intervals, and which difference is larger than its interval.

Two runs are compared seed by seed, because a seed decides the same things in both (weights at the start, order of the data):

    d_s = value of the run at seed s - value of the reference at seed s
    mean(d) ± t(0.975, n - 1) sd(d) / sqrt(n)             Student's t interval of the n paired differences

Nothing is called better on one seed.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from scipy.stats import t as student

from densewalk.core.metric import floor_of
from densewalk.models.families.own_code import OWN
from densewalk.results.records import ResultRecord

Better = Literal["higher", "lower"] | None


@dataclass(frozen=True)
class Paired:
    """Differences of a run to a reference, by seed.

    mean: NaN if any is not defined. half: of the interval, NaN for one seed. reference: mean of the reference's values.
    """

    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    mean: float
    half: float
    reference: float

    def is_better(self, better: Better) -> bool:
        """True where the mean difference is in the metric's better direction and larger than its interval: never with one seed."""
        gain = -self.mean if better == "lower" else self.mean
        return better is not None and len(self.seeds) > 1 and gain > self.half


def paired(group: Sequence[ResultRecord], reference: Sequence[ResultRecord], metric: str) -> Paired:
    """Compare a run with a reference, both by their records of one evaluation; seeds without a partner are left out."""
    found = partners(group, reference)
    pairs = [(_number(own.metrics.get(metric)), _number(partner.metrics.get(metric))) for own, partner in found]
    differences = tuple(own - other for own, other in pairs)
    mean, half = mean_and_interval(differences)
    return Paired(tuple(own.seed for own, _ in found), differences, mean, half, mean_and_interval([other for _, other in pairs])[0])


def partners(group: Sequence[ResultRecord], reference: Sequence[ResultRecord]) -> list[tuple[ResultRecord, ResultRecord]]:
    """Each record of a run with that of the reference that it is compared with; seeds without a partner are left out."""
    return [(record, partner) for record in group if (partner := _partner(record, reference)) is not None]


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _partner(record: ResultRecord, reference: Sequence[ResultRecord]) -> ResultRecord | None:
    """The reference's record of the same seed, or of the seed that the run is built on; a network as it is may have one for all."""
    if len(reference) == 1 and is_as_it_is(reference[0]):
        return reference[0]
    built_on = record.init_seed is not None and any(r.run == record.init for r in reference)
    seed = record.init_seed if built_on else record.seed
    return next((r for r in reference if r.seed == seed), None)


def is_random_start(record: ResultRecord) -> bool:
    """True of random weights as they are: a floor. A network of the user's own is none, because its function gives it its weights."""
    return record.method == "none" and record.init_kind == "random" and not record.arch.startswith(OWN)


def is_as_it_is(record: ResultRecord) -> bool:
    """True of a checkpoint or a network of the user's own, as it is."""
    return record.method == "none" and (record.init_kind == "checkpoint" or record.arch.startswith(OWN))


def best_runs(groups: Mapping[str, Sequence[ResultRecord]], metric: str, better: Better) -> set[str]:
    """The run that may be called the best: better than every other, and than every floor, by more than the interval of the difference.

    Args:
        groups: run -> its records of one evaluation. better: the metric's direction.

    Returns:
        One run, or none: with one seed, with a difference within its interval, without two runs to compare, if it is a floor, or below one.
    """
    means = {run: mean_and_interval([r.metrics.get(metric) for r in group])[0] for run, group in groups.items()}
    known = {run: mean for run, mean in means.items() if not math.isnan(mean)}
    if len(known) < 2 or better is None:
        return set()
    best = (min if better == "lower" else max)(known, key=lambda run: known[run])
    others = [groups[run] for run in known if run != best]
    is_best = all(paired(groups[best], other, metric).is_better(better) for other in others)
    is_best = is_best and all(_to_floor(groups[best], value, metric).is_better(better) for _, value in floors_of_data(groups, metric))
    return {best} if is_best and not is_random_start(groups[best][0]) else set()


def floors_of_data(groups: Mapping[str, Sequence[ResultRecord]], metric: str) -> Iterator[tuple[str, float]]:
    """Name and value of what is scored in place of a prediction: of the data alone, the same for every backbone."""
    records = [record for group in groups.values() for record in group]
    for name in dict.fromkeys(name for record in records for name in record.metrics):
        if (floor := floor_of(name)) is not None and floor[0] == metric:
            known = [value for record in records if (value := record.metrics.get(name)) is not None]
            if known:
                yield floor[1], known[0]


def _to_floor(group: Sequence[ResultRecord], floor: float, metric: str) -> Paired:
    """The differences of a run to a floor, which has one value for all seeds."""
    differences = tuple(_number(record.metrics.get(metric)) - floor for record in group)
    return Paired(tuple(record.seed for record in group), differences, *mean_and_interval(differences), floor)


def about_intervals(scored: Iterable[tuple[str, str, str]]) -> str:
    """A sentence for captions: over what intervals are, and over what they are not.

    Args:
        scored: evaluation, count of what was scored, and its unit.
    """
    known = list(dict.fromkeys(scored))
    evaluations, facts = {evaluation for evaluation, _, _ in known}, dict.fromkeys(f"{n} {unit}" for _, n, unit in known)
    several = len(evaluations) > 1 and len(facts) > 1
    units = "; ".join(f"{evaluation}: {n} {unit}" for evaluation, n, unit in known) if several else "; ".join(facts)
    return f"Intervals are over training seeds; test units ({units}) are another source of variation: see densewalk compare."


def mean_and_interval(values: Sequence[float | None]) -> tuple[float, float]:
    """Mean over seeds, and the half-width of its 95 % confidence interval, t(0.975, n - 1) s / sqrt(n), Student's t.

    NaN for the mean if any seed has no value (a mean over the lucky seeds would mislead), for the half-width of one seed.
    """
    numbers = [_number(v) for v in values]
    n = len(numbers)
    if n == 0:
        return math.nan, math.nan
    mean = sum(numbers) / n
    if n == 1:
        return mean, math.nan
    deviation = math.sqrt(sum((v - mean) ** 2 for v in numbers) / (n - 1))
    return mean, _quantile(n - 1) * deviation / math.sqrt(n)


@cache
def _quantile(degrees: int) -> float:
    return float(student.ppf(0.975, degrees))


def fixed(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """A fixed number of decimals, the same everywhere; empty for None and NaN; never a negative zero."""
    if value is None or math.isnan(value):
        return ""
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "+" if sign else "") if float(text) == 0 else text
