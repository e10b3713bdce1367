"""Result records -> tables.

    densewalk tables --table incontext --out incontext.csv results                   # all records of a folder of results
    densewalk tables --table all --out all.csv results
    densewalk tables --table cost --out cost.csv results/dora/s*/davis.json          # or these

Runs and evaluations come in the order of the records, which is the study's. A wide table has one row per run and evaluation, with
mean and 95 % interval over the seeds, and the published value for the same data set, protocol and model if there is one. It holds
nothing that differs between two equal runs: what was spent is in `all.csv` (one line per metric, run, seed and evaluation) and in
the cost table. Equal records give equal bytes. docs/tables.md says what each column holds.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from densewalk.core.files import atomic_write
from densewalk.core.metric import floor_of
from densewalk.core.text.quoting import for_csv, from_csv
from densewalk.results.benchmarks import dataset_name
from densewalk.results.published import elsewhere, published
from densewalk.results.records import Named, ResultRecord, TrainingRecord, read_results
from densewalk.results.significance import fixed, mean_and_interval

# what a reader may rely on: columns before and after those of the metrics
LEADING = (
    *("run", "method", "init", "arch", "compat", "pretraining_data", "evaluation", "dataset", "protocol", "protocol_version"),
    *("seeds", "n", "unit"),
)
TRAILING = ("training_steps", "samples_seen", "samples_unit", "method_version", "config_hash", "commit", "training_teraflop")
SUFFIXES = (" ci95", " published", " published_source", " published_delta")  # of a metric's columns after the first
COMPUTE = ("training_teraflop", "training_teraflop_with_init", "training_cpu_seconds")  # what equal compute is told by
COST_OF_JOB = {"seconds": 1, "gpu_hours": 4, "peak_rss_mib": 0, "peak_gpu_mib": 0, "energy_wh": 2}  # and their decimals
TIDY = (
    *("run", "method", "init", "arch", "compat", "pretraining_data", "task", "evaluation", "dataset", "protocol", "protocol_version"),
    *("metric", "seed", "value", "mean", "ci95", "seeds", "n", "unit"),
    *("published", "published_protocol", "published_source", "published_delta", "published_elsewhere"),
    *("training_steps", "samples_seen", "samples_unit", "training_hours", "training_hours_with_init", "training_device"),
    *("method_version", "config_hash", "run_hash", "commit", "dirty", "versions", "device"),
    *COST_OF_JOB,
    *(f"training_{name}" for name in COST_OF_JOB),
    *COMPUTE,
)
COST = (
    *("run", "method", "init", "arch", "seed", "training_device", "processes", "training_steps", "samples_seen", "samples_unit"),
    *("training_seconds", "training_gpu_hours", "training_hours", "training_hours_with_init"),
    *("evaluation_seconds", "evaluation_peak_rss_mib"),
    *COMPUTE,
)

# (run, seed) -> the run and seed that it is built on (None for none), and what its own training has spent
Spent = dict[tuple[str, int], tuple[tuple[str, int] | None, float]]


@dataclass(frozen=True)
class Compute:
    """What each run is built on, and what its own training has spent.

    hours: seconds times processes. teraflop, cpu_hours: counted work, and CPU time of all processes and threads; NaN where not known.
    """

    hours: Spent
    teraflop: Spent
    cpu_hours: Spent


def write_table(paths: Sequence[Path], table: str, out: Path, named: Named | None = None) -> None:
    """Write a table of result records as CSV: `all`, `cost`, or a task's, which without a record of the task is its header alone.

    Args:
        named: see `read_results`.
    """
    records = read_results(paths, named)
    whole = {"all": tidy_table, "cost": cost_table}
    write_csv(whole[table](records) if table in whole else wide_table(of_task(records, table)), out)


def of_task(records: Iterable[ResultRecord], task: str) -> list[ResultRecord]:
    """The records of one table."""
    return [r for r in records if r.task == task]


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table whose cells are text."""
    quoted = table.map(for_csv).rename(columns=for_csv)
    with atomic_write(path) as temporary:
        quoted.to_csv(temporary, index=False, lineterminator="\n")


def read_table(path: Path) -> pd.DataFrame:
    """Read a CSV table, all cells as text."""
    return pd.read_csv(path, dtype=str, keep_default_na=False).map(from_csv).rename(columns=from_csv)


# -- tables ----------------------------------------------------------------------------------------------------------


def grouped(records: Iterable[ResultRecord]) -> dict[tuple[str, str], list[ResultRecord]]:
    """The seeds of each run and evaluation."""
    groups: dict[tuple[str, str], list[ResultRecord]] = defaultdict(list)
    for record in records:
        groups[record.run, record.evaluation].append(record)
    return dict(groups)


def metrics_in(records: Iterable[ResultRecord]) -> list[str]:
    """The names of all metrics in their order."""
    return list(dict.fromkeys(name for r in records for name in r.metrics))


def wide_table(records: Sequence[ResultRecord]) -> pd.DataFrame:
    """One row per run and evaluation; for each metric mean, 95 % interval and, where there are any, published values."""
    metrics = metrics_in(records)
    columns = [*LEADING, *(f"{m}{suffix}" for m in metrics for suffix in ("", *SUFFIXES)), *TRAILING]
    rows = [wide_row(group, metrics) for group in grouped(records).values()]
    empty = {f"{m}{suffix}" for m in metrics for suffix in SUFFIXES[1:] if not any(row[f"{m}{suffix}"] for row in rows)}
    return pd.DataFrame(rows, columns=[c for c in columns if c not in empty], dtype=str).fillna("")


def wide_row(group: Sequence[ResultRecord], metrics: Sequence[str]) -> dict[str, str]:
    """The seeds of one run and evaluation in one row."""
    trainings = [r.training for r in group]
    row = {
        **description_cells(group),
        "seeds": str(len(group)),
        "n": _same(r.n for r in group),
        "training_steps": _same(_of(t, "steps") for t in trainings),
        "samples_seen": _same(_of(t, "samples_seen") for t in trainings),
        "samples_unit": _same(_of(t, "samples_unit") for t in trainings),
        "method_version": _same(r.method_version for r in group),
        "config_hash": _same(r.config_hash for r in group),
        "commit": _same(r.code for r in group),
        "training_teraflop": _same(_of(t, "teraflop", 3) for t in trainings),
    }
    for metric in metrics:
        cells = metric_cells(group, metric)
        row |= {metric: cells["mean"], **{metric + suffix: cells[suffix.strip()] for suffix in SUFFIXES}}
    return row


def description_cells(group: Sequence[ResultRecord]) -> dict[str, str]:
    """What was evaluated, and how: the same for all metrics, and for all seeds of a study that is not half changed."""
    plain = ("run", "method", "init", "arch", "compat", "evaluation", "protocol", "unit")
    return {
        **{name: _same(getattr(r, name) for r in group) for name in plain},
        "dataset": _same(dataset_name(r) for r in group),
        "pretraining_data": _same(r.labels.pretraining_data if r.labels else "" for r in group),
        "protocol_version": _same(r.version for r in group),
    }


def metric_cells(group: Sequence[ResultRecord], metric: str) -> dict[str, str]:
    """One metric of a run and evaluation; a published value only where it is that of every seed."""
    mean, half = mean_and_interval([r.metrics.get(metric) for r in group])
    found, *others = [published(r, metric) for r in group]
    found = found if all(other == found for other in others) and len({r.protocol for r in group}) == 1 else None
    return {
        "mean": fixed(mean),
        "ci95": "" if floor_of(metric) else fixed(half),
        "published": "" if found is None else fixed(found.value),
        "published_protocol": "" if found is None else found.protocol,
        "published_source": "" if found is None else found.source,
        "published_delta": "" if found is None else fixed(_minus(mean, found.value), sign=True),
    }


def tidy_table(records: Sequence[ResultRecord]) -> pd.DataFrame:
    """One line per metric of each record."""
    groups, spent = grouped(records), compute(records)
    rows = [tidy_row(r, m, groups[r.run, r.evaluation], spent) for r in records for m in r.metrics]
    return pd.DataFrame(rows, columns=list(TIDY), dtype=str).fillna("")


def tidy_row(record: ResultRecord, metric: str, group: Sequence[ResultRecord], spent: Compute) -> dict[str, str]:
    """One number with all that is known about it. `group`: the records of all its seeds."""
    plain = ("task", "n", "seed", "method_version", "config_hash", "run_hash", "commit", "device")
    return {
        **description_cells([record]),
        **metric_cells(group, metric),
        **training_cells(record, spent),
        **{name: str(getattr(record, name)) for name in plain},
        "metric": metric,
        "value": fixed(record.metrics[metric], 6),
        "seeds": str(len(group)),
        "published_elsewhere": elsewhere(record, metric),
        "dirty": str(record.dirty).lower(),
        "versions": " ".join(f"{k}={v}" for k, v in sorted(record.versions.items())),
        **{name: fixed(getattr(record, name), digits) for name, digits in COST_OF_JOB.items()},
        **{f"training_{name}": _of(record.training, name, digits) for name, digits in COST_OF_JOB.items()},
    }


def cost_table(records: Sequence[ResultRecord]) -> pd.DataFrame:
    """One line per run and seed: its training, and its evaluations together (time) or the largest of them (memory)."""
    groups: dict[tuple[str, int], list[ResultRecord]] = defaultdict(list)
    for record in records:
        groups[record.run, record.seed].append(record)
    spent = compute(records)
    return pd.DataFrame([_cost_row(g, spent) for g in groups.values()], columns=list(COST), dtype=str).fillna("")


def _cost_row(group: Sequence[ResultRecord], spent: Compute) -> dict[str, str]:
    first = group[0]
    return {
        **{name: str(getattr(first, name)) for name in ("run", "method", "init", "arch", "seed")},
        **training_cells(first, spent),
        "processes": _of(first.training, "processes"),
        "training_seconds": _of(first.training, "seconds", 1),
        "evaluation_seconds": fixed(sum(r.seconds for r in group), 1),
        "evaluation_peak_rss_mib": fixed(max(r.peak_rss_mib for r in group), 0),
    }


# -- cost ------------------------------------------------------------------------------------------------------------


def compute(records: Sequence[ResultRecord]) -> Compute:
    """What every run of the records has spent."""
    hours: Spent = {}
    teraflop: Spent = {}
    cpu_hours: Spent = {}
    for r in records:
        key, built_on, training = (r.run, r.seed), (r.init, r.init_seed) if r.init_seed is not None else None, r.training
        hours[key] = (built_on, training.process_hours if training else 0.0)
        counted, cpu = (0.0, 0.0) if training is None else (training.teraflop, training.cpu_seconds)
        teraflop[key] = (built_on, math.nan if counted is None else counted)
        cpu_hours[key] = (built_on, math.nan if cpu is None else cpu / 3600)
    return Compute(hours, teraflop, cpu_hours)


def with_init(run: str, seed: int, spent: Spent) -> float:
    """What a run has spent itself and the runs that it is built on; what a public checkpoint cost counts as nothing.

    NaN where there is no record of a run that it is built on, or where records of different studies lead in a circle.
    """
    total, seen, key = 0.0, set(), (run, seed)
    while key in spent and key not in seen:
        seen.add(key)
        built_on, own = spent[key]
        total += own
        if built_on is None:
            return total
        key = built_on
    return math.nan


def training_cells(record: ResultRecord, spent: Compute) -> dict[str, str]:
    """What the record's run cost and saw."""
    training, key = record.training, (record.run, record.seed)
    return {
        "training_steps": _of(training, "steps"),
        "samples_seen": _of(training, "samples_seen"),
        "samples_unit": _of(training, "samples_unit"),
        "training_device": _of(training, "device"),
        "training_gpu_hours": _of(training, "gpu_hours", 4),
        "training_hours": fixed(spent.hours[key][1], 4) if training else "",
        "training_hours_with_init": fixed(with_init(*key, spent.hours), 4),
        "training_teraflop": _of(training, "teraflop", 3),
        "training_teraflop_with_init": fixed(with_init(*key, spent.teraflop), 3),
        "training_cpu_seconds": _of(training, "cpu_seconds", 1),
    }


# -- statistics and cells --------------------------------------------------------------------------------------------


def _minus(value: float, published_value: float) -> float:
    """Of the values as they are printed, so that a reader who subtracts gets the printed difference."""
    return math.nan if math.isnan(value) else round(value, 2) - round(published_value, 2)


def _of(training: TrainingRecord | None, name: str, digits: int | None = None) -> str:
    """A fact about a training, rounded to `digits`; empty for a baseline."""
    value = getattr(training, name) if training else None
    if digits is not None:
        return fixed(value, digits)
    return "" if value is None else str(value)


def _same(values: Iterable[Any]) -> str:
    """The values' common text, or a list of all different ones in order, which nobody takes for one value."""
    return "; ".join(dict.fromkeys(str(v) for v in values))
