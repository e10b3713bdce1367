"""Published numbers: which of them stand beside one of ours, and which only belong to the same model.

published.csv names method, init, arch, pretraining data, task, data set, protocol, metric, value, source and how reliable it is.
"""

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

import pandas as pd

from densewalk.results.records import ResultRecord

CONFIDENCE = ("seen", "second_hand", "figure")
MODEL = ("method", "init", "arch", "pretraining_data")
Row = dict[str, str]


@dataclass(frozen=True)
class Published:
    """A number of published.csv."""

    value: float
    protocol: str
    source: str


def published(record: ResultRecord, metric: str) -> Published | None:
    """The published value of the same data set, protocol, metric and model; None where any of them differs or is not known.

    The record's `labels` name the model as published.csv does; `published_metrics` names metrics that are called otherwise
    there. Of several sources the most reliable counts (seen, second hand, read off a figure); the others are mentioned.
    """
    found = [row for row in _of_model(record, metric) if row["protocol"] == record.published_protocol]
    if not record.published_protocol or not found:
        return None
    best, *others = found
    also = "; ".join(f"{row['source']}: {row['value']}" for row in others)
    return Published(float(best["value"]), best["protocol"], best["source"] + (f" (also {also})" if also else ""))


def elsewhere(record: ResultRecord, metric: str) -> str:
    """Values of the same model, data set and metric by *other* protocols, to be read and not to be subtracted; empty without any."""
    others = [row for row in _of_model(record, metric) if row["protocol"] != record.published_protocol]
    return "; ".join(f"{row['value']} by {row['protocol']} [{row['source']}]" for row in others)


def _of_model(record: ResultRecord, metric: str) -> list[Row]:
    """The rows of published.csv with the record's model, data set and metric, the most reliable first."""
    if record.labels is None:
        return []
    # without a table of other names, names are the same; with one, a metric outside it has no published counterpart
    name = metric if record.published_metrics is None else record.published_metrics.get(metric)
    return _by_model().get((*(getattr(record.labels, key) for key in MODEL), record.dataset, name), [])


@lru_cache
def _by_model() -> dict[tuple[str | None, ...], list[Row]]:
    numbers: dict[tuple[str | None, ...], list[Row]] = defaultdict(list)
    for row in sorted(published_numbers(), key=lambda row: CONFIDENCE.index(row["confidence"])):
        numbers[tuple(row[key] for key in (*MODEL, "dataset", "metric"))].append(row)
    return dict(numbers)


@lru_cache
def published_numbers() -> list[Row]:
    """The rows of published.csv."""
    with files("densewalk.results").joinpath("published.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file, dtype=str, keep_default_na=False).to_dict("records")  # type: ignore[return-value]
