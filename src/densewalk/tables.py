"""Result records -> tables.

    densewalk tables --table incontext --out results/tables/incontext.csv results/*/s*/*.json
    densewalk tables --table all --out results/tables/all.csv results/*/s*/*.json

A record is one JSON file per run, seed and evaluation. Runs and evaluations come in the order of the records, which is the
study's. A wide table has one row per run and evaluation, with mean and 95 % interval over the seeds, and the published value
where there is one for the same data set, protocol and model. It holds nothing that differs between two equal runs: times
are in `all.csv` (one line per metric, run, seed and evaluation) and in the cost table. Equal records give equal bytes.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import t as student

from densewalk.checkpoint import atomic_write, read_json
from densewalk.errors import UserError

Record = dict[str, Any]

# what a reader may rely on: columns before and after those of the metrics
LEADING = (
    *("run", "method", "init", "arch", "compat", "pretraining_data", "evaluation", "dataset", "protocol", "protocol_version"),
    *("seeds", "n", "unit"),
)
TRAILING = ("training_steps", "samples_seen", "config_hash", "commit")
COST_OF_JOB = {"seconds": 1, "gpu_hours": 4, "peak_rss_mib": 0, "peak_gpu_mib": 0, "energy_wh": 2}  # and their decimals
TIDY = (
    *("run", "method", "init", "arch", "compat", "task", "evaluation", "dataset", "protocol", "protocol_version", "metric", "value"),
    *("n", "unit", "seed", "config_hash", "commit", "dirty", "versions", "device"),
    *COST_OF_JOB,
    *(f"training_{name}" for name in COST_OF_JOB),
    *("published", "published_source", "delta"),
)
COST = (
    *("run", "method", "arch", "seed", "device", "processes", "steps", "samples_seen", "training_seconds", "gpu_hours"),
    *("evaluation_seconds", "evaluation_peak_rss_mib"),
)
CONFIDENCE = ("seen", "second_hand", "figure")


def write_task_table(records: Sequence[Path], task: str, path: Path) -> None:
    """One task's wide table as CSV; without a record of the task, its header alone.

    Raises:
        UserError: a record is missing or is none.
    """
    write_csv(wide_table([r for r in read_records(records) if r["task"] == task]), path)


def write_all(records: Sequence[Path], path: Path) -> None:
    """Every number of every record as one tidy CSV."""
    write_csv(tidy_table(read_records(records)), path)


def write_cost_table(records: Sequence[Path], path: Path) -> None:
    """What each run and seed cost, as CSV."""
    write_csv(cost_table(read_records(records)), path)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """The table as it stands; cells are text already."""
    with atomic_write(path) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")


def write_markdown(table: Path, path: Path) -> None:
    """A CSV table as Markdown: the columns a reader compares, mean and interval in one cell."""
    with atomic_write(path) as temporary:
        temporary.write_text(markdown(read_table(table)))


def read_table(path: Path) -> pd.DataFrame:
    """A table written here, all cells as text."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


# -- records ---------------------------------------------------------------------------------------------------------

REQUIRED = {
    *("run", "seed", "method", "init", "arch", "compat", "task", "evaluation", "dataset", "protocol", "published_protocol", "version"),
    *("metrics", "n", "unit", "config_hash", "commit", "dirty", "seconds", "peak_rss_mib", "device", "versions", "training"),
}


def read_records(paths: Sequence[Path]) -> list[Record]:
    """The records in the order of the runs and evaluations they were given in; seeds ascend.

    Raises:
        UserError: a file is missing, is not JSON, or is no result record.
    """
    records = []
    for path in paths:
        record = read_json(path)
        missing = REQUIRED - record.keys() if isinstance(record, dict) else REQUIRED
        if missing:
            raise UserError(
                f"{path} is no result record: it lacks {', '.join(sorted(missing))}", todo="delete it, so that it is made again"
            )
        records.append(record)
    runs, evaluations = _order(records, "run"), _order(records, "evaluation")
    return sorted(records, key=lambda r: (runs[r["run"]], evaluations[r["evaluation"]], r["seed"]))


def _order(records: Iterable[Record], key: str) -> dict[str, int]:
    return {name: i for i, name in enumerate(dict.fromkeys(r[key] for r in records))}


# -- tables ----------------------------------------------------------------------------------------------------------


def wide_table(records: Sequence[Record]) -> pd.DataFrame:
    """One row per run and evaluation, five columns per metric: mean, 95 % interval, published value, its source, difference."""
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        groups[record["run"], record["evaluation"]].append(record)
    metrics = list(dict.fromkeys(name for r in records for name in r["metrics"]))
    columns = [*LEADING, *(f"{m}{suffix}" for m in metrics for suffix in ("", *SUFFIXES)), *TRAILING]
    return pd.DataFrame([wide_row(group, metrics) for group in groups.values()], columns=columns, dtype=str).fillna("")


SUFFIXES = (" ci95", " published", " published_source", " delta")


def wide_row(group: Sequence[Record], metrics: Sequence[str]) -> dict[str, str]:
    """The seeds of one run and evaluation in one row."""
    first = group[0]
    training = [r["training"] or {} for r in group]
    row = {
        **{name: str(first[name]) for name in ("run", "method", "init", "arch", "compat", "evaluation", "dataset", "protocol")},
        "pretraining_data": (first.get("labels") or {}).get("pretraining_data", ""),
        "protocol_version": str(first["version"]),
        "seeds": str(len(group)),
        "n": _same(r["n"] for r in group),
        "unit": first["unit"],
        "training_steps": _same(t.get("steps", "") for t in training),
        "samples_seen": _same(t.get("samples_seen", "") for t in training),
        "config_hash": _same(r["config_hash"] for r in group),
        "commit": _same(_commit(r) for r in group),
    }
    for metric in metrics:
        row |= metric_cells(group, metric)
    return row


def metric_cells(group: Sequence[Record], metric: str) -> dict[str, str]:
    """One metric's five cells; a published value is of the group's first record, whose protocol all seeds share."""
    mean, half = mean_and_interval([r["metrics"].get(metric) for r in group])
    found = published(group[0], metric)
    cells = {"": fixed(mean), " ci95": fixed(half)}
    if found is not None:
        cells |= {
            " published": fixed(found.value),
            " published_source": found.source,
            " delta": fixed(_minus(mean, found.value), sign=True),
        }
    return {metric + suffix: text for suffix, text in cells.items()}


def tidy_table(records: Sequence[Record]) -> pd.DataFrame:
    """One line per metric of each record."""
    return pd.DataFrame([tidy_row(r, m) for r in records for m in r["metrics"]], columns=list(TIDY), dtype=str).fillna("")


def tidy_row(record: Record, metric: str) -> dict[str, str]:
    """One number with all that is known about it."""
    value = _number(record["metrics"][metric])
    found = published(record, metric)
    plain = (
        "run",
        "method",
        "init",
        "arch",
        "compat",
        "task",
        "evaluation",
        "dataset",
        "protocol",
        "n",
        "unit",
        "seed",
        "config_hash",
        "commit",
        "device",
    )
    return {
        **{name: str(record[name]) for name in plain},
        "protocol_version": str(record["version"]),
        "metric": metric,
        "value": fixed(value, 6),
        "dirty": str(bool(record["dirty"])).lower(),
        "versions": " ".join(f"{k}={v}" for k, v in sorted(record["versions"].items())),
        **{name: fixed(record.get(name), digits) for name, digits in COST_OF_JOB.items()},
        **{f"training_{name}": fixed((record["training"] or {}).get(name), digits) for name, digits in COST_OF_JOB.items()},
        "published": "" if found is None else fixed(found.value),
        "published_source": "" if found is None else found.source,
        "delta": "" if found is None else fixed(_minus(value, found.value), sign=True),
    }


def cost_table(records: Sequence[Record]) -> pd.DataFrame:
    """One line per run and seed: its training, and its evaluations together (time) or the largest of them (memory)."""
    groups: dict[tuple[str, int], list[Record]] = defaultdict(list)
    for record in records:
        groups[record["run"], record["seed"]].append(record)
    return pd.DataFrame([_cost_row(g) for g in groups.values()], columns=list(COST), dtype=str).fillna("")


def _cost_row(group: Sequence[Record]) -> dict[str, str]:
    first = group[0]
    training = first["training"] or {}
    return {
        **{name: str(first[name]) for name in ("run", "method", "arch", "seed")},
        "device": str(training.get("device", first["device"])),
        **{name: str(training.get(name, "")) for name in ("processes", "steps", "samples_seen")},
        "training_seconds": fixed(training.get("seconds"), 1),
        "gpu_hours": fixed(training.get("gpu_hours"), 2),
        "evaluation_seconds": fixed(sum(r["seconds"] for r in group), 1),
        "evaluation_peak_rss_mib": fixed(max(r["peak_rss_mib"] for r in group), 0),
    }


# -- statistics and cells --------------------------------------------------------------------------------------------


def mean_and_interval(values: Sequence[float | None]) -> tuple[float, float]:
    """Mean over seeds, and the half-width of its 95 % confidence interval, t(0.975, n - 1) s / sqrt(n), Student's t.

    NaN for the mean if any seed has no value (a mean over the lucky seeds would mislead), for the half-width of one seed.
    """
    numbers = [_number(v) for v in values]
    n = len(numbers)
    mean = sum(numbers) / n
    if n == 1:
        return mean, math.nan
    deviation = math.sqrt(sum((v - mean) ** 2 for v in numbers) / (n - 1))
    return mean, float(student.ppf(0.975, n - 1)) * deviation / math.sqrt(n)


def fixed(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """A fixed number of decimals, the same everywhere; empty for None and NaN; never a negative zero."""
    if value is None or math.isnan(value):
        return ""
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "+" if sign else "") if float(text) == 0 else text


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _minus(value: float, published_value: float) -> float:
    """Of the values as they are printed, so that a reader who subtracts gets the printed difference."""
    return math.nan if math.isnan(value) else round(value, 2) - round(published_value, 2)


def _same(values: Iterable[Any]) -> str:
    """The values' common text, or all different ones in order."""
    return " ".join(dict.fromkeys(str(v) for v in values))


def _commit(record: Record) -> str:
    return record["commit"][:12] + ("+dirty" if record["dirty"] else "")


# -- published numbers -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """A number of published.csv."""

    value: float
    source: str


def published(record: Record, metric: str) -> Published | None:
    """The published value of the same data set, protocol, metric and model; None where any of them differs or is not known.

    The record's `labels` name the model as published.csv does; `published_metrics` names metrics that are called otherwise
    there. Of several sources the most reliable counts (seen, second hand, read off a figure); the others are mentioned.
    """
    labels = record.get("labels")
    if not labels or not record["published_protocol"]:
        return None
    # without a table of other names, names are the same; with one, a metric outside it has no published counterpart
    names = record.get("published_metrics")
    name = metric if names is None else names.get(metric)
    model = tuple(labels.get(k) or "" for k in ("method", "init", "arch", "pretraining_data"))
    found = published_numbers().get((*model, record["dataset"], record["published_protocol"], name), [])
    if not found:
        return None
    best, *others = sorted(found, key=lambda row: CONFIDENCE.index(row["confidence"]))
    also = "; ".join(f"{row['source']}: {row['value']}" for row in others)
    return Published(float(best["value"]), best["source"] + (f" (also {also})" if also else ""))


@lru_cache
def published_numbers() -> dict[tuple[str | None, ...], list[dict[str, str]]]:
    """published.csv by model, data set, protocol and metric."""
    with files("densewalk").joinpath("published.csv").open(encoding="utf-8") as file:
        rows = pd.read_csv(file, dtype=str, keep_default_na=False).to_dict("records")
    numbers = defaultdict(list)
    for row in rows:
        key = tuple(row[k] for k in ("method", "init", "arch", "pretraining_data", "dataset", "protocol", "metric"))
        numbers[key].append({str(k): str(v) for k, v in row.items()})
    return dict(numbers)


# -- for people ------------------------------------------------------------------------------------------------------


def metrics_of(table: pd.DataFrame) -> list[str]:
    """The metrics of a wide table, in order."""
    return [c.removesuffix(SUFFIXES[0]) for c in table.columns if c.endswith(SUFFIXES[0])]


def condensed(table: pd.DataFrame) -> pd.DataFrame:
    """A wide table's columns that a reader compares: what was run, on what, and `mean ± interval (published)` for each metric."""
    constant = [c for c in ("compat", "evaluation") if table[c].nunique() <= 1]
    shown = [c for c in ("run", "method", "init", "arch", "compat", "evaluation", "dataset", "seeds") if c not in constant]
    metrics = {m: [_reading(row, m) for _, row in table.iterrows()] for m in metrics_of(table)}
    return pd.concat([table[shown], pd.DataFrame(metrics, index=table.index, dtype=str)], axis=1)


def _reading(row: "pd.Series[str]", metric: str) -> str:
    mean, half, value = (row[metric + suffix] for suffix in ("", " ci95", " published"))
    return (mean or "–") + (f" ± {half}" if half else "") + (f" (published {value})" if value else "")


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table: a wide one condensed, any other as it is; protocols are listed below it."""
    shown = condensed(table) if metrics_of(table) else table
    lines = [list(shown.columns), ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
    text = "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)
    if not metrics_of(table):
        return text
    protocols = dict.fromkeys(zip(table["evaluation"], table["dataset"], table["protocol"], strict=True))
    return text + "".join(f"\n`{e}` on {d}: {p}.\n" for e, d, p in protocols)
