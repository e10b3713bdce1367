"""The page's tables: one for each evaluation, because numbers compare within one protocol only."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from densewalk.core.metric import Metric
from densewalk.core.provenance import Provenance
from densewalk.results.gain import Groups
from densewalk.results.missing import Output
from densewalk.results.page.sections import class_charts
from densewalk.results.page.view import EvaluationTable, Facts, Number, Row, Section
from densewalk.results.plan import Plan
from densewalk.results.records import ResultRecord
from densewalk.results.significance import about_intervals, best_runs
from densewalk.results.stale import code_reasons
from densewalk.results.tables import COMPUTE, SUFFIXES, Compute, compute, grouped, metrics_in, of_task, tidy_row, wide_row

# columns after the numbers, which come first so that a phone shows them; one that is the same in all rows stands above the table
COLUMNS = ("method", "init", "arch", "compat", "seeds", "dataset", "protocol")
NAMES = {"dataset": "data", "arch": "architecture"}
HOW = (
    *("evaluation", "protocol", "protocol_version", "dataset", "pretraining_data", "compat", "method_version"),
    *("training_steps", "samples_seen", "training_gpu_hours", "training_hours", "training_hours_with_init", "training_device"),
    *COMPUTE,
)
# of a row's facts, those that are told once if they are the same for all rows
ONCE = ("evaluation", "protocol", "protocol version", "dataset", "scored", "commit", "device", "versions")


def evaluation_sections(plan: Plan, records: Sequence[ResultRecord], missing: Sequence[Output], now: Provenance) -> list[Section]:
    """A section for each table of the study. now: the code that results should have been made by."""
    spent, sections = compute(records), []
    for task in dict.fromkeys(e.table for e in plan.evaluations.values()):
        own = of_task(records, task)
        names = [name for name, e in plan.evaluations.items() if e.table == task]
        heading = plan.evaluations[names[0]].title
        tables = []
        for name in names:
            label = f"{heading}, {name}" if len(names) > 1 else heading
            tables.append(_table(name, label, plan, [r for r in own if r.evaluation == name], missing, spent, now))
        sections.append(Section(task, heading, tables))
    return sections


def _table(
    name: str, label: str, plan: Plan, records: Sequence[ResultRecord], missing: Sequence[Output], spent: Compute, now: Provenance
) -> EvaluationTable:
    """A row for each run of the plan, whether there is a result or not."""
    planned = plan.evaluations[name]
    groups, metrics = {run: group for (run, _), group in grouped(records).items()}, metrics_in(records)
    runs = [run for run in plan.runs if run in planned.runs]
    wide = {run: wide_row(groups[run], metrics) for run in runs if run in groups}
    facts = {run: how_made(groups[run], spent, plan.results) for run in wide}
    same, columns = constants(list(wide.values()))
    best = best_of({run: groups[run] for run in wide}, metrics, planned.metrics)
    shared = [fact for fact in next(iter(facts.values()), []) if fact[0] in ONCE and all(fact in own for own in facts.values())]
    rows = []
    for run in runs:
        gap = _gap(run, name, missing, len(groups.get(run, [])), plan.seeds_of(run, name))
        other = any(code_reasons(record, now) for record in groups.get(run, []))
        numbers = [_number(wide[run], m, (run, m) in best) for m in metrics] if run in wide else []
        cells = [wide[run][c] for c in columns] if run in wide else []
        rows.append(Row(f"how-{name}-{run}", run, gap, numbers, cells, [fact for fact in facts.get(run, []) if fact not in shared], other))
    return EvaluationTable(
        name=name,
        label=label,
        columns=["run", *(metrics or ["result"]), *(NAMES.get(c, c) for c in columns)],
        rows=rows,
        metrics=[(m, str(planned.metrics.get(m, ""))) for m in metrics],
        same=same,
        shared=shared,
        has_intervals=any(number.interval for row in rows for number in row.numbers),
        about_intervals=about_intervals((r.evaluation, str(r.n), r.unit) for r in records),
        has_best=bool(best),
        classes=class_charts(records, list(plan.runs)),
    )


def constants(rows: Sequence[Mapping[str, str]]) -> tuple[Facts, list[str]]:
    """What is the same in all rows, and the columns in which rows differ."""
    values = {c: list(dict.fromkeys(row[c] for row in rows)) for c in COLUMNS}
    same = [(NAMES.get(c, c), v[0]) for c, v in values.items() if len(v) == 1 and v[0]]
    return same, [c for c in COLUMNS if len(values[c]) > 1]


def best_of(groups: Groups, metrics: Sequence[str], described: Mapping[str, Metric]) -> set[tuple[str, str]]:
    """Run and metric of the numbers that are better than all others of their column: see `best_runs`. Floors are nobody's."""
    return {(run, m) for m in metrics for run in best_runs(groups, m, described[m].better if m in described else "higher")}


def _gap(run: str, evaluation: str, missing: Sequence[Output], found: int, planned: Sequence[int]) -> str:
    """What a row must say about itself, if anything."""
    seeds = len(planned)
    own = [o.state for o in missing if o.run == run and o.seed in planned and o.evaluation in (None, evaluation)]
    outdated = own.count("outdated")
    states = dict.fromkeys(state for state in own if state != "outdated")
    parts = []
    if found < seeds:
        parts.append((f"only {found} of {seeds} seeds" if found else "missing") + (f": {', '.join(states)}" if states else ""))
    if outdated:
        parts.append("outdated" if seeds == 1 else f"{outdated} of {seeds} seeds outdated")
    return "; ".join(parts)


def _number(row: Mapping[str, str], metric: str, best: bool) -> Number:
    interval, published, _, published_delta = (row[metric + suffix] for suffix in SUFFIXES)
    return Number(row[metric], interval, published, published_delta, best)


def how_made(group: Sequence[ResultRecord], spent: Compute, results: str) -> Facts:
    """Protocol, cost, provenance, published values and the command that makes the numbers again."""
    metrics = metrics_in(group)
    lines = {m: tidy_row(group[0], m, group, spent) for m in metrics}
    seeds = [tidy_row(r, metrics[0], group, spent) for r in group]

    def of_all_seeds(name: str) -> str:
        return ", ".join(dict.fromkeys(line[name] for line in seeds if line[name]))

    facts = [(name.replace("_", " "), of_all_seeds(name)) for name in HOW if of_all_seeds(name)]
    facts.append(("scored", f"{of_all_seeds('n')} {of_all_seeds('unit')}"))
    facts += [(name.replace("_", " "), of_all_seeds(name)) for name in ("config_hash", "run_hash", "commit", "device", "versions")]
    facts.append(("which seeds", ", ".join(str(r.seed) for r in group)))
    for metric, line in lines.items():
        if line["published"]:
            facts.append((f"published {metric}", f"{line['published']} by {line['published_protocol']} [{line['published_source']}]"))
        if line["published_elsewhere"]:
            facts.append((f"{metric} by other protocols", f"{line['published_elsewhere']} (not comparable: no difference is given)"))
    again = " ".join(f"{results}/{r.run}/s{r.seed}/{r.evaluation}.json" for r in group)
    return [*facts, ("again", f"snakemake{_study_options(results)} --cores all --force {again}")]


def _study_options(results: str) -> str:
    """How Snakemake, started where the Snakefile is, finds the study whose folder is the working directory."""
    if Path("Snakefile").is_file():
        return "" if results == "results" else " --configfile STUDY.yaml"
    return f" --directory {shlex.quote(str(Path.cwd()))}" + ("" if Path("config.yaml").is_file() else " --configfile STUDY.yaml")
