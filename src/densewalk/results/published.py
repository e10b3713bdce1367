"""Published numbers: which of them stand beside one of ours, and which only belong to the same model. Free of torch and pandas.

published.csv names method, init, arch, pretraining data, task, data set, protocol, metric, value, source and how reliable it is.
"""

import csv
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from densewalk.models.catalog import Labels
from densewalk.results.benchmarks import is_benchmark
from densewalk.results.records import ResultRecord

MODEL = ("method", "init", "arch", "pretraining_data")
KEY = (*MODEL, "dataset", "metric", "protocol")
CONFIDENCE = ("seen", "second_hand", "figure")
Row = dict[str, str]


@dataclass(frozen=True)
class Published:
    """A number of published.csv."""

    value: float
    protocol: str
    source: str


def published(record: ResultRecord, metric: str) -> Published | None:
    """The published value of the same data set, protocol, metric and model; None where any of them differs or is not known.

    The data set is the same where its name is, and where what was scored is what the benchmark holds (benchmarks.py). The record's
    `labels` name the model as published.csv does; `published_metrics` names metrics that are called otherwise there.
    """
    row = _of_model(record, metric).get(record.published_protocol or "")
    return None if row is None else Published(float(row["value"]), row["protocol"], row["source"])


def elsewhere(record: ResultRecord, metric: str) -> str:
    """Values of the same model, data set and metric by *other* protocols, to be read and not to be subtracted; empty without any."""
    others = [row for protocol, row in _of_model(record, metric).items() if protocol != record.published_protocol]
    others.sort(key=lambda row: CONFIDENCE.index(row["confidence"]))
    return "; ".join(f"{row['value']} by {row['protocol']} [{row['source']}]" for row in others)


def is_published(labels: Labels) -> bool:
    """True where published.csv has a number of the model with these names."""
    return _model(labels) in _published_models()


def read_numbers(lines: Iterable[str]) -> list[Row]:
    """The rows of a CSV of published numbers.

    Raises:
        AssertionError: two values for one key; which of them is meant must be decided in the file, not by its order.
    """
    found: dict[tuple[str, ...], Row] = {}
    for row in csv.DictReader(lines):
        key = tuple(row[name] for name in KEY)
        earlier = found.setdefault(key, row)
        assert earlier is row, f"two values for {', '.join(key)}: {earlier['value']} and {row['value']}"
    return list(found.values())


@lru_cache
def published_numbers() -> list[Row]:
    """The rows of published.csv."""
    with files("densewalk.results").joinpath("published.csv").open(encoding="utf-8") as file:
        return read_numbers(file)


def _model(labels: Labels) -> tuple[str, ...]:
    return tuple(getattr(labels, name) for name in MODEL)


def _of_model(record: ResultRecord, metric: str) -> dict[str, Row]:
    """The rows of published.csv with the record's model, data set and metric, by protocol."""
    if record.labels is None or not is_benchmark(record):
        return {}
    # without a table of other names, names are the same; with one, a metric outside it has no published counterpart
    name = metric if record.published_metrics is None else record.published_metrics.get(metric)
    return _by_model().get((*_model(record.labels), record.dataset, name), {})


@lru_cache
def _by_model() -> dict[tuple[str | None, ...], dict[str, Row]]:
    numbers: dict[tuple[str | None, ...], dict[str, Row]] = defaultdict(dict)
    for row in published_numbers():
        numbers[tuple(row[name] for name in (*MODEL, "dataset", "metric"))][row["protocol"]] = row
    return dict(numbers)


@lru_cache
def _published_models() -> frozenset[tuple[str, ...]]:
    return frozenset(tuple(row[name] for name in MODEL) for row in published_numbers())
