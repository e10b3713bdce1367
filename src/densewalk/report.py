"""Tables, learning curves and pictures on one page.

    densewalk report --title "City walk" --results results --out results/report.html

The page is one file that needs no network: style, script, curves and pictures are inside. It reads the tables' CSV files and
computes nothing, so that page and tables cannot disagree. What is missing is said at its top.
"""

import base64
import io
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import pandas as pd
from cycler import cycler
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from densewalk import __version__
from densewalk.checkpoint import atomic_write
from densewalk.tables import SUFFIXES, metrics_of, read_table

HEADINGS = {
    "ade20k": "Semantic segmentation (ADE20K)",
    "segmentation": "Semantic segmentation (other data)",
    "coco": "Detection and instance segmentation (COCO)",
    "davis": "Video object segmentation (DAVIS)",
    "incontext": "In-context segmentation",
    "linear_segmentation": "Linear segmentation (frozen features)",
    "overcluster": "Clusters of frozen features",
    "video_segmentation": "Unsupervised video segmentation",
    "classification": "Image classification",
    "discovery": "Object discovery (CorLoc)",
    "tracking": "Box tracking",
    "all": "Every number",
    "cost": "Cost",
}
# what is shown beside a run and its numbers, which come first so that a phone shows them; the rest is below the table
SHOWN = ("dataset", "seeds", "method", "init", "arch", "compat")
HOW = ("evaluation", "protocol", "protocol_version", "pretraining_data", "training_steps", "samples_seen", "config_hash", "commit")
PICTURE_WIDTH = 1600


def report_folder(results: Path, title: str, out: Path, expected: Sequence[Path] = ()) -> None:
    """The page of a results folder: every table, every run's curves, the pictures of its first seed.

    Args:
        expected: the study's result records; those that do not exist are listed as missing. Without them, only runs that have
            begun and have no result are.
    """
    tables = {path.stem: path for path in sorted((results / "tables").glob("*.csv"))}
    runs = sorted(path for path in results.glob("*/s*") if re.fullmatch(r"s\d+", path.name))
    curves = {f"{run.parent.name}/{run.name}": run / "metrics.jsonl" for run in runs if (run / "metrics.jsonl").is_file()}
    first = {run.parent.name: run for run in reversed(runs)}
    pictures = {
        f"{run}, {path.parent.name}: {path.stem}": path for run, folder in sorted(first.items()) for path in sorted(folder.glob("*/*.png"))
    }
    write_report(out, title, tables, curves, pictures, missing_results(results, runs, expected))


def missing_results(results: Path, runs: Sequence[Path], expected: Sequence[Path]) -> list[str]:
    """What should be there and is not, in words."""
    absent = [f"{path.parent.parent.name}, seed {path.parent.name[1:]}: {path.stem}" for path in expected if not path.is_file()]
    states = [re.fullmatch(r"(.+)-s(\d+)-[0-9a-f]{12}", path.name) for path in sorted((results / "state").glob("*"))]
    begun = {(m[1], m[2]) for m in states if m} | {(run.parent.name, run.name[1:]) for run in runs}
    wanted = {(path.parent.parent.name, path.parent.name[1:]) for path in expected}
    unfinished = [(r, s) for r, s in sorted(begun) if not (results / r / f"s{s}" / "backbone.safetensors").is_file()]
    return [*absent, *(f"{r}, seed {s}: training has not ended" for r, s in unfinished if not expected or (r, s) in wanted)]


def write_report(
    path: Path,
    title: str,
    tables: Mapping[str, Path],
    curves: Mapping[str, Path],
    pictures: Mapping[str, Path],
    missing: Sequence[str] = (),
) -> None:
    """Write the page.

    Args:
        tables: name -> CSV file; wide tables are shown with mean, interval and published value, others folded at the end.
        curves: `run/seed` -> metrics.jsonl. pictures: title, which is also the alternative text -> image file.
        missing: results that should be there.
    """
    loaded = {name: read_table(file) for name, file in tables.items()}
    seeds = _seeds(loaded)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(files("densewalk").joinpath("report.html").read_text(encoding="utf-8")).render(
        title=title,
        sections=[section(name, table, seeds) for name, table in loaded.items() if _is_wide(table)],
        others=[plain_table(name, table) for name, table in loaded.items() if not _is_wide(table)],
        curves=[curve for run, files_ in _by_run(curves).items() if (curve := learning_curve(run, files_))],
        pictures=[embedded(name, file) for name, file in pictures.items()],
        missing=list(missing),
        version=__version__,
    )
    with atomic_write(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


# -- tables ----------------------------------------------------------------------------------------------------------


def _is_wide(table: pd.DataFrame) -> bool:
    return "seeds" in table.columns


def _seeds(tables: Mapping[str, pd.DataFrame]) -> dict[tuple[str, str], list[str]]:
    """The seeds of each run and evaluation, as far as the tidy table is there."""
    seeds: dict[tuple[str, str], list[str]] = defaultdict(list)
    if "all" in tables:
        known = tables["all"][["run", "evaluation", "seed"]].drop_duplicates()
        for run, evaluation, seed in known.itertuples(index=False):
            seeds[run, evaluation].append(seed)
    return seeds


def section(name: str, table: pd.DataFrame, seeds: Mapping[tuple[str, str], Sequence[str]]) -> dict[str, Any]:
    """A wide table for the page."""
    leading = ["run", "evaluation"] if table["evaluation"].nunique() > 1 else ["run"]
    columns = [c for c in SHOWN if c != "compat" or table[c].nunique() > 1]
    metrics = metrics_of(table)
    rows = [
        {
            "id": f"how-{name}-{row['run']}-{row['evaluation']}",
            "leading": [row[c] for c in leading],
            "numbers": [_number(row, m) for m in metrics],
            "cells": [row[c] for c in columns],
            "how": _how(row, metrics, seeds),
        }
        for row in table.to_dict("records")
    ]
    headings = [*leading, *metrics, *columns]
    return {"name": name, "heading": HEADINGS.get(name, name), "columns": headings, "rows": rows}


def _number(row: Mapping[Any, str], metric: str) -> dict[str, str]:
    half, published, source, delta = (row[metric + suffix] for suffix in SUFFIXES)
    return {"mean": row[metric], "half": half, "published": published, "source": source, "delta": delta}


def _how(row: Mapping[Any, str], metrics: Sequence[str], seeds: Mapping[tuple[str, str], Sequence[str]]) -> list[tuple[str, str]]:
    """Protocol, provenance, sources of the published values and the command that makes the numbers again."""
    facts = [(name.replace("_", " "), row[name]) for name in HOW if row[name]]
    facts.append(("scored", f"{row['n']} {row['unit']}"))
    facts += [(f"published {m}", row[f"{m} published_source"]) for m in metrics if row[f"{m} published_source"]]
    run, evaluation = row["run"], row["evaluation"]
    again = " ".join(f"results/{run}/s{seed}/{evaluation}.json" for seed in seeds.get((run, evaluation), []))
    return [*facts, ("again", f"snakemake --cores all --force {again}")] if again else facts


def plain_table(name: str, table: pd.DataFrame) -> dict[str, Any]:
    """Any other table for the page, as it is."""
    return {"name": name, "columns": list(table.columns), "rows": table.to_numpy().tolist()}


# -- learning curves -------------------------------------------------------------------------------------------------

INK = "#010203"  # stands for the text's colour, which is only known when the page is shown
COLOURS = ("#3b7dd8", "#d9772b", "#2f9a62", "#c0485e", "#8a63c9")
STYLE: Any = {
    "svg.hashsalt": "densewalk",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "axes.prop_cycle": cycler(color=COLOURS),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def _by_run(curves: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    runs: dict[str, dict[str, Path]] = defaultdict(dict)
    for name, path in curves.items():
        run, _, seed = name.rpartition("/")
        runs[run or name][seed] = path
    return runs


def learning_curve(run: str, curves: Mapping[str, Path]) -> dict[str, Any] | None:
    """The logged quantities of one run over its steps, one line per seed; None if nothing was logged."""
    seeds = {seed: read_curve(path) for seed, path in curves.items()}
    names = list(dict.fromkeys(n for points in seeds.values() for n in points if n not in ("step", "time")))
    if not names:
        return None
    columns = len(names) if len(names) <= 4 else 3
    rows = -(-len(names) // columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3 * columns, 2.4 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).ravel()
        for axis, name in zip(axes, names, strict=False):
            for seed, points in seeds.items():
                if name in points:
                    axis.plot(points["step"], points[name], linewidth=1.2, label=seed)
            axis.set_title(name, fontsize=9, loc="left")
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8)
        for axis in axes[len(names) :]:
            axis.set_visible(False)
        if len(seeds) > 1:
            axes[0].legend(fontsize=8, frameon=False)
        text = f"{', '.join(names)} of {run} by optimiser step, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}."
        return {"title": run, "svg": Markup(svg_of(figure, prefix=run, label=text)), "text": text}


def read_curve(path: Path) -> dict[str, list[float]]:
    """metrics.jsonl as columns, NaN where a line lacks a quantity; a line that was cut off while it was written is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: [line.get(name, float("nan")) for line in lines] for name in names}


def svg_of(figure: Figure, *, prefix: str, label: str) -> str:
    """A figure as inline SVG: text in the page's colour, ids of its own, a name for screen readers."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r' (?:xmlns(?::xlink)?|version)="[^"]*"', "", text, count=3).replace("xlink:href", "href")
    own = re.sub(r"\W", "_", prefix)
    for before, after in ((r'\bid="', f'id="{own}-'), (r'href="#', f'href="#{own}-'), (r"url\(#", f"url(#{own}-")):
        text = re.sub(before, after, text)
    name = Markup.escape(label)
    return text.replace("<svg ", f'<svg role="img" aria-label="{name}" ', 1)


# -- pictures --------------------------------------------------------------------------------------------------------


def embedded(title: str, path: Path) -> dict[str, Any]:
    """A picture as a data address, reduced to what a page can show."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    picture.thumbnail((PICTURE_WIDTH, PICTURE_WIDTH * 4))
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=85, method=4)
    data = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"title": title, "data": data, "width": picture.width, "height": picture.height}
