"""Which metrics of which evaluations a table for a paper shows.

run,J,F                              of the evaluations that have all of these metrics, a row for each, or a group of columns (`pivot`)
run,mIoU,J&F                         of several evaluations side by side, a row for each run
run,incontext_drive:mIoU,J&F         the evaluation is named where several have this metric
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from densewalk.core.errors import UserError
from densewalk.core.text.complaints import did_you_mean
from densewalk.results.benchmarks import dataset_name
from densewalk.results.records import ResultRecord
from densewalk.results.tables import LEADING, TRAILING, metrics_in

Pivot = Literal["dataset", "evaluation"]
FACTS = (*LEADING, *(name for name in TRAILING if name != "samples_unit"))  # the unit stands behind `samples_seen`
Owners = Mapping[str, Sequence[str]]  # column -> the evaluations that have its metric


@dataclass(frozen=True)
class Number:
    """A column of numbers. group: above its name, empty for none."""

    evaluation: str
    metric: str
    group: str


@dataclass(frozen=True)
class Layout:
    """evaluations: that are shown. numbers: columns, in order. is_listed: a row for each run and evaluation, not for each run."""

    evaluations: list[str]
    numbers: list[Number]
    is_listed: bool


def layout(records: Sequence[ResultRecord], columns: Sequence[str], pivot: Pivot | None) -> Layout:
    """Find the metrics that are meant.

    Raises:
        UserError: no record, an unknown column, a metric of several evaluations, or two evaluations for one place of the table.
    """
    if not records:
        raise UserError("there is no record to make a table of", todo="correct --table, or name a folder of results")
    names = [column for column in columns if column not in FACTS]
    by_evaluation = {record.evaluation: record for record in records}
    owners = {name: _owners(name, records) for name in names}
    common = [evaluation for evaluation in by_evaluation if all(evaluation in found for found in owners.values())]
    groups = {evaluation: _group(record, pivot) for evaluation, record in by_evaluation.items()}
    if not common or any(_metric(name, by_evaluation) != name for name in names):
        return _side_by_side(owners, groups, pivot)
    _require_one_each({evaluation: groups[evaluation] for evaluation in common}, columns, pivot)
    return Layout(common, [Number(e, name, groups[e]) for e in common for name in names], is_listed=pivot is None)


def _group(record: ResultRecord, pivot: Pivot | None) -> str:
    """The name of a record's group of columns, empty without any."""
    return {"dataset": dataset_name(record), "evaluation": record.evaluation}.get(pivot or "", "")


def _metric(name: str, evaluations: Mapping[str, ResultRecord]) -> str:
    """A column's metric, without the evaluation before it."""
    before, _, after = name.partition(":")
    return after if before in evaluations else name


def _owners(name: str, records: Sequence[ResultRecord]) -> list[str]:
    """The evaluations that have a column's metric."""
    evaluation, is_prefixed, metric = name.partition(":")
    evaluations = list(dict.fromkeys(record.evaluation for record in records))
    if is_prefixed and evaluation not in evaluations and name not in metrics_in(records):
        near = did_you_mean(evaluation, evaluations)
        raise UserError(f"--columns: {name}: no record of an evaluation {evaluation}{near}", allowed=", ".join(evaluations))
    if is_prefixed and evaluation in evaluations:
        records, text = [record for record in records if record.evaluation == evaluation], f"{evaluation} has no metric {metric}"
    else:
        metric, text = name, f"{name} is neither a fact of the wide tables nor a metric of these records"
    found = list(dict.fromkeys(record.evaluation for record in records if metric in record.metrics))
    if not found:
        known = metrics_in(records)
        raise UserError(f"--columns: {text}", allowed=", ".join(known if metric != name else [*FACTS, *known]))
    return found


def _side_by_side(owners: Owners, groups: Mapping[str, str], pivot: Pivot | None) -> Layout:
    """Metrics of several evaluations in one row of each run, under their data set or evaluation."""
    pairs = [(evaluation, name.removeprefix(f"{evaluation}:")) for name, found in owners.items() for evaluation in found]
    shown = list(dict.fromkeys(evaluation for evaluation, _ in pairs))
    if pivot is None:
        for name, found in owners.items():
            if len(found) > 1:
                allowed = ", ".join(f"{evaluation}:{name}" for evaluation in found)
                raise UserError(
                    f"--columns: {name} is a metric of {' and '.join(found)}",
                    allowed=allowed,
                    todo="name one of these, or all, or --pivot dataset",
                )
        return Layout(shown, [Number(e, metric, e if len(shown) > 1 else "") for e, metric in pairs], is_listed=False)
    order = list(dict.fromkeys(groups[evaluation] for evaluation in shown))
    numbers = sorted((Number(e, metric, groups[e]) for e, metric in pairs), key=lambda number: order.index(number.group))
    twice = [place for place, count in Counter((n.group, n.metric) for n in numbers).items() if count > 1]
    if twice:
        group, metric = twice[0]
        both = [n.evaluation for n in numbers if (n.group, n.metric) == twice[0]]
        allowed = ", ".join(f"{evaluation}:{metric}" for evaluation in both)
        raise UserError(
            f"--pivot {pivot}: {metric} on {group} is of {' and '.join(both)}",
            allowed=allowed,
            todo="name one of these, or --pivot evaluation",
        )
    return Layout(shown, numbers, is_listed=False)


def _require_one_each(groups: Mapping[str, str], columns: Sequence[str], pivot: Pivot | None) -> None:
    """Require that no two evaluations have the same place in the table: a reader could not tell them apart."""
    told_apart = pivot is not None or {"evaluation", "dataset", "protocol"} & set(columns)
    twice = [group for group, count in Counter(groups.values()).items() if count > 1]
    if pivot and twice:
        both = ", ".join(evaluation for evaluation, group in groups.items() if group == twice[0])
        raise UserError(f"--pivot {pivot}: {both} have the same {pivot}, {twice[0]}", todo="choose one by --table, or --pivot evaluation")
    if not told_apart and len(groups) > 1:
        names = [column for column in columns if column not in FACTS]
        named = f", or name one, e.g. {next(iter(groups))}:{names[0]}" if names else ""
        todo = f"add evaluation, or --pivot dataset, or --table{named}"
        raise UserError(f"--columns: rows of {', '.join(groups)} could not be told apart", todo=todo)
