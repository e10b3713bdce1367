"""What each run has gained: over its own start, and over a baseline that the study names.

    densewalk tables --table gain --out gain.csv results
    densewalk tables --table gain --out gain.csv --baseline random_start results

The start of a run is the run that it is built on, the checkpoint that it starts from as it is (`method: none`), or random weights as they
are, of the same architecture and seed. Differences are by seed, with the paired interval over seeds (significance.py). Floors are rows,
too: they have a value, no difference and no interval. docs/tables.md says what each column holds.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from densewalk.core.errors import UserError
from densewalk.core.metric import Metric, floor_of
from densewalk.evidence.multiplicity import holm
from densewalk.results.benchmarks import dataset_name
from densewalk.results.pairs.cells import UNIT_COLUMNS, unit_cells
from densewalk.results.pairs.differences import Differences, UnitDifference
from densewalk.results.records import Named, ResultRecord, in_study_order, read_result
from densewalk.results.significance import Better, Paired, fixed, floors_of_data, is_random_start, mean_and_interval, paired, partners
from densewalk.results.tables import grouped, metrics_in, write_csv

COLUMNS = (
    *("run", "kind", "evaluation", "dataset", "metric", "better", "value", "against", "reference", "reference_value"),
    *("difference", "ci95", "beyond_interval", "seeds", "by_seed"),
    *UNIT_COLUMNS,
)
Metrics = Mapping[str, Mapping[str, Metric]]  # evaluation, or table -> its metrics
Groups = Mapping[str, Sequence[ResultRecord]]  # run -> its records of one evaluation


@dataclass(frozen=True)
class Gain:
    """A run, or a floor, in one metric of an evaluation.

    against: what `reference` is, `start` or `baseline`; empty for a floor. reference: None where there is no such run.
    value: mean over the run's seeds. paired: differences over the seeds that the reference has, too. units: the same difference over test
    units, None where these are not known. p_holm: its p among all runs that are compared with this kind of reference.
    """

    run: str
    kind: str  # run, floor
    evaluation: str
    dataset: str
    metric: str
    better: Better
    value: float
    against: str = ""
    reference: str | None = None
    paired: Paired | None = None
    units: UnitDifference | None = None
    p_holm: float | None = None

    @property
    def beyond(self) -> str:
        """`gain` or `loss` where the difference is larger than its interval, else `no`; empty where one seed, or none, tells nothing."""
        if self.paired is None or self.better is None or math.isnan(self.paired.half):
            return ""
        if self.paired.is_better(self.better):
            return "gain"
        return "loss" if self.paired.is_better("lower" if self.better == "higher" else "higher") else "no"

    @property
    def by_seed(self) -> str:
        """The difference of each seed as text."""
        pairs = zip(self.paired.seeds, self.paired.differences, strict=True) if self.paired else ()
        return "; ".join(f"seed {seed}: {fixed(difference, sign=True) or 'no value'}" for seed, difference in pairs)


def write_gain(
    paths: Sequence[Path],
    out: Path,
    metrics: Metrics,
    baseline: str | None = None,
    named: Named | None = None,
    cache: Path | None = None,
) -> None:
    """Write gain.csv. metrics: of each table, by name. named: see `read_results`. cache: file of differences that are known."""
    read = [read_result(path) for path in paths]
    places = {(record.run, record.seed, record.evaluation): path for path, record in zip(paths, read, strict=True)}
    records, differences = in_study_order([named(record) if named else record for record in read]), Differences(places, cache)
    runs = dict.fromkeys(record.run for record in records)
    if baseline is not None and records and baseline not in runs:
        raise UserError(f"baseline: no result of a run '{baseline}'", allowed=", ".join(runs))
    write_csv(gain_table(records, metrics, baseline, differences), out)
    differences.save()


def gain_table(
    records: Sequence[ResultRecord], metrics: Metrics, baseline: str | None, differences: Differences | None = None
) -> pd.DataFrame:
    """One line per run, evaluation, metric and reference; floors once, and once a start that is the baseline, with both names."""
    rows: list[dict[str, str]] = []
    for row in (_row(gain) for gain in gains(records, metrics, baseline, differences)):
        if rows and {**rows[-1], "against": ""} == {**row, "against": ""}:
            row |= {"against": f"{rows.pop()['against']}; {row['against']}"}
        rows.append(row)
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=str).fillna("")


def _row(gain: Gain) -> dict[str, str]:
    found = gain.paired
    return {
        **{name: getattr(gain, name) for name in ("run", "kind", "evaluation", "dataset", "metric", "against")},
        "better": gain.better or "",
        "value": fixed(gain.value),
        "reference": gain.reference or "",
        "reference_value": fixed(found.reference) if found else "",
        "difference": fixed(found.mean, sign=True) if found else "",
        "ci95": fixed(found.half) if found else "",
        "beyond_interval": gain.beyond,
        "seeds": str(len(found.seeds)) if found else "",
        "by_seed": gain.by_seed,
        **unit_cells(gain.units, gain.p_holm),
    }


def gains(records: Sequence[ResultRecord], metrics: Metrics, baseline: str | None, differences: Differences | None = None) -> list[Gain]:
    """The gains of all runs in every metric that is no floor; the floors of an evaluation come before its runs.

    Args:
        differences: over test units; without it there are none.
    """
    evaluations: dict[str, dict[str, list[ResultRecord]]] = {}
    for (run, evaluation), group in grouped(records).items():
        evaluations.setdefault(evaluation, {})[run] = group
    found: list[Gain] = []
    for groups in evaluations.values():
        names = metrics_in(record for group in groups.values() for record in group)
        task = next(iter(groups.values()))[0].task
        for metric in (name for name in names if floor_of(name) is None):
            described = metrics.get(task, {}).get(metric)
            better: Better = described.better if described else "higher"
            found += _with_units(list(_of_metric(groups, metric, better, baseline)), groups, differences)
    return found


def _with_units(found: list[Gain], groups: Groups, differences: Differences | None) -> list[Gain]:
    """The gains in one metric with their intervals over test units, and p among all that are compared with one kind of reference."""
    if differences is None:
        return found
    found = [replace(gain, units=_over_units(gain, groups, differences)) for gain in found]
    for against in ("start", "baseline"):
        own = [i for i, gain in enumerate(found) if gain.against == against and gain.units is not None]
        adjusted = holm(np.array([unit.p for i in own if (unit := found[i].units) is not None]))
        for i, p in zip(own, adjusted.tolist(), strict=True):
            found[i] = replace(found[i], p_holm=p)
    return found


def _over_units(gain: Gain, groups: Groups, differences: Differences) -> UnitDifference | None:
    if gain.reference is None or gain.paired is None or math.isnan(gain.paired.mean):
        return None
    return differences.of([(b, a) for a, b in partners(groups[gain.run], groups[gain.reference])], gain.metric)


def _of_metric(groups: Groups, metric: str, better: Better, baseline: str | None) -> Iterator[Gain]:
    """The floors and the runs in one metric of an evaluation."""
    for run, value in floors(groups, metric):
        first = next(iter(groups.values()))[0]
        yield Gain(run, "floor", first.evaluation, dataset_name(first), metric, better, value)
    for run, group in groups.items():
        if is_random_start(group[0]):
            continue
        first, (value, _) = group[0], mean_and_interval([r.metrics.get(metric) for r in group])
        start = start_of(first, groups)
        references = {"start": start} if first.method != "none" else {}
        if baseline is not None and run != baseline:
            references["baseline"] = baseline if baseline in groups else None
        for against, reference in references.items():
            pairs = paired(group, groups[reference], metric) if reference else None
            yield Gain(run, "run", first.evaluation, dataset_name(first), metric, better, value, against, reference, pairs)


def floors(groups: Groups, metric: str) -> Iterator[tuple[str, float]]:
    """What stands below every backbone: random weights, and what is scored in place of a prediction; name and value."""
    for run, group in groups.items():
        if is_random_start(group[0]):
            yield run, mean_and_interval([r.metrics.get(metric) for r in group])[0]
    yield from floors_of_data(groups, metric)


def start_of(record: ResultRecord, groups: Groups) -> str | None:
    """The run that holds what a run started from: see the module. None where the study has no such run, or not in this evaluation."""
    if record.init_kind == "run":
        return record.init if record.init in groups else None

    def is_start(other: ResultRecord) -> bool:
        same = other.init == record.init if record.init_kind == "checkpoint" else other.arch == record.arch
        return other.method == "none" and other.init_kind == record.init_kind and same

    return next((run for run, group in groups.items() if run != record.run and is_start(group[0])), None)
