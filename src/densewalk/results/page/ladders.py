"""The ladders of a study on its page: which setting makes which part of the difference between two evaluations."""

from collections.abc import Iterator
from pathlib import Path

from densewalk.results.ladder import Explained, StepShare, read_ladders
from densewalk.results.page.charts import ladder_chart
from densewalk.results.page.view import LadderPart
from densewalk.results.plan import Plan
from densewalk.results.significance import fixed


def ladder_parts(plan: Plan, results: Path) -> list[LadderPart]:
    """A part for each ladder between two evaluations of the study."""
    known = [ladder for ladder in read_ladders(results) if ladder.run in plan.runs and set(ladder.names) <= plan.evaluations.keys()]
    return [_part(ladder) for ladder in known]


def _part(ladder: Explained) -> LadderPart:
    a, b = ladder.names
    difference = fixed(ladder.last - ladder.first, sign=True)
    return LadderPart(
        heading=f"{ladder.metric} of {ladder.run}, seed {ladder.seed}: from {a} to {b}, {difference}",
        svg=ladder_chart(ladder),
        columns=["setting", a, b, "Shapley share", "interval", "in this order", f"alone from {a}", f"alone from {b}"],
        rows=[_row(step) for step in ladder.steps],
        note=" ".join(_notes(ladder)),
    )


def _notes(ladder: Explained) -> Iterator[str]:
    """Why steps are what they are, and what the intervals are of."""
    for step in ladder.steps:
        if step.reason:
            yield f"{step.name}: {step.reason}." if step.is_code else f"{step.name} cannot be turned alone: {step.reason}."
    if ladder.interval is not None:
        yield f"{ladder.interval.text}."


def _row(step: StepShare) -> list[str]:
    share = "–" if step.shapley is None else fixed(step.shapley, sign=True)
    if step.standard_error is not None:
        share += f" ± {fixed(step.standard_error)}"
    known = step.low is not None and step.high is not None
    interval = f"{fixed(step.low, sign=True)} to {fixed(step.high, sign=True)}" if known else "–"
    others = [("–" if value is None else fixed(value, sign=True)) for value in (step.sequential, step.from_a, step.from_b)]
    return [step.name, step.start, step.end, share, interval, *others]
