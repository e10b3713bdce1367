"""Score one backbone while the settings of one evaluation turn, step by step, into those of another.

results/explain/{A}-{B}/{run}-s{seed}/      see results/ladder.py

Steps, joins and order: study/ladder/. Scores: ladder_scores.py. Features are computed once for each set that the steps ask for.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from densewalk.core.errors import UserError
from densewalk.core.hashing import config_hash
from densewalk.core.progress import log
from densewalk.evidence.bootstrap import informative
from densewalk.evidence.orders import draw_orders, prefixes, sampled_shapley
from densewalk.evidence.share_intervals import ShareIntervals, share_intervals
from densewalk.evidence.shares import interactions, one_at_a_time, shapley
from densewalk.evidence.units import Units
from densewalk.jobs.ladder_scores import Scored, Scorer
from densewalk.results.ladder import Explained, Interval, StepShare, write_ladder
from densewalk.study.config import Study
from densewalk.study.ladder.protocols import MixedLadder, ladder_between
from densewalk.study.ladder.steps import Ladder
from densewalk.training.execution import Execution

EXACT = 6  # up to so many steps all combinations are scored
PAIRS = 4  # of sampled orders, if the limit allows them


@dataclass(frozen=True)
class Question:
    """What to explain.

    metric: the evaluation's first one if None. limit: most scorings. pairs: of sampled orders, beyond `EXACT` steps; None: as many as the
    limit allows, at most `PAIRS`; 0: the table's order alone, whatever the number of steps.
    """

    a: str
    b: str
    run: str
    seed: int | None = None
    metric: str | None = None
    limit: int = 64
    pairs: int | None = None


@dataclass(frozen=True)
class Answer:
    """A ladder, the orders that are sampled, and the combinations to score in their order.

    orders: None where all combinations are scored; empty where only the table's order is.
    """

    ladder: Ladder
    orders: list[list[int]] | None
    subsets: list[int]

    def describe(self) -> Iterator[str]:
        """Steps and costs as lines."""
        names, steps = self.ladder.names, self.ladder.steps
        for step in steps:
            start, end = self.ladder.values(step)
            yield f"{step}: {start} -> {end}" + (f" (not alone: {step.reason})" if step.reason else "")
        reads = {read for subset in self.subsets for read in self.ladder.features_of(subset)}
        how = "all combinations" if self.orders is None else f"{len(self.orders)} sampled orders" if self.orders else "one order"
        trainings = self.ladder.trainings(self.subsets)
        costs = f"{len(reads)} sets of features, {trainings} trainings, {len(self.subsets)} scorings"
        yield f"{len(steps)} steps from {names[0]} to {names[1]}, {how}: {costs}"

    def by_subset(self, rows: Float[np.ndarray, " rows"]) -> dict[int, float]:
        """The score of each of `subsets`, from rows that begin with them; those of the ends may follow."""
        return dict(zip(self.subsets, rows[: len(self.subsets)].tolist(), strict=True))

    def shares(self, scores: Float[np.ndarray, " subsets"]) -> Float[np.ndarray, " steps"] | None:
        """The Shapley share of each step, from the scores of `subsets`; None where only one order is scored."""
        by_subset = self.by_subset(scores)
        if self.orders is None:
            return shapley(np.array([by_subset[s] for s in range(self.ladder.whole + 1)]))
        return sampled_shapley(by_subset.__getitem__, len(self.ladder.steps), self.orders).shares if self.orders else None

    def along(self, scores: Float[np.ndarray, " subsets"]) -> Float[np.ndarray, " steps"]:
        """What each step adds in the table's order."""
        by_subset = self.by_subset(scores)
        return np.diff([by_subset[s] for s in prefixes(range(len(self.ladder.steps)))])


@dataclass(frozen=True)
class Ends:
    """The two evaluations by their own code, where the ladder's is another: what is between is a step of its own."""

    a: Scored
    b: Scored


def answer(study: Study, question: Question, results: Path, execution: Execution, *, only_plan: bool) -> Iterator[str]:
    """Score what a question asks for, unless only the plan is wanted; the plan and what was found as lines."""
    planned = plan(study, question)
    yield from planned.describe()
    if not only_plan:
        yield from text(explain(study, question, planned, results, execution))


def plan(study: Study, question: Question) -> Answer:
    """The steps and what they cost.

    Raises:
        UserError: unknown names, evaluations that are not comparable, or more scorings than the limit.
    """
    _require(question.run, study.runs, "run")
    for name in (question.a, question.b):
        _require(name, study.evaluations, "evaluation")
    ladder = ladder_between(question.a, study.evaluations[question.a].settings, question.b, study.evaluations[question.b].settings)
    _require(metric_of(ladder, question), ladder.metrics, "metric")
    steps = len(ladder.steps)
    sampled = steps > EXACT or question.pairs == 0
    pairs = range(PAIRS, -1, -1) if question.pairs is None else [question.pairs]
    for number in pairs:
        orders = draw_orders(steps, number, seed=0) if sampled else None
        chosen = set(ladder.order if orders is None else _passed(steps, orders))
        if len(chosen) <= question.limit:
            break
    subsets = [s for s in ladder.order if s in chosen]
    if len(subsets) > question.limit:
        raise UserError(
            f"{len(subsets)} scorings for {steps} steps ({', '.join(map(str, ladder.steps))})",
            allowed=f"{question.limit}",
            todo="raise --limit, ask for --pairs 0 (one order only), or put an evaluation between them",
        )
    return Answer(ladder, orders, subsets)


def _passed(steps: int, orders: list[list[int]]) -> set[int]:
    """The subsets that the table's order and the sampled ones pass through."""
    return {s for order in [list(range(steps)), *orders] for s in prefixes(order)}


def explain(study: Study, question: Question, answer: Answer, results: Path, execution: Execution) -> Explained:
    """Score all combinations and write what each step makes of the difference."""
    seed = study.runs[question.run].seeds[0] if question.seed is None else question.seed
    if seed not in study.runs[question.run].seeds:
        raise UserError(f"{question.run} has no seed {seed}", allowed=", ".join(map(str, study.runs[question.run].seeds)))
    names = answer.ladder.names
    folder = results / "explain" / f"{question.a}-{question.b}" / f"{question.run}-s{seed}"
    scorer = Scorer(study, names, question.run, seed, results, folder, execution)
    metric = metric_of(answer.ladder, question)
    ends = Ends(*(scorer.end(name) for name in names)) if isinstance(answer.ladder, MixedLadder) else None
    scored = scorer.scores(answer.ladder, answer.subsets)
    for subset, found in scored.items():
        if found.metrics[metric] is None:
            raise UserError(f"{metric} is not defined with {name_of(answer.ladder, subset)}", todo="choose another --metric")
    explained = summarize(question, seed, answer, scored, ends)
    write_ladder(explained, folder)
    log.info("wrote %s", folder)
    return explained


def summarize(question: Question, seed: int, answer: Answer, scored: dict[int, Scored], ends: Ends | None = None) -> Explained:
    """Shares, single steps, interactions and intervals of the scores."""
    ladder, metric = answer.ladder, metric_of(answer.ladder, question)
    rows = [scored[s] for s in answer.subsets] + ([ends.a, ends.b] if ends else [])
    values = np.array([row.metrics[metric] for row in rows], np.float64)
    by_subset = answer.by_subset(values)
    first, last = values[-2:].tolist() if ends else (by_subset[0], by_subset[ladder.whole])
    interval, bounds = intervals(answer, question, rows, ends)
    steps = share_rows(answer, values, ends)
    if bounds is not None:
        pairs = zip(steps, bounds.low.tolist(), bounds.high.tolist(), strict=True)
        steps = [step.model_copy(update={"low": low, "high": high}) for step, low, high in pairs]
    named = [(name_of(ladder, subset), value) for subset, value in by_subset.items()]
    table = np.array([by_subset[s] for s in range(ladder.whole + 1)]) if answer.orders is None else None
    return Explained(
        names=ladder.names,
        run=question.run,
        seed=seed,
        metric=metric,
        unit=ladder.a.METRICS[metric].unit,
        first=first,
        last=last,
        steps=steps,
        scores=[(ladder.names[0], first), *named, (ladder.names[1], last)] if ends else named,
        interactions=None if table is None else interactions(table).tolist(),
        interval=interval,
    )


def share_rows(answer: Answer, values: Float[np.ndarray, " rows"], ends: Ends | None) -> list[StepShare]:
    """The steps with what each makes; with ends, what the code makes stands before and behind them."""
    ladder = answer.ladder
    shares, along = parts(answer, values, ends)
    count = len(ladder.steps)
    nothing: Sequence[float | None] = [None] * count
    from_a, from_b, errors = nothing, nothing, nothing
    by_subset = answer.by_subset(values)
    if answer.orders is None:
        table = np.array([by_subset[s] for s in range(ladder.whole + 1)])
        from_a, from_b = (alone.tolist() for alone in one_at_a_time(table))
    elif answer.orders:
        found = sampled_shapley(by_subset.__getitem__, count, answer.orders).standard_error
        errors = [None if np.isnan(error) else error for error in found.tolist()]  # of one pair of orders
    before = 1 if ends else 0
    rows = []
    for i, step in enumerate(ladder.steps):
        start, end = ladder.values(step)
        share = None if shares is None else float(shares[i + before])
        rows.append(
            StepShare(
                name=str(step),
                start=start,
                end=end,
                reason=step.reason,
                shapley=share,
                standard_error=errors[i],
                sequential=float(along[i + before]),
                from_a=from_a[i],
                from_b=from_b[i],
            )
        )
    return rows if ends is None else [_code(ladder, shares, along, 0), *rows, _code(ladder, shares, along, 1)]


def _code(ladder: Ladder, shares: Float[np.ndarray, " steps"] | None, along: Float[np.ndarray, " steps"], side: int) -> StepShare:
    """What is left between an evaluation's own code and the ladder's."""
    at, sides = -side, ("its own", "the ladder's")
    return StepShare(
        name=f"code of {ladder.names[side]}",
        start=sides[side],
        end=sides[1 - side],
        reason="what another implementation makes where every part is the same",
        shapley=None if shares is None else float(shares[at]),
        standard_error=None,
        sequential=float(along[at]),
        from_a=None,
        from_b=None,
        is_code=True,
    )


def parts(
    answer: Answer, values: Float[np.ndarray, " rows"], ends: Ends | None
) -> tuple[Float[np.ndarray, " steps"] | None, Float[np.ndarray, " steps"]]:
    """Shapley shares and contributions in the table's order; with ends, what the code makes stands before and behind them.

    Linear in the scores. values: of `answer.subsets`, then of the two ends.
    """
    number = len(answer.subsets)
    by_subset = answer.by_subset(values)
    shares, along = answer.shares(values[:number]), answer.along(values[:number])
    if ends is None:
        return shares, along
    before, behind = by_subset[0] - values[-2], values[-1] - by_subset[answer.ladder.whole]
    wrapped = [None if x is None else np.concatenate([[before], x, [behind]]) for x in (shares, along)]
    assert wrapped[1] is not None
    return wrapped[0], wrapped[1]


def intervals(answer: Answer, question: Question, rows: Sequence[Scored], ends: Ends | None) -> tuple[Interval, ShareIntervals | None]:
    """The interval of each share over the choice of test units: of the Shapley shares, or of the one order's contributions."""
    metric = metric_of(answer.ladder, question)
    units = [row.units for row in rows if row.units is not None and metric in row.units.statistics]
    if reason := obstacle(units, len(rows), metric):
        return Interval(notes=(f"no interval: {reason}",)), None
    basis = [parts(answer, column, ends) for column in np.eye(len(rows))]
    coefficients = np.stack([along if shares is None else shares for shares, along in basis], axis=1)
    seed = int(config_hash([answer.ladder.names, question.run, metric, units[0].ids])[:8], 16)
    found = share_intervals([u.statistics[metric] for u in units], coefficients, owner=units[0].owner, seed=seed)
    facts = Interval(
        method=found.method,
        confidence=found.confidence,
        resamples=found.resamples,
        unit=units[0].unit,
        units=found.units,
        clusters=found.clusters,
        notes=found.notes,
    )
    return facts, found


def obstacle(units: Sequence[Units], rows: int, metric: str) -> str | None:
    """Why the scores have no common test units to draw; None where they have."""
    if len(units) < rows:
        return "what the scores are made of is not stored for all of them"
    if any(list(u.ids) != list(units[0].ids) for u in units):
        return "the steps are scored on other units"
    values = informative([u.statistics[metric] for u in units], units[0].owner)
    return "one unit, or one cluster, tells nothing about the choice of others" if values < 2 else None


def text(found: Explained) -> Iterator[str]:
    """The steps as lines."""
    (a, b), difference = found.names, found.last - found.first
    yield f"{found.metric} of {found.run}: {a} {found.first:.2f}, {b} {found.last:.2f} ({difference:+.2f} {_of_difference(found.unit)})"
    for s in found.steps:
        parts = [f"in this order {s.sequential:+.2f}"] if s.shapley is None else [f"{s.shapley:+.2f}", f"in this order {s.sequential:+.2f}"]
        if s.low is not None and s.high is not None:
            parts[0] += f" ({s.low:+.2f} to {s.high:+.2f})"
        if s.standard_error is not None:
            parts[0] += f" (standard error {s.standard_error:.2f})"
        if s.from_a is not None and s.from_b is not None:
            parts.append(f"alone from {a} {s.from_a:+.2f}, from {b} {s.from_b:+.2f}")
        yield f"  {s.name}: {s.start} -> {s.end}: {', '.join(parts)}"
    if found.interval is not None:
        yield found.interval.text


def _of_difference(unit: str) -> str:
    """The unit of a difference: of two percentages it is points, not percent."""
    return "points" if unit == "%" else unit


def metric_of(ladder: Ladder, question: Question) -> str:
    """The metric that is explained."""
    return question.metric or next(iter(ladder.metrics))


def name_of(ladder: Ladder, subset: int) -> str:
    """The steps of a subset, or the name of one of the two evaluations."""
    if subset in (0, ladder.whole):
        return ladder.names[1 if subset else 0] + (" by the ladder's code" if isinstance(ladder, MixedLadder) else "")
    return ", ".join(str(step) for i, step in enumerate(ladder.steps) if subset >> i & 1)


def _require(name: str, known: Iterable[str], what: str) -> None:
    names = list(known)
    if name not in names:
        raise UserError(f"no such {what}: {name}", allowed=", ".join(names))
