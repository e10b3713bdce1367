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
from markupsafe import Markup, escape

from densewalk import __version__
from densewalk.core.files import atomic_write
from densewalk.core.metric import Metric
from densewalk.core.provenance import commit
from densewalk.results.missing import Gap, gaps
from densewalk.results.page import sections as exhibits
from densewalk.results.page.study_graph import study_diagram
from densewalk.results.plan import Plan
from densewalk.results.records import ResultRecord, read_results, read_run
from densewalk.results.tables import (
    SUFFIXES,
    Hours,
    cost_table,
    grouped,
    metrics_in,
    of_task,
    tidy_row,
    tidy_table,
    training_hours,
)
from densewalk.results.tables import wide_row as table_row

# what is shown beside a run and its numbers, which come first so that a phone shows them; what is the same in all rows stands
# above the table instead, and the rest below it
SHOWN = ("method", "init", "arch", "compat", "seeds", "dataset", "protocol")
NAMES = {"dataset": "data", "arch": "architecture"}
HOW = (
    *("evaluation", "protocol", "protocol_version", "dataset", "pretraining_data", "compat", "training_steps", "samples_seen"),
    *("training_gpu_hours", "training_hours", "training_hours_with_init", "training_device"),
)
# of a row's facts, those that are told once if they are the same for all rows
ONCE = ("evaluation", "protocol", "protocol version", "dataset", "scored", "commit", "device", "versions")


def report(plan: Plan, results: Path, out: Path) -> None:
    """Write the page of a study.

    Args:
        plan: `Study.plan`: what there should be.
        results: the study's folder of results.

    Raises:
        UserError: a result record is broken.
    """
    records = read_results([path for path in plan.results(results) if path.is_file()])
    missing = list(gaps(plan, results))
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["breakable"] = breakable
    page = environment.get_template("report.html").render(
        title=plan.study,
        facts=headline(plan, results, records),
        missing=missing,
        diagram=study_diagram(plan, incomplete(plan, missing)),
        sections=[section(task, plan, records, missing) for task in dict.fromkeys(e.table for e in plan.evaluations.values())],
        numbers=[plain_table(name, make(records)) for name, make in (("all", tidy_table), ("cost", cost_table))] if records else [],
        **exhibits.gather(plan, results, records),
        version=__version__,
        commit=commit()[0][:12],
    )
    with atomic_write(out) as temporary:
        temporary.write_text(page, encoding="utf-8")


def breakable(name: str) -> Markup:
    """A name that a narrow column may break after an underscore."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _template(name: str) -> str:
    return files("densewalk.results.page").joinpath("templates", name).read_text(encoding="utf-8")


def headline(plan: Plan, results: Path, records: Sequence[ResultRecord]) -> list[tuple[str, str]]:
    """A few figures about the whole study: what, and how many. Of trainings, all that are done count, evaluated or not."""
    done = [path for run, seed in plan.trainings() if (path := results / run / f"s{seed}" / "run.json").is_file()]
    spent = [training for path in done if (training := read_run(path).training)]
    gpu_hours = sum(t.gpu_hours or 0 for t in spent)
    hours = sum(t.seconds * t.processes for t in spent) / 3600
    return [
        ("runs", str(len(plan.runs))),
        ("trainings done", f"{len(spent)} of {len(plan.trainings())}"),
        ("results", f"{len(records)} of {len(plan.results(Path()))}"),
        ("of training, all GPUs", duration(gpu_hours)) if gpu_hours else ("of training, all CPU processes", duration(hours)),
    ]


def duration(hours: float) -> str:
    """A time with its unit, three digits: 31.4 h, 2.59 min."""
    return f"{hours:.3g} h" if hours >= 1 else f"{60 * hours:.3g} min"


def incomplete(plan: Plan, missing: Sequence[Gap]) -> dict[str, str]:
    """Run -> what is missing of it, in a few words."""
    texts = {}
    for run in dict.fromkeys(g.run for g in missing):
        own = [g for g in missing if g.run == run]
        backbones = [g for g in own if g.evaluation is None]
        if backbones:
            texts[run] = f"{backbones[0].state}: {len(backbones)} of {len(plan.runs[run].seeds)} seeds"
        else:
            what = "outdated" if all(g.state == "outdated" for g in own) else "missing"
            texts[run] = f"{len(own)} result{'s' if len(own) > 1 else ''} {what}"
    return texts


# -- tables ----------------------------------------------------------------------------------------------------------


def section(task: str, plan: Plan, records: Sequence[ResultRecord], missing: Sequence[Gap]) -> dict[str, Any]:
    """One task for the page: a table for each of its evaluations, because numbers compare within one protocol only."""
    own, hours = of_task(records, task), training_hours(records)
    names = [name for name, e in plan.evaluations.items() if e.table == task]
    heading = plan.evaluations[names[0]].title
    tables = [evaluation_table(name, plan, [r for r in own if r.evaluation == name], missing, hours) for name in names]
    for table in tables:
        table["label"] = f"{heading}, {table['name']}" if len(names) > 1 else heading
    return {"name": task, "heading": heading, "tables": tables}


def evaluation_table(name: str, plan: Plan, records: Sequence[ResultRecord], missing: Sequence[Gap], hours: Hours) -> dict[str, Any]:
    """One evaluation's table: a row for each run of the plan, whether there is a result or not."""
    groups, metrics = grouped(records), metrics_in(records)
    planned = plan.evaluations[name]
    runs = [run for run in plan.runs if run in planned.runs]
    wide = {run: table_row(groups[run, name], metrics) for run in runs if (run, name) in groups}
    facts = {run: how(groups[run, name], hours) for run in wide}
    same, columns = constants(list(wide.values()))
    best = best_of(wide, metrics, planned.metrics)
    shared = [fact for fact in next(iter(facts.values()), []) if fact[0] in ONCE and all(fact in own for own in facts.values())]
    rows = []
    for run in runs:
        row: dict[str, Any] = {"id": f"how-{name}-{run}", "run": run, "how": []}
        row["gap"] = _gap(run, name, missing, len(groups.get((run, name), [])), len(plan.runs[run].seeds))
        if run in wide:
            row |= {"numbers": [_number(wide[run], m, (run, m) in best) for m in metrics], "cells": [wide[run][c] for c in columns]}
            row["how"] = [fact for fact in facts[run] if fact not in shared]
        rows.append(row)
    return {
        "name": name,
        "same": same,
        "columns": ["run", *(metrics or ["result"]), *(NAMES.get(c, c) for c in columns)],
        "metrics": [(m, str(planned.metrics.get(m, ""))) for m in metrics],
        "rows": rows,
        "shared": shared,
        "intervals": any(row[m + SUFFIXES[0]] for row in wide.values() for m in metrics),
        "best": bool(best),
        "classes": exhibits.by_class(records, list(plan.runs)),
    }


def constants(rows: Sequence[Mapping[str, str]]) -> tuple[list[tuple[str, str]], list[str]]:
    """What is the same in all rows, as text, and the columns of `SHOWN` in which rows differ."""
    values = {c: list(dict.fromkeys(row[c] for row in rows)) for c in SHOWN}
    same = [(NAMES.get(c, c), v[0]) for c, v in values.items() if len(v) == 1 and v[0]]
    return same, [c for c in SHOWN if len(values[c]) > 1]


def best_of(wide: Mapping[str, Mapping[str, str]], metrics: Sequence[str], described: Mapping[str, Metric]) -> set[tuple[str, str]]:
    """Run and metric of the best printed value of each column in which runs differ, but for floors, which are nobody's."""
    best = set()
    for metric in metrics:
        values = {run: float(row[metric]) for run, row in wide.items() if row[metric]}
        better = described[metric].better if metric in described else "higher"
        if len(set(values.values())) > 1 and better:
            wanted_value = (min if better == "lower" else max)(values.values())
            best |= {(run, metric) for run, value in values.items() if value == wanted_value}
    return best


def _gap(run: str, evaluation: str, missing: Sequence[Gap], found: int, seeds: int) -> str:
    """What a row must say about itself, if anything."""
    own = [g for g in missing if g.run == run and g.evaluation in (None, evaluation)]
    outdated = sum(g.state == "outdated" for g in own)
    states = dict.fromkeys(g.state for g in own if g.state != "outdated")
    parts = []
    if found < seeds:
        parts.append((f"only {found} of {seeds} seeds" if found else "missing") + (f": {', '.join(states)}" if states else ""))
    if outdated:
        parts.append("outdated" if seeds == 1 else f"{outdated} of {seeds} seeds outdated")
    return "; ".join(parts)


def _number(row: Mapping[str, str], metric: str, best: bool) -> dict[str, Any]:
    half, published, source, delta = (row[metric + suffix] for suffix in SUFFIXES)
    return {"mean": row[metric], "half": half, "published": published, "source": source, "delta": delta, "best": best}


def how(group: Sequence[ResultRecord], hours: Hours) -> list[tuple[str, str]]:
    """Protocol, cost, provenance, published values and the command that makes the numbers again."""
    metrics = metrics_in(group)
    lines = {m: tidy_row(group[0], m, group, hours) for m in metrics}
    seeds = [tidy_row(r, metrics[0], group, hours) for r in group]

    def of_all_seeds(name: str) -> str:
        return ", ".join(dict.fromkeys(line[name] for line in seeds if line[name]))

    facts = [(name.replace("_", " "), of_all_seeds(name)) for name in HOW if of_all_seeds(name)]
    facts.append(("scored", f"{of_all_seeds('n')} {of_all_seeds('unit')}"))
    facts += [(name.replace("_", " "), of_all_seeds(name)) for name in ("config_hash", "run_hash", "commit", "device", "versions")]
    facts.append(("seeds", ", ".join(str(r.seed) for r in group)))
    for metric, line in lines.items():
        if line["published"]:
            facts.append((f"published {metric}", f"{line['published']} by {line['published_protocol']} [{line['published_source']}]"))
        if line["published_elsewhere"]:
            facts.append((f"{metric} by other protocols", f"{line['published_elsewhere']} (not comparable: no difference is given)"))
    again = " ".join(f"results/{r.run}/s{r.seed}/{r.evaluation}.json" for r in group)
    return [*facts, ("again", f"snakemake --cores all --force {again}")]


def plain_table(name: str, table: pd.DataFrame) -> dict[str, Any]:
    """Any other table for the page, as it is."""
    return {"name": name, "columns": list(table.columns), "rows": table.to_numpy().tolist()}
