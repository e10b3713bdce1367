"""The page's sections other than its tables: charts, learning curves and images.

Images are of each run's first seed. Of an evaluation with many images the first few are shown; the others lie in its folder.
"""

import base64
import io
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from markupsafe import Markup

from densewalk.data.image_files import read_image
from densewalk.results.page.charts import NAMED, Point, class_values, cost_and_quality, learning_curves
from densewalk.results.page.view import Chart, Features, Image, Predictions
from densewalk.results.plan import Plan
from densewalk.results.records import ResultRecord
from densewalk.results.significance import mean_and_interval
from densewalk.results.tables import Hours, grouped, hours_with_init, training_hours
from densewalk.training.progress_files import read_points
from densewalk.visualization.record import DrawnImage, FeaturesRecord, read_features

WIDTH = 1600  # pixels of the widest image on the page
SMALL = 30_000  # bytes up to which a file is shown as it is
OF_EVALUATION = 3  # images of each evaluation and run
Curve = Mapping[str, Sequence[float]]  # quantity -> values, one of which is `step`
CLASSES, RUNS = 40, 6  # most that a chart of classes shows


def costs(plan: Plan, records: Sequence[ResultRecord]) -> list[Chart]:
    """For each evaluation its first metric by what the backbones cost, their initial runs included; none without two runs to compare."""
    groups, hours = grouped(records), training_hours(records)
    methods = all_methods(plan, records)
    devices = {"GPU" if r.training.gpu_hours else "CPU process" for r in records if r.training} or {"CPU process"}
    device = devices.pop() if len(devices) == 1 else "process"
    charts = []
    for evaluation in plan.evaluations:
        own = {run: groups[run, evaluation] for run in plan.runs if (run, evaluation) in groups}
        points = [p for run, group in own.items() if (p := _point(run, group, hours, plan)) is not None]
        if len(points) > 1:
            metric = next(iter(own[points[0].run][0].metrics))
            note = f"The first {NAMED} of {len(points)} runs are named." if len(points) > NAMED else ""
            charts.append(Chart(f"{evaluation}: {metric}", cost_and_quality(evaluation, metric, points, device, methods), note))
    return charts


def all_methods(plan: Plan, records: Sequence[ResultRecord]) -> list[str]:
    """The methods of the page, each with a color and marker of its own."""
    return list(dict.fromkeys([*(run.method for run in plan.runs.values()), *(r.method for r in records)]))


def _point(run: str, group: Sequence[ResultRecord], hours: Hours, plan: Plan) -> Point | None:
    """A run's place in the chart; None without a value, or where it is not known what it was built on."""
    metric = next(iter(group[0].metrics))
    mean, half = mean_and_interval([r.metrics.get(metric) for r in group])
    spent, _ = mean_and_interval([hours_with_init(run, r.seed, hours) for r in group])
    if mean != mean or spent != spent:
        return None
    init = plan.runs[run].init
    return Point(run, group[0].method, spent, mean, 0.0 if half != half else half, init if init in plan.runs else None)


def class_charts(records: Sequence[ResultRecord], all_runs: Sequence[str]) -> list[Chart]:
    """IoU of each class, a chart for each evaluation whose records have it; mean over seeds. all_runs: of the page, in their order."""
    evaluations: dict[str, dict[str, list[Mapping[str, float | None]]]] = defaultdict(lambda: defaultdict(list))
    for r in records:
        if r.class_iou is not None:
            evaluations[r.evaluation][r.run].append(r.class_iou)
    return [_class_chart(name, runs, all_runs) for name, runs in evaluations.items()]


def _class_chart(evaluation: str, runs: Mapping[str, Sequence[Mapping[str, float | None]]], all_runs: Sequence[str]) -> Chart:
    means = {run: {c: _mean(s.get(c) for s in seeds) for c in seeds[0]} for run, seeds in list(runs.items())[:RUNS]}
    names = dict.fromkeys(c for m in means.values() for c in m)
    best = {c: max(m.get(c) or 0.0 for m in means.values()) for c in names}
    classes = sorted(best, key=lambda c: -best[c])[:CLASSES]
    note = f"The {CLASSES} of {len(best)} classes with the largest values. " if len(best) > CLASSES else ""
    note += f"The first {RUNS} of {len(runs)} runs. " if len(runs) > RUNS else ""
    svg = class_values(f"IoU, {evaluation}", classes, {run: [m.get(c) for c in classes] for run, m in means.items()}, all_runs)
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


def features(folders: Mapping[str, Path]) -> Features | None:
    """Images of the backbones' features, a line for each run; None without any."""
    records = {run: read_features(path) for run, folder in folders.items() if (path := folder / "features.json").is_file()}
    records = {run: record for run, record in records.items() if record.images}
    if not records:
        return None
    # every run has seen the same images, unless one of them was drawn before the study was changed
    images: dict[tuple[str, int], Image] = {}
    for run, record in records.items():
        for i, drawn in enumerate(record.images):
            if (drawn.source, drawn.number) not in images:
                images[drawn.source, drawn.number] = embed(_title(drawn), folders[run] / "features" / f"image_{i}.png")
    found = Features(images=list(images.values()), components={}, attention=[], nearest=[])
    for run, record in records.items():
        folder = folders[run] / "features"
        found.components[run] = _components(run, folder, list(images), record)
        title = f"attention of the CLS token of {run} in {_title(record.images[0])}, by {record.heads} heads"
        found.attention.append(embed(title, folder / "attention_0.png", label=run))
        if record.nearest:
            title = f"nearest patches of three patches, before and after the training of {run}"
            found.nearest.append(embed(title, folder / "nearest.png", label=run))
    return found


def _title(drawn: DrawnImage) -> str:
    return f"{drawn.source}, image {drawn.number}"


def _components(run: str, folder: Path, images: Sequence[tuple[str, int]], record: FeaturesRecord) -> list[Image | None]:
    """A run's components of each of the page's images; None of one that it has not seen."""
    cells: dict[tuple[str, int], Image] = {}
    for i, drawn in enumerate(record.images):
        image = embed(f"principal components of {run} for {_title(drawn)}", folder / f"pca_{i}.png")
        cells[drawn.source, drawn.number] = replace(image, note=f"{100 * sum(drawn.variance):.0f} % of the variance")
    return [cells.get(key) for key in images]


def training_images(plan: Plan, folders: Mapping[str, Path]) -> list[Image]:
    """The methods' own images of finished trainings."""
    images = []
    for run, folder in folders.items():
        for path in sorted((folder / "training").glob("*.png")):
            label, note = f"{run}, training: {path.stem}", plan.runs[run].captions.get(path.stem, "")
            images.append(embed(f"{label}. {note}".strip(), path, label=label, note=note))
    return images


def predictions(plan: Plan, folders: Mapping[str, Path]) -> list[Predictions]:
    """The evaluations' images, those of all runs side by side; only where there is a result: else they are of a broken attempt."""
    found = []
    for evaluation, planned in plan.evaluations.items():
        paths: dict[str, dict[str, Path]] = defaultdict(dict)  # name -> run -> file
        for run in planned.runs:
            if (folders[run] / f"{evaluation}.json").is_file():
                for path in (folders[run] / evaluation).glob("*.png"):
                    paths[path.stem][run] = path
        groups = {}
        for name in sorted(paths)[:OF_EVALUATION]:
            images = [embed(planned.caption(run=run, name=name), path, label=run) for run, path in paths[name].items()]
            groups["images" if name == "strip" else name] = images
        if groups:
            shows = planned.caption(run="a run", name="a sequence")
            found.append(Predictions(evaluation, shows, groups, more=len(paths) - len(groups)))
    return found


def embed(title: str, path: Path, *, label: str = "", note: str = "") -> Image:
    """An image file as a data address, reduced to what a page can show."""
    image = read_image(path, todo=f"delete it, or {path.parent}.json, so that it is made again")
    if path.stat().st_size <= SMALL and image.width <= WIDTH and path.suffix == ".png":
        kind, content = "png", path.read_bytes()
    else:
        image.thumbnail((WIDTH, WIDTH * 4))
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=85, method=4)
        kind, content = "webp", buffer.getvalue()
    data = Markup(f"data:image/{kind};base64,{base64.b64encode(content).decode()}")
    return Image(title, data, image.width, image.height, label, note)
