"""The page's first tables: what each run has gained over its start and over the study's baseline, in each evaluation's first metric."""

from collections.abc import Sequence

from densewalk.results.gain import Gain, gains
from densewalk.results.page.view import GainCell, GainRow, GainTable
from densewalk.results.pairs.differences import Differences
from densewalk.results.plan import Plan
from densewalk.results.records import ResultRecord
from densewalk.results.significance import fixed

OWN_START = "The start is the run that a run is built on, its checkpoint as it is, or random weights of the same architecture and seed."


def first_metrics(plan: Plan) -> dict[str, str]:
    """The first metric of each evaluation."""
    return {name: next(iter(evaluation.metrics)) for name, evaluation in plan.evaluations.items() if evaluation.metrics}


def gain_sections(plan: Plan, records: Sequence[ResultRecord], differences: Differences | None = None) -> list[GainTable]:
    """A table against the runs' own starts, and one against the baseline if the study names one; none without a difference."""
    firsts, all_gains = first_metrics(plan), gains(records, plan.metrics_of_tables(), plan.baseline, differences)
    found = [gain for gain in all_gains if firsts.get(gain.evaluation) == gain.metric]
    pairs = {
        against: {(g.run, g.evaluation, g.reference) for g in found if g.against == against and g.paired is not None and g.paired.seeds}
        for against in ("start", "baseline")
    }
    if pairs["baseline"] <= pairs["start"]:  # where it is every run's start, its table would be the same
        found = [gain for gain in found if gain.against != "baseline"]
    headings = {"start": ("Gain over the start", OWN_START), "baseline": (f"Difference to {plan.baseline}", "")}
    tables = []
    for against, (heading, text) in headings.items():
        own = [gain for gain in found if gain.against in ("", against)]
        known = [gain for gain in own if gain.paired is not None and gain.paired.seeds]
        if known:
            columns = [name for name in firsts if any(gain.evaluation == name for gain in known)]
            tables.append(GainTable(heading, text, [(name, firsts[name]) for name in columns], _rows(plan, own, columns)))
    return tables


def _rows(plan: Plan, own: Sequence[Gain], columns: Sequence[str]) -> list[GainRow]:
    """Runs in the study's order, then floors."""
    found = {(gain.run, gain.kind, gain.evaluation): gain for gain in own}
    runs = [run for run in plan.runs if any((run, "run", column) in found for column in columns)]
    floors = list(dict.fromkeys(gain.run for gain in own if gain.kind == "floor" and gain.evaluation in columns))
    return [
        GainRow(name, kind == "floor", [_cell(found.get((name, kind, column)), plan) for column in columns])
        for kind, names in (("run", runs), ("floor", floors))
        for name in names
    ]


def _cell(gain: Gain | None, plan: Plan) -> GainCell:
    if gain is None:
        return GainCell("")
    if gain.kind == "floor":
        return GainCell(fixed(gain.value), note="" if gain.value == gain.value else "no value")
    if gain.reference is None:
        return GainCell("", note="no result of its start" if gain.against == "start" else "no result of the baseline")
    found = gain.paired
    if found is None or not found.seeds:
        return GainCell("", note=f"no seed of {gain.reference}")
    source = f" ({gain.reference})" if gain.against == "start" else ""
    planned, there = len(plan.seeds_of(gain.run, gain.evaluation)), len(found.seeds)
    seeds = ", one seed" if there == planned == 1 else f", {there} of {planned} seeds" if there < planned else ""
    note = f"from {fixed(found.reference)}{source}{seeds}" if found.reference == found.reference else "no value"
    units = f"{fixed(gain.units.low, sign=True)} to {fixed(gain.units.high, sign=True)}" if gain.units else ""
    is_tie = gain.units is not None and gain.units.is_tie
    return GainCell(fixed(found.mean, sign=True), fixed(found.half), gain.beyond == "gain", note, gain.by_seed, units, is_tie)
