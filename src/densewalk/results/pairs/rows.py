"""Compare rows by their test units: is a difference more than the choice of test images could make?

    densewalk compare dino:davis neco:davis                          # runs of the folder results, in one evaluation each
    densewalk compare dino:davis neco:davis timet:davis --metric J   # several against the first: p by Holm's rule, too
    densewalk compare a/s0/davis.json b/s0/davis.json                # or record files

    neco:davis - dino:davis     J&F
        61.82 -> 63.10   +1.28
        test units      +0.31 to +2.27   95 %, BCa, 9999 resamples of 61 objects in 30 sequences   p 0.0118
        training seeds  ± 0.66           95 %, Student's t, 3 pairs of seeds

The two intervals are about two sources of variation: which test images were chosen, and which seeds. Neither includes the other.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from densewalk.core.errors import UserError
from densewalk.evidence.bootstrap import RESAMPLES, informative
from densewalk.evidence.multiplicity import Discordant, discordant, holm
from densewalk.evidence.statistics import MeanOfUnits
from densewalk.evidence.units import Units
from densewalk.results.pairs.cells import UNIT_COLUMNS, unit_cells
from densewalk.results.pairs.differences import UnitDifference, difference, require_comparable, units_of
from densewalk.results.records import ResultRecord, read_result
from densewalk.results.significance import Paired, fixed, paired, partners
from densewalk.results.tables import write_csv

COLUMNS = (
    *("run", "evaluation", "reference", "reference_evaluation", "metric", "value", "reference_value", "difference"),
    *UNIT_COLUMNS,
    *("resamples", "seeds", "seeds_ci95", "notes"),
)


@dataclass(frozen=True)
class Row:
    """A run in one evaluation: its records by seed, and where they lie."""

    name: str
    records: tuple[ResultRecord, ...]
    paths: tuple[Path, ...]


@dataclass(frozen=True)
class Compared:
    """A row against the first one.

    pairs: of seeds. value, reference_value: means over them. by_units: over test units; None where all are of one video, which tells
    nothing of others. cluster: what was drawn, or would have been. by_seeds: over training seeds. p_holm: of several comparisons, else
    None. discordant: for scores of right and wrong answers of one seed.
    """

    row: Row
    reference: Row
    metric: str
    pairs: int
    value: float
    reference_value: float
    by_units: UnitDifference | None
    by_seeds: Paired
    cluster: str
    p_holm: float | None = None
    discordant: Discordant | None = None


def find_row(name: str, results: Path) -> Row:
    """A row by `run:evaluation` or by the file of a record."""
    path = Path(name)
    if path.suffix == ".json":
        record = read_result(path)
        return Row(f"{record.run}:{record.evaluation}", (record,), (path,))
    run, colon, evaluation = name.partition(":")
    paths = tuple(sorted(results.glob(f"{run}/s*/{evaluation}.json"), key=lambda p: int(p.parent.name[1:]))) if colon and run else ()
    if not paths:
        raise UserError(f"{name}: no such result in {results}", allowed="RUN:EVALUATION, or the file of a record")
    return Row(name, tuple(read_result(p) for p in paths), paths)


def compare_rows(names: Sequence[str], results: Path, metric: str | None = None, resamples: int = RESAMPLES) -> list[Compared]:
    """Compare each row with the first one.

    Args:
        metric: the first one of the first record if None.
    """
    reference, *others = (find_row(name, results) for name in names)
    metric = metric or next(iter(reference.records[0].metrics))
    found = [_compare(reference, row, metric, resamples) for row in others]
    known = [c.by_units.p for c in found if c.by_units is not None]
    if len(known) < 2:
        return found
    adjusted = iter(holm(np.array(known)))
    return [c if c.by_units is None else replace(c, p_holm=next(adjusted)) for c in found]


def _compare(reference: Row, row: Row, metric: str, resamples: int) -> Compared:
    pairs = [(b, a) for a, b in partners(row.records, reference.records)]
    if not pairs and len(row.records) == len(reference.records) == 1:  # two records that were named one by one
        pairs = [(reference.records[0], row.records[0])]
    if not pairs:
        raise UserError(f"{reference.name} and {row.name} have no seed in common", todo="name record files to compare single seeds")
    sides = [[_read(side, record) for record in records] for side, records in zip((reference, row), zip(*pairs, strict=True), strict=True)]
    for (a, b), (of_a, of_b) in zip(pairs, zip(*sides, strict=True), strict=True):
        require_comparable(a, b, (of_a, of_b), metric)
        require_comparable(pairs[0][0], a, (sides[0][0], of_a), metric)
    records_a, records_b = ([pair[side] for pair in pairs] for side in (0, 1))
    by_seeds = paired(records_b, records_a, metric) if len(pairs) > 1 else Paired((), (), float("nan"), float("nan"), float("nan"))
    units = sides[0][0]
    with_values = informative([u.statistics[metric] for side in sides for u in side], units.owner)
    by_units = difference(sides[0], sides[1], metric, resamples=resamples) if with_values > 1 else None
    value, reference_value = (float(np.mean([_value(record, metric) for record in records])) for records in (records_b, records_a))
    return Compared(
        row=row,
        reference=reference,
        metric=metric,
        pairs=len(pairs),
        value=value,
        reference_value=reference_value,
        by_units=by_units,
        cluster=units.cluster or units.unit,
        by_seeds=by_seeds,
        discordant=_discordant(sides, metric),
    )


def _value(record: ResultRecord, metric: str) -> float:
    value = record.metrics[metric]
    assert value is not None  # require_comparable
    return value


def _read(row: Row, record: ResultRecord) -> Units:
    return units_of(record, row.paths[row.records.index(record)])


def _discordant(sides: Sequence[Sequence[Units]], metric: str) -> Discordant | None:
    """Counts of a right and a wrong answer, where answers are right or wrong and each row has one seed."""
    statistics = [side[0].statistics[metric] for side in sides]
    values = [s.values for s in statistics if isinstance(s, MeanOfUnits)]
    if len(sides[0]) > 1 or len(values) < 2 or not all(np.isin(v, (0, 1)).all() for v in values):
        return None
    return discordant(*(v == 1 for v in values))


def text(found: Sequence[Compared]) -> str:
    """The comparisons as text."""
    lines: list[str] = []
    for c in found:
        u = c.by_units
        lines += [
            f"{c.row.name} - {c.reference.name}     {c.metric}",
            f"    {fixed(c.reference_value)} -> {fixed(c.value)}   {fixed(c.value - c.reference_value, sign=True)}",
            f"    test units      {_over_units(c, len(found))}",
        ]
        if len(c.by_seeds.seeds) > 1:
            half, pairs = fixed(c.by_seeds.half), len(c.by_seeds.seeds)
            lines.append(f"    training seeds  ± {half:<14} 95 %, Student's t, {pairs} pairs of seeds")
        else:
            lines.append("    training seeds  one pair tells nothing of their variation")
        if c.discordant is not None:
            d = c.discordant
            lines.append(f"    only {c.row.name} right: {d.only_b}; only {c.reference.name} right: {d.only_a}; sign test p {d.p:.4f}")
        if u is not None and u.is_tie:
            lines.append("    a tie, over test units")
        lines += [f"    note: {note}" for note in (u.notes if u is not None else ())]
    lines.append(
        "The interval over test units says nothing of training seeds or of the start of a probe, that over seeds nothing of test images."
    )
    return "\n".join(lines)


def _over_units(c: Compared, comparisons: int) -> str:
    u = c.by_units
    if u is None:
        return f"one {c.cluster} tells nothing of others"
    many = f" (Holm's rule, {comparisons} comparisons: {c.p_holm:.4f})" if c.p_holm is not None else ""
    interval = f"{fixed(u.low, sign=True)} to {fixed(u.high, sign=True)}"
    return f"{interval}   95 %, {u.method}, {u.resamples} resamples of {u.drawn}   p {u.p:.4f}{many}"


def write_compared(found: Sequence[Compared], path: Path) -> None:
    """Write the comparisons as CSV, a line each."""
    write_csv(pd.DataFrame([_cells(c) for c in found], columns=list(COLUMNS), dtype=str).fillna(""), path)


def _cells(c: Compared) -> dict[str, str]:
    u = c.by_units
    return {
        "run": c.row.records[0].run,
        "evaluation": c.row.records[0].evaluation,
        "reference": c.reference.records[0].run,
        "reference_evaluation": c.reference.records[0].evaluation,
        "metric": c.metric,
        "value": fixed(c.value),
        "reference_value": fixed(c.reference_value),
        "difference": fixed(c.value - c.reference_value, sign=True),
        **unit_cells(u, c.p_holm),
        "resamples": str(u.resamples) if u is not None else "",
        "seeds": str(c.pairs),
        "seeds_ci95": fixed(c.by_seeds.half),
        "notes": "; ".join(u.notes) if u is not None else _over_units(c, 1),
    }
