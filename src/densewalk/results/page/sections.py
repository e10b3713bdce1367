"""What the page shows beside its tables: charts, learning curves and pictures.

Pictures are of each run's first seed. Of an evaluation with many pictures the first few are shown; the others lie in its folder.
"""

import base64
import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup
from PIL import Image

from densewalk.core.files import read_json
from densewalk.results.page.charts import Point, class_values, cost_and_quality, learning_curves, method_legend
from densewalk.results.plan import Plan
from densewalk.results.records import ResultRecord
from densewalk.results.tables import grouped, hours_with_init, mean_and_interval, training_hours
from densewalk.training.metrics_file import read_points

WIDTH = 1600  # pixels of the widest picture on the page
SMALL = 30_000  # bytes up to which a file is shown as it is
OF_EVALUATION = 3  # pictures of each evaluation and run
CLASSES, RUNS = 40, 6  # most that a chart of classes shows


def gather(plan: Plan, results: Path, records: Sequence[ResultRecord]) -> dict[str, Any]:
    """All charts and pictures by the names that the page's template has for them."""
    folders = {run: results / run / f"s{planned.seeds[0]}" for run, planned in plan.runs.items()}
    return {
        "costs": costs(plan, records),
        "curves": curves(plan, results),
        "features": features(folders),
        "learnt": learnt(plan, folders),
        "predictions": predictions(plan, folders),
    }


# -- charts ----------------------------------------------------------------------------------------------------------


def costs(plan: Plan, records: Sequence[ResultRecord]) -> dict[str, Any] | None:
    """For each evaluation its first metric by what the backbones cost, their initial runs included; None without two runs to compare."""
    groups, hours = grouped(records), training_hours(records)
    methods = list(dict.fromkeys([*(run.method for run in plan.runs.values()), *(r.method for r in records)]))
    trained = [r.training for r in records if r.training]
    on_gpu = [bool(t.gpu_hours) for t in trained]
    device = "process" if len(set(on_gpu)) > 1 else "GPU" if any(on_gpu) else "CPU process"
    charts = []
    for evaluation in plan.evaluations:
        own = {run: groups[run, evaluation] for run in plan.runs if (run, evaluation) in groups}
        points = [p for run, group in own.items() if (p := _point(run, group, hours, plan)) is not None]
        if len(points) > 1:
            metric = next(iter(own[points[0].run][0].metrics))
            svg = cost_and_quality(evaluation, metric, points, device, methods)
            charts.append({"title": f"{evaluation}: {metric}", "svg": svg, "name": evaluation})
    return {"charts": charts, "legend": method_legend(methods)} if charts else None


def _point(run: str, group: Sequence[ResultRecord], hours: Any, plan: Plan) -> Point | None:
    """A run's place in the chart; None without a value, or where it is not known what it was built on."""
    metric = next(iter(group[0].metrics))
    mean, half = mean_and_interval([r.metrics.get(metric) for r in group])
    spent, _ = mean_and_interval([hours_with_init(run, r.seed, hours) for r in group])
    if mean != mean or spent != spent:
        return None
    init = plan.runs[run].init
    return Point(run, group[0].method, spent, mean, 0.0 if half != half else half, init if init in plan.runs else None)


def by_class(records: Sequence[ResultRecord], all_runs: Sequence[str]) -> list[dict[str, Any]]:
    """IoU of each class, a chart for each evaluation whose records have it; mean over seeds. all_runs: of the page, in their order."""
    evaluations: dict[str, dict[str, list[dict[str, float | None]]]] = defaultdict(lambda: defaultdict(list))
    for r in records:
        if "IoU" in r.details:
            evaluations[r.evaluation][r.run].append(r.details["IoU"])
    return [_class_chart(name, runs, all_runs) for name, runs in evaluations.items()]


def _class_chart(evaluation: str, runs: Mapping[str, Sequence[Mapping[str, float | None]]], all_runs: Sequence[str]) -> dict[str, Any]:
    means = {run: {c: _mean([s.get(c) for s in seeds]) for c in seeds[0]} for run, seeds in list(runs.items())[:RUNS]}
    best = {c: max((m[c] or 0.0) for m in means.values() if c in m) for c in dict.fromkeys(c for m in means.values() for c in m)}
    classes = sorted(best, key=lambda c: -best[c])[:CLASSES]
    note = f"The {CLASSES} of {len(best)} classes with the largest values. " if len(best) > CLASSES else ""
    note += f"The first {RUNS} of {len(runs)} runs. " if len(runs) > RUNS else ""
    svg = class_values(f"IoU, {evaluation}", classes, {run: [m.get(c) for c in classes] for run, m in means.items()}, all_runs)
    return {
        "title": f"IoU by class, {evaluation}",
        "svg": svg,
        "note": f"{note}Mean over seeds, in percent; a class that does not occur has none.",
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def curves(plan: Plan, results: Path) -> list[dict[str, Any]]:
    """The learning curves of each run, as far as they have come."""
    found = []
    for run, planned in plan.runs.items():
        paths = {f"s{seed}": path for seed in planned.seeds if (path := curve_file(results, run, seed))}
        if svg := learning_curves(run, {seed: read_curve(path) for seed, path in paths.items()}):
            note = f"By optimiser step, {len(paths)} of {len(planned.seeds)} seeds." if len(planned.seeds) > 1 else "By optimiser step."
            found.append({"run": run, "svg": svg, "note": note})
    return found


def curve_file(results: Path, run: str, seed: int) -> Path | None:
    """The curve of a finished training, or the latest of one that goes on or was broken off."""
    states = [
        p for p in results.glob(f"state/{run}-s{seed}-*/metrics.jsonl") if re.fullmatch(rf"{run}-s{seed}-[0-9a-f]{{12}}", p.parent.name)
    ]
    done = results / run / f"s{seed}" / "metrics.jsonl"
    return done if done.is_file() else max(states, key=lambda p: p.stat().st_mtime, default=None)


def read_curve(path: Path) -> dict[str, list[float]]:
    """metrics.jsonl as columns, NaN where a line lacks a quantity; a line that was cut off while it was written is left out."""
    points = read_points(path)
    return {name: [point.get(name, float("nan")) for point in points] for name in dict.fromkeys(n for p in points for n in p)}


# -- pictures --------------------------------------------------------------------------------------------------------


def features(folders: Mapping[str, Path]) -> dict[str, Any] | None:
    """What gallery.py drew, a line for each run; None where it drew nothing."""
    found = {run: read_json(folder / "features.json") for run, folder in folders.items() if (folder / "features.json").is_file()}
    shown = {run: facts for run, facts in found.items() if facts["images"]}
    if not shown:
        return None
    # every run has seen the same pictures, unless one of them was drawn before the study was changed
    pictures: dict[tuple[str, int], tuple[str, int]] = {}
    for run, facts in shown.items():
        for n, image in enumerate(facts["images"]):
            pictures.setdefault((image["source"], image["number"]), (run, n))
    images = [
        embedded(f"{source}, picture {number}", folders[run] / "features" / f"image_{n}.png")
        for (source, number), (run, n) in pictures.items()
    ]
    attention = {run: _attention(run, folders[run], facts) for run, facts in shown.items()}
    nearest = [run for run, facts in shown.items() if facts["nearest"]]
    return {
        "images": images,
        "components": {run: _components(run, folders[run], list(pictures), facts) for run, facts in shown.items()},
        "attention": attention,
        "nearest": {
            run: embedded(
                f"nearest patches of three patches, before and after the training of {run}", folders[run] / "features" / "nearest.png"
            )
            for run in nearest
        },
    }


def _attention(run: str, folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    first = facts["images"][0]
    title = f"what the CLS token of {run} attends to in {first['source']}, picture {first['number']}, by {facts['heads']} heads"
    return embedded(title, folder / "features" / "attention_0.png")


def _components(run: str, folder: Path, pictures: Sequence[tuple[str, int]], facts: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """A run's picture of components for each of the page's pictures; None of one that it has not seen."""
    found = {(image["source"], image["number"]): (i, image) for i, image in enumerate(facts["images"])}
    cells: list[dict[str, Any] | None] = []
    for source, number in pictures:
        if (source, number) not in found:
            cells.append(None)
            continue
        i, image = found[source, number]
        picture = embedded(f"principal components of {run} for {source}, picture {number}", folder / "features" / f"pca_{i}.png")
        cells.append({**picture, "note": f"{100 * sum(image['variance']):.0f} % of the variance"})
    return cells


def learnt(plan: Plan, folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The methods' own pictures of finished trainings."""
    pictures = [(run, path) for run, folder in folders.items() for path in sorted((folder / "training").glob("*.png"))]
    found = []
    for run, path in pictures:
        title, note = f"{run}, training: {path.stem}", plan.runs[run].captions.get(path.stem, "")
        found.append({**embedded(f"{title}. {note}".strip(), path), "name": title, "note": note})
    return found


def predictions(plan: Plan, folders: Mapping[str, Path]) -> list[dict[str, Any]]:
    """The evaluations' pictures, those of all runs side by side; only where there is a result: else they are of a broken attempt."""
    found = []
    for evaluation, planned in plan.evaluations.items():
        names: dict[str, dict[str, Path]] = defaultdict(dict)
        for run in planned.runs:
            folder = folders[run]
            for path in sorted((folder / evaluation).glob("*.png")) if (folder / f"{evaluation}.json").is_file() else []:
                names[path.stem][run] = path
        shows = planned.pictures
        shown = sorted(names)[:OF_EVALUATION]
        groups = [
            {
                "name": "pictures" if name == "strip" else name,
                "pictures": [{"run": run, **embedded(shows.format(name=name, run=run), path)} for run, path in names[name].items()],
            }
            for name in shown
        ]
        if groups:
            what = shows.format(name="a sequence", run="a run")
            found.append({"evaluation": evaluation, "what": what, "groups": groups, "more": len(names) - len(shown)})
    return found


def embedded(title: str, path: Path) -> dict[str, Any]:
    """A picture as a data address, reduced to what a page can show."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    if path.stat().st_size <= SMALL and picture.width <= WIDTH and path.suffix == ".png":
        kind, content = "png", path.read_bytes()
    else:
        picture.thumbnail((WIDTH, WIDTH * 4))
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=85, method=4)
        kind, content = "webp", buffer.getvalue()
    data = Markup(f"data:image/{kind};base64,{base64.b64encode(content).decode()}")
    return {"title": title, "data": data, "width": picture.width, "height": picture.height}
