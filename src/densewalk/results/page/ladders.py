"""The ladders of a study on its page: which setting makes which part of the difference between two evaluations."""

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
        columns=["setting", a, b, "Shapley share", "in this order", f"alone from {a}", f"alone from {b}"],
        rows=[_row(step) for step in ladder.steps],
        note=" ".join(f"{step.name} cannot be turned alone: {step.reason}." for step in ladder.steps if step.reason),
    )


def _row(step: StepShare) -> list[str]:
    share = fixed(step.shapley, sign=True) + ("" if step.standard_error is None else f" ± {fixed(step.standard_error)}")
    others = [("–" if value is None else fixed(value, sign=True)) for value in (step.sequential, step.from_a, step.from_b)]
    return [step.name, step.start, step.end, share, *others]
