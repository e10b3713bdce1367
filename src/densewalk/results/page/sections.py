"""The page's charts: cost and quality, values of classes, learning curves."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from densewalk.results.page.charts import COUNTED, NAMED, PROCESSES, Point, class_values, cost_and_quality, learning_curves
from densewalk.results.page.view import Chart
from densewalk.results.plan import Plan
from densewalk.results.records import ResultRecord
from densewalk.results.significance import mean_and_interval
from densewalk.results.tables import Spent, compute, grouped, with_init
from densewalk.training.progress_files import read_points

Curve = Mapping[str, Sequence[float]]  # quantity -> values, one of which is `step`
CLASSES, RUNS = 40, 6  # most that a chart of classes shows


def costs(plan: Plan, records: Sequence[ResultRecord]) -> list[Chart]:
    """For each evaluation its first metric by what the backbones cost, their initial runs included; none without two runs to compare.

    By time, and by counted operations where they are known.
    """
    groups, spent = grouped(records), compute(records)
    methods = all_methods(plan, records)
    devices = {"GPU" if r.training.gpu_hours else "CPU" for r in records if r.training} or {"CPU"}
    device, hours = devices.pop() if len(devices) == 1 else PROCESSES, spent.hours
    if device == "CPU":
        known = all(r.training.cpu_seconds is not None for r in records if r.training)
        device, hours = ("CPU", spent.cpu_hours) if known else (PROCESSES, spent.hours)
    charts = []
    for evaluation in plan.evaluations:
        own = {run: groups[run, evaluation] for run in plan.runs if (run, evaluation) in groups}
        for unit, of_runs in ((device, hours), (COUNTED, spent.teraflop)):
            points = [p for run, group in own.items() if (p := _point(run, group, of_runs, plan)) is not None]
            if len(points) < 2 or (unit == COUNTED and not any(p.spent for p in points)):
                continue
            metric = next(iter(own[points[0].run][0].metrics))
            note = f"The first {NAMED} of {len(points)} runs are named." if len(points) > NAMED else ""
            title = f"{evaluation}: {metric}{' by counted work' if unit == COUNTED else ''}"
            charts.append(Chart(title, cost_and_quality(evaluation, metric, points, unit, methods), note, counted=unit == COUNTED))
    return charts


def all_methods(plan: Plan, records: Sequence[ResultRecord]) -> list[str]:
    """The methods of the page, each with a color and marker of its own."""
    return list(dict.fromkeys([*(run.method for run in plan.runs.values()), *(r.method for r in records)]))


def _point(run: str, group: Sequence[ResultRecord], of_runs: Spent, plan: Plan) -> Point | None:
    """A run's place in the chart; None without a value, or where it is not known what it was built on or what it spent."""
    metric = next(iter(group[0].metrics))
    mean, half = mean_and_interval([r.metrics.get(metric) for r in group])
    spent, _ = mean_and_interval([with_init(run, r.seed, of_runs) for r in group])
    if mean != mean or spent != spent:
        return None
    init = plan.runs[run].init
    return Point(run, group[0].method, spent, mean, 0.0 if half != half else half, init if init in plan.runs else None)


def class_names(records: Iterable[ResultRecord]) -> dict[str, dict[str, str]]:
    """Evaluation -> what its classes are called for readers, where files have them under another name."""
    names: dict[str, dict[str, str]] = defaultdict(dict)
    for r in records:
        names[r.evaluation] |= r.class_names
    return names


def class_charts(records: Sequence[ResultRecord], all_runs: Sequence[str]) -> list[Chart]:
    """IoU of each class, a chart for each evaluation whose records have it; mean over seeds. all_runs: of the page, in their order."""
    evaluations: dict[str, dict[str, list[Mapping[str, float | None]]]] = defaultdict(lambda: defaultdict(list))
    for r in records:
        if r.class_iou is not None:
            evaluations[r.evaluation][r.run].append(r.class_iou)
    shown = class_names(records)
    return [_class_chart(name, runs, all_runs, shown[name]) for name, runs in evaluations.items()]


def _class_chart(
    evaluation: str, runs: Mapping[str, Sequence[Mapping[str, float | None]]], all_runs: Sequence[str], shown: Mapping[str, str]
) -> Chart:
    means = {run: {c: _mean(s.get(c) for s in seeds) for c in seeds[0]} for run, seeds in list(runs.items())[:RUNS]}
    names = dict.fromkeys(c for m in means.values() for c in m)
    best = {c: max(m.get(c) or 0.0 for m in means.values()) for c in names}
    classes = sorted(best, key=lambda c: -best[c])[:CLASSES]
    note = f"The {CLASSES} of {len(best)} classes with the largest values. " if len(best) > CLASSES else ""
    note += f"The first {RUNS} of {len(runs)} runs. " if len(runs) > RUNS else ""
    values = {run: [m.get(c) for c in classes] for run, m in means.items()}
    svg = class_values(f"IoU, {evaluation}", [shown.get(c, c) for c in classes], values, all_runs)
    note += "Mean over seeds, in percent; a class that does not occur has none."
    return Chart(f"IoU by class, {evaluation}", svg, note)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def read_curves(plan: Plan, results: Path) -> dict[str, dict[int, Curve]]:
    """The learning curves of each run by seed, as far as they have come."""
    paths = {run: {seed: curve_file(results, run, seed) for seed in planned.seeds} for run, planned in plan.runs.items()}
    return {run: {seed: read_curve(path) for seed, path in of_seeds.items() if path} for run, of_seeds in paths.items()}


def curves(plan: Plan, found: Mapping[str, Mapping[int, Curve]]) -> list[Chart]:
    """The charts of the learning curves."""
    charts = []
    for run, of_seeds in found.items():
        planned = plan.runs[run]
        if svg := learning_curves(run, {f"s{seed}": curve for seed, curve in of_seeds.items()}, planned.ceilings):
            seeds = f", {len(of_seeds)} of {len(planned.seeds)} seeds" if len(planned.seeds) > 1 else ""
            limited = any(name in curve for curve in of_seeds.values() for name in planned.ceilings)
            note = f"By optimizer step{seeds}." + (" Dashed: the largest value that is possible." if limited else "")
            charts.append(Chart(run, svg, note))
    return charts


def rising_losses(found: Mapping[str, Mapping[int, Curve]]) -> list[str]:
    """The runs and seeds whose loss ends higher than it began, with both values."""
    ends = {f"{run}, seed {seed}": rise(curve.get("loss", [])) for run, of_seeds in found.items() for seed, curve in of_seeds.items()}
    return [f"{name} ({values[0]:.3g} to {values[1]:.3g})" for name, values in ends.items() if values]


def rise(losses: Sequence[float]) -> tuple[float, float] | None:
    """Means of the first and of the last fifth of a curve, if it rises by more than two standard errors of their difference."""
    known = np.array([loss for loss in losses if np.isfinite(loss)])
    part = len(known) // 5
    if part < 2:
        return None
    first, last = known[:part], known[-part:]
    error = math.sqrt((first.var(ddof=1) + last.var(ddof=1)) / part)
    return (float(first.mean()), float(last.mean())) if last.mean() - first.mean() > 2 * error else None


def curve_file(results: Path, run: str, seed: int) -> Path | None:
    """The curve of a finished training, or the latest of one that goes on or was broken off."""
    done = results / run / f"s{seed}" / "metrics.jsonl"
    states = results.glob(f"state/{run}-s{seed}-{12 * '[0-9a-f]'}/metrics.jsonl")
    return done if done.is_file() else max(states, key=lambda p: p.stat().st_mtime, default=None)


def read_curve(path: Path) -> dict[str, list[float]]:
    """Read metrics.jsonl as columns, NaN where a line lacks a quantity; a line that is cut off is left out."""
    points = read_points(path)
    return {name: [point.get(name, float("nan")) for point in points] for name in dict.fromkeys(n for p in points for n in p)}
