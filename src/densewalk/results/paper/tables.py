"""A table for a paper: chosen columns, a row for each run, one group of columns for each data set or evaluation.

    densewalk tables --columns run,J,F --pivot dataset --format latex results
    densewalk tables --columns "run,mIoU,J&F" --format latex results

The best value of a column is bold only where it is better than every other, and every floor, by more than the interval of the paired
difference over seeds (significance.py). Floors come last, without an interval. The caption says what bold, intervals and floors mean, and
names the protocols.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from densewalk.core.metric import floor_of
from densewalk.results.benchmarks import dataset_name
from densewalk.results.gain import Groups, Metrics, floors
from densewalk.results.paper.columns import FACTS, Number, Pivot, layout
from densewalk.results.records import Named, ResultRecord, read_results
from densewalk.results.significance import about_intervals, best_runs, is_random_start
from densewalk.results.tables import grouped, wide_row


@dataclass(frozen=True)
class Cell:
    """A cell. interval: half-width, empty without one."""

    text: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class PaperTable:
    """heads: (group, name) of each column, group empty for one of no group. floors: rows below the others. caption: sentences."""

    heads: list[tuple[str, str]]
    rows: list[list[Cell]]
    floors: list[list[Cell]]
    caption: list[str]
    numeric: list[bool] = field(default_factory=list)


def paper_table(
    paths: Sequence[Path], columns: Sequence[str], pivot: Pivot | None, task: str | None, metrics: Metrics, named: Named | None = None
) -> PaperTable:
    """Make the table of some records.

    Args:
        columns: facts of the wide tables and metrics (columns.py). pivot: a group of columns for each of these. task: only this table's
            evaluations. named: see `read_results`.

    Raises:
        UserError: see `layout`.
    """
    records = [r for r in read_results(paths, named) if task is None or r.task == task]
    found = layout(records, columns, pivot)
    groups: dict[str, dict[str, list[ResultRecord]]] = {evaluation: {} for evaluation in found.evaluations}
    for (run, evaluation), group in grouped(r for r in records if r.evaluation in groups).items():
        groups[evaluation][run] = group
    return _listed(groups, columns, metrics) if found.is_listed else _by_run(groups, found.numbers, columns, metrics)


def _by_run(groups: Mapping[str, Groups], numbers: Sequence[Number], columns: Sequence[str], metrics: Metrics) -> PaperTable:
    """A row for each run; facts come before the numbers."""
    facts = [c for c in columns if c in FACTS]
    runs = list(dict.fromkeys(run for of_runs in groups.values() for run in of_runs))
    shown = display_names({run: next(of_runs[run][0] for of_runs in groups.values() if run in of_runs) for run in runs})
    values = {e: _cells(of_runs, [n.metric for n in numbers if n.evaluation == e], metrics) for e, of_runs in groups.items()}
    others = [_other_floors(groups[n.evaluation], n.metric) for n in numbers]
    rows: list[list[Cell]] = []
    below: list[list[Cell]] = []
    for run in runs:
        own = [record for of_runs in groups.values() for record in of_runs.get(run, [])]
        is_floor = is_random_start(own[0])
        cells = [_fact(own, name, shown[run], is_floor=is_floor) for name in facts]
        cells += [values[n.evaluation][run][n.metric] if run in values[n.evaluation] else Cell("–") for n in numbers]
        (below if is_floor else rows).append(cells)
    for floor in dict.fromkeys(floor for known in others for floor in known):
        names = [Cell(f"{floor} (floor)" if name == "run" else "") for name in facts]
        below.append([*names, *(Cell(known.get(floor, "–")) for known in others)])
    heads = [("", name) for name in facts] + [(n.group, n.metric) for n in numbers]
    return _finished(heads, rows, below, groups)


def _listed(groups: Mapping[str, Groups], columns: Sequence[str], metrics: Metrics) -> PaperTable:
    """A row for each run and evaluation."""
    names = [c for c in columns if c not in FACTS]
    first = {run: group[0] for of_runs in groups.values() for run, group in of_runs.items()}
    shown = display_names(first)
    rows: list[list[Cell]] = []
    below: list[list[Cell]] = []
    for of_runs in groups.values():
        values = _cells(of_runs, names, metrics)
        for run, group in of_runs.items():
            is_floor = is_random_start(group[0])
            cells = [_fact(group, c, shown[run], is_floor=is_floor) if c in FACTS else values[run][c] for c in columns]
            (below if is_floor else rows).append(cells)
        for floor in dict.fromkeys(f for m in names for f in _other_floors(of_runs, m)):
            facts = {"run": f"{floor} (floor)", **{c: _fact(next(iter(of_runs.values())), c, "").text for c in ("evaluation", "dataset")}}
            below.append([Cell(facts.get(c, "") if c in FACTS else _other_floors(of_runs, c).get(floor, "–")) for c in columns])
    return _finished([("", c) for c in columns], rows, below, groups)


def _cells(of_runs: Groups, names: Sequence[str], metrics: Metrics) -> dict[str, dict[str, Cell]]:
    """The numbers of one evaluation, by run and metric."""
    found: dict[str, dict[str, Cell]] = {run: {} for run in of_runs}
    for name in names:
        described = metrics.get(next(iter(of_runs.values()))[0].task, {}).get(name)
        best = best_runs(of_runs, name, described.better if described else "higher")
        for run, group in of_runs.items():
            row = wide_row(group, [name])
            interval = "" if is_random_start(group[0]) else row[f"{name} ci95"]
            found[run][name] = Cell(row[name] or "–", interval, run in best)
    return found


def _other_floors(of_runs: Groups, metric: str) -> dict[str, str]:
    """The floors that are no run of the study."""
    if floor_of(metric) is not None:
        return {}
    return {name: f"{value:.2f}" for name, value in floors(of_runs, metric) if name not in of_runs}


def _fact(group: Sequence[ResultRecord], name: str, shown: str, *, is_floor: bool = False) -> Cell:
    """A fact about a run; of several evaluations' records the facts in which they differ are a list."""
    if name == "run":
        return Cell(f"{shown} (floor)" if is_floor else shown)
    evaluations = dict.fromkeys(r.evaluation for r in group)
    rows = [wide_row([r for r in group if r.evaluation == evaluation], []) for evaluation in evaluations]
    text = "; ".join(dict.fromkeys(row[name] for row in rows))
    unit = rows[0]["samples_unit"] if name == "samples_seen" and text else ""
    return Cell(f"{text} {unit}".strip())


def display_names(first: Mapping[str, ResultRecord]) -> dict[str, str]:
    """A run's name for readers by its `labels`: method and initial backbone, and as much more as tells the runs apart.

    Args:
        first: run -> one of its records.
    """
    names = {run: run for run in first}
    parts: dict[str, list[str]] = {}
    for run, record in first.items():
        if (labels := record.labels) is not None:
            method = f"{labels.method} from {labels.init}" if labels.init else labels.method
            parts[run] = [method, labels.arch, labels.pretraining_data, run]
            names[run] = method
    for i in range(1, 4):
        for name in [name for name, count in Counter(names.values()).items() if count > 1]:
            alike = [run for run in parts if names[run] == name]
            if len({parts[run][i] for run in alike}) > 1:  # a part in which all agree tells nothing apart
                names |= {run: f"{name}, {parts[run][i]}" for run in alike if parts[run][i]}
    return names


def _finished(heads: list[tuple[str, str]], rows: list[list[Cell]], below: list[list[Cell]], groups: Mapping[str, Groups]) -> PaperTable:
    """Say which columns are numbers, and what a reader must know."""
    everything = [*rows, *below]
    numeric = [_is_numeric([row[i].text for row in everything]) for i in range(len(heads))]
    cells, caption = [cell for row in everything for cell in row], []
    records = [group[0] for of_runs in groups.values() for group in of_runs.values()]
    if any(cell.interval for cell in cells):
        caption.append("Mean over seeds ± half-width of its 95 % interval (Student's t).")
        caption.append(about_intervals((r.evaluation, str(r.n), r.unit) for r in records))
    if any(cell.best for cell in cells):
        caption.append(
            "Bold: better than every other run, and every floor, by more than the 95 % interval of the paired difference over seeds."
        )
    if below:
        caption.append("Floors are no result of a training and have no interval.")
    for protocol in dict.fromkeys(r.protocol for r in records):
        own = dict.fromkeys(f"{r.evaluation} on {dataset_name(r)}" for r in records if r.protocol == protocol)
        caption.append(f"{', '.join(own)}: {protocol}.")
    return PaperTable(heads, rows, below, caption, numeric)


def _is_numeric(texts: Sequence[str]) -> bool:
    """True of a column of numbers, alone or with a unit; a list of numbers is none."""
    known = [text for text in texts if text not in ("", "–")]
    return bool(known) and all(_number(text.split(" ")[0]) and text.count(" ") < 2 and ";" not in text for text in known)


def _number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
