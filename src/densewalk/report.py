"""Everything a study found, on one page.

    densewalk report config.yaml                          # at any time, also while the study runs or after it failed
    densewalk report --plan JSON --results results --out results/report.html       # what the workflow does

The page is one file that needs no network: style, script, charts and pictures are inside. Its numbers come from the result
records through the functions that write the tables, so that page and tables cannot disagree. What is missing is said at its top,
in the diagram and in the cells of the tables. exhibits.py gathers what is looked at rather than read.
"""

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from densewalk import __version__, exhibits
from densewalk.checkpoint import atomic_write
from densewalk.diagram import study_diagram
from densewalk.gaps import Gap, Plan, gaps, wanted
from densewalk.provenance import commit
from densewalk.tables import SUFFIXES, Record, cost_table, grouped, metrics_in, of_task, read_records, tidy_row, tidy_table, training_hours
from densewalk.tables import wide_row as table_row

HEADINGS = {
    "ade20k": "Semantic segmentation (ADE20K)",
    "segmentation": "Semantic segmentation (other data)",
    "coco": "Detection and instance segmentation (COCO)",
    "davis": "Video object segmentation (DAVIS)",
    "incontext": "In-context segmentation",
    "linear_segmentation": "Linear segmentation (frozen features)",
    "overcluster": "Clusters of frozen features",
    "unsupervised_segmentation": "Unsupervised segmentation",
    "video_segmentation": "Unsupervised video segmentation",
    "classification": "Image classification",
    "discovery": "Object discovery (CorLoc)",
    "tracking": "Box tracking",
}
# what is shown beside a run and its numbers, which come first so that a phone shows them; the rest is below the table
SHOWN = ("dataset", "seeds", "method", "init", "arch", "compat")
HOW = (
    *("evaluation", "protocol", "protocol_version", "dataset", "pretraining_data", "compat", "training_steps", "samples_seen"),
    *("training_gpu_hours", "training_hours", "training_hours_with_init", "training_device"),
)


def report(plan: Plan, results: Path, out: Path) -> None:
    """Write the page of a study.

    Args:
        plan: `Study.plan`: what there should be.
        results: the study's folder of results.

    Raises:
        UserError: a result record is broken.
    """
    records = read_records([path for path in expected(plan, results) if path.is_file()])
    missing = list(gaps(plan, results))
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html").render(
        title=plan["study"],
        facts=headline(plan, records),
        missing=missing,
        diagram=study_diagram(plan, incomplete(plan, missing)),
        sections=[section(task, plan, records, missing) for task in dict.fromkeys(e["task"] for e in plan["evaluations"].values())],
        numbers=[plain_table(name, make(records)) for name, make in (("all", tidy_table), ("cost", cost_table))] if records else [],
        **exhibits.gather(plan, results, records),
        version=__version__,
        commit=commit()[0][:12],
    )
    with atomic_write(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _template(name: str) -> str:
    return files("densewalk").joinpath("templates", name).read_text(encoding="utf-8")


def expected(plan: Plan, results: Path) -> list[Path]:
    """The result records of the plan, in its order."""
    return [
        results / run / f"s{seed}" / f"{name}.json"
        for run, facts in plan["runs"].items()
        for seed in facts["seeds"]
        for name in wanted(plan, run)
    ]


def headline(plan: Plan, records: Sequence[Record]) -> list[tuple[str, str]]:
    """A few figures about the whole study: what, and how many."""
    trained = {(r["run"], r["seed"]): r["training"] for r in records if r["training"]}
    gpu_hours = sum(t["gpu_hours"] or 0 for t in trained.values())
    hours = sum(t["seconds"] * t["processes"] for t in trained.values()) / 3600
    return [
        ("runs", str(len(plan["runs"]))),
        ("trainings", str(sum(len(r["seeds"]) for r in plan["runs"].values() if r["method"] != "none"))),
        ("results", f"{len(records)} of {len(expected(plan, Path()))}"),
        ("GPU-hours of training", f"{gpu_hours:.3g}") if gpu_hours else ("CPU process hours of training", f"{hours:.3g}"),
    ]


def incomplete(plan: Plan, missing: Sequence[Gap]) -> dict[str, str]:
    """Run -> what is missing of it, in a few words."""
    texts = {}
    for run in dict.fromkeys(g.run for g in missing):
        own = [g for g in missing if g.run == run]
        trainings = [g for g in own if g.evaluation is None]
        shown = trainings or own
        texts[run] = (
            f"{shown[0].state}: {len(shown)} of {len(plan['runs'][run]['seeds'])} seeds" if trainings else f"{len(own)} results missing"
        )
    return texts


# -- tables ----------------------------------------------------------------------------------------------------------


def section(task: str, plan: Plan, records: Sequence[Record], missing: Sequence[Gap]) -> dict[str, Any]:
    """One task's table for the page: a row for each run and evaluation of the plan, whether there is a result or not."""
    own = of_task(records, task)
    groups, metrics, hours = grouped(own), metrics_in(own), training_hours(records)
    names = [name for name, e in plan["evaluations"].items() if e["task"] == task]
    pairs = [(run, name) for run in plan["runs"] for name in names if run in plan["evaluations"][name]["runs"]]
    wide = {pair: table_row(group, metrics) for pair, group in groups.items()}
    leading = ["run", "evaluation"] if len(names) > 1 else ["run"]
    columns = [c for c in SHOWN if c != "compat" or len({row["compat"] for row in wide.values()}) > 1]
    rows = []
    for run, name in pairs:
        seeds = plan["runs"][run]["seeds"]
        row: dict[str, Any] = {"id": f"how-{task}-{run}-{name}", "leading": [run, name][: len(leading)], "how": []}
        row["gap"] = _gap(run, name, missing, len(groups.get((run, name), [])), len(seeds))
        if (run, name) in groups:
            cells = wide[run, name]
            row |= {"numbers": [_number(cells, m) for m in metrics], "cells": [cells[c] for c in columns]}
            row["how"] = how(groups[run, name], hours)
        rows.append(row)
    headings = [*leading, *metrics, *columns]
    return {"name": task, "heading": HEADINGS.get(task, task), "columns": headings, "rows": rows, "classes": exhibits.by_class(own)}


def _gap(run: str, evaluation: str, missing: Sequence[Gap], found: int, seeds: int) -> str:
    """What a row must say about itself, if anything."""
    if found == seeds:
        return ""
    states = dict.fromkeys(g.state for g in missing if g.run == run and g.evaluation in (None, evaluation))
    return (f"only {found} of {seeds} seeds" if found else "missing") + (f": {', '.join(states)}" if states else "")


def _number(row: Mapping[str, str], metric: str) -> dict[str, str]:
    half, published, source, delta = (row[metric + suffix] for suffix in SUFFIXES)
    return {"mean": row[metric], "half": half, "published": published, "source": source, "delta": delta}


def how(group: Sequence[Record], hours: Any) -> list[tuple[str, str]]:
    """Protocol, cost, provenance, published values and the command that makes the numbers again."""
    metrics = metrics_in(group)
    lines = {m: tidy_row(group[0], m, group, hours) for m in metrics}
    first = lines[metrics[0]]
    facts = [(name.replace("_", " "), first[name]) for name in HOW if first[name]]
    facts.append(("scored", f"{first['n']} {first['unit']}"))
    for name in ("config_hash", "run_hash", "commit", "device", "versions"):
        values = dict.fromkeys(tidy_row(r, metrics[0], group, hours)[name] for r in group)
        facts.append((name.replace("_", " "), ", ".join(values)))
    facts.append(("seeds", ", ".join(str(r["seed"]) for r in group)))
    for metric, line in lines.items():
        if line["published"]:
            facts.append((f"published {metric}", f"{line['published']} by {line['published_protocol']} [{line['published_source']}]"))
        if line["published_elsewhere"]:
            facts.append((f"{metric} by other protocols", f"{line['published_elsewhere']} (not comparable: no difference is given)"))
    again = " ".join(f"results/{r['run']}/s{r['seed']}/{r['evaluation']}.json" for r in group)
    return [*facts, ("again", f"snakemake --cores all --force {again}")]


def plain_table(name: str, table: pd.DataFrame) -> dict[str, Any]:
    """Any other table for the page, as it is."""
    return {"name": name, "columns": list(table.columns), "rows": table.to_numpy().tolist()}
