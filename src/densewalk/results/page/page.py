"""The report of a study on one page.

    densewalk report config.yaml                          # at any time, also while the study runs or after it failed
    densewalk report --plan FILE --results results --out results/report.html       # what the workflow does

The page is one file that needs no network: style, script, charts and images are inside. Its numbers come from the result records
through the functions that write the tables, so that page and tables cannot disagree. What is missing is said at its top, in the
diagram and in the cells of the tables.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jinja2
import pandas as pd
from markupsafe import Markup, escape

from densewalk import __version__
from densewalk.core import provenance
from densewalk.core.files import atomic_write
from densewalk.results.gain import gain_table
from densewalk.results.missing import Output, survey
from densewalk.results.page.charts import PER_HOUR, method_legend, time_unit
from densewalk.results.page.evaluation_tables import evaluation_sections
from densewalk.results.page.gains import gain_sections
from densewalk.results.page.images import features, predictions, training_images
from densewalk.results.page.ladders import ladder_parts
from densewalk.results.page.patches import asked_patches
from densewalk.results.page.places import gain_places
from densewalk.results.page.sections import all_methods, class_names, costs, curves, read_curves, rising_losses
from densewalk.results.page.study_graph import study_diagram
from densewalk.results.page.view import Facts, NumberTable, Page
from densewalk.results.page.votes import asked_votes
from densewalk.results.pairs.differences import Differences, differences_file
from densewalk.results.plan import Plan, result_key
from densewalk.results.records import ResultRecord, RunRecord, read_results, read_run
from densewalk.results.stale import by_other_code
from densewalk.results.tables import cost_table, tidy_table

LONG = 18  # letters of a name that fits a narrow column
FIRST = ("run", "seed", "evaluation", "metric", "value")  # columns of a whole table on the page; its file has them elsewhere
LINES = 5000  # most of a whole table that the page shows: a browser takes long for more


def report(plan: Plan, results: Path, out: Path) -> None:
    """Write the page of a study.

    Args:
        plan: what there should be. results: the study's folder of results.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["breakable"] = breakable
    environment.filters["with_code"] = with_code
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # runs stay in the study's order
    with atomic_write(out) as temporary:
        temporary.write_text(environment.get_template("report.html").render(page=contents(plan, results)), encoding="utf-8")


def breakable(name: str) -> Markup:
    """A name that a narrow column may break after an underscore if it is a long one."""
    return escape(name).replace("_", Markup("_<wbr>")) if len(name) > LONG else escape(name)


def with_code(text: str) -> Markup:
    """A text whose parts in backticks are code."""
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else escape(part) for i, part in enumerate(text.split("`")))


def contents(plan: Plan, results: Path) -> Page:
    """Gather everything on the page."""
    jobs = list(plan.jobs())
    paths = [results / f"{result_key(*job)}.json" for job in jobs]
    differences = Differences(dict(zip(jobs, paths, strict=True)), differences_file(results))
    records = read_results([path for path in paths if path.is_file()], plan.named)
    missing = [output for outputs in survey(plan, results) for output in outputs.missing]
    charts = costs(plan, records)
    now, runs = provenance.current(), made_runs(plan, results)
    logged = read_curves(plan, results)
    folders = {run: results / run / f"s{planned.seeds[0]}" for run, planned in plan.runs.items()}
    drawn, shown = features(folders), class_names(records)
    page = Page(
        title=plan.study,
        facts=headline(plan, runs, len(records), len(paths)),
        missing=missing,
        lacking=lacking(missing, len(paths)),
        stale=by_other_code(list(runs.values()), records, now),
        diagram=study_diagram(plan, incomplete(plan, missing)),
        legend=method_legend(all_methods(plan, records)) if charts else None,
        costs=charts,
        sections=evaluation_sections(plan, records, missing, now),
        ladders=ladder_parts(plan, results),
        features=drawn,
        asked=asked_patches(folders, drawn.drawn) if drawn else None,
        votes=asked_votes(plan, folders, shown),
        training=training_images(plan, folders),
        predictions=predictions(plan, folders, shown),
        gains=gain_sections(plan, records, differences),
        places=gain_places(plan, records, differences, folders),
        rising=rising_losses(logged),
        curves=curves(plan, logged),
        numbers=[_numbers(name, table) for name, table in whole_tables(plan, records, differences).items()] if records else [],
        results=plan.results,
        version=__version__,
        commit=now.commit[:12],
    )
    differences.save()
    return page


def whole_tables(plan: Plan, records: Sequence[ResultRecord], differences: Differences | None = None) -> dict[str, pd.DataFrame]:
    """The tables of all evaluations, by their files' names."""
    gain = gain_table(records, plan.metrics_of_tables(), plan.baseline, differences)
    return {"gain": gain, "all": tidy_table(records), "cost": cost_table(records)}


def _numbers(name: str, table: pd.DataFrame) -> NumberTable:
    first = [column for column in FIRST if column in table]
    return NumberTable(f"{name}.csv", len(table), table.head(LINES)[[*first, *(c for c in table if c not in first)]])


def made_runs(plan: Plan, results: Path) -> dict[tuple[str, int], RunRecord]:
    """The records of all runs of the plan that are there, by run and seed."""
    places = {(run, seed): results / run / f"s{seed}" / "run.json" for run, planned in plan.runs.items() for seed in planned.seeds}
    return {place: read_run(path) for place, path in places.items() if path.is_file()}


def headline(plan: Plan, runs: Mapping[tuple[str, int], RunRecord], found: int, wanted: int) -> Facts:
    """A few figures about the whole study. Of trainings, all that are done count, evaluated or not."""
    trainings = [training for place in plan.trainings() if place in runs and (training := runs[place].training)]
    gpu_hours = sum(t.gpu_hours or 0 for t in trainings)
    cpu = [t.cpu_seconds for t in trainings if t.cpu_seconds is not None]
    if len(cpu) == len(trainings):
        spent = ("CPU time of training, all processes", duration(sum(cpu) / 3600))
    else:
        spent = ("of training, time × processes", duration(sum(t.process_hours for t in trainings)))
    return [
        ("runs", str(len(plan.runs))),
        ("trainings done", f"{len(trainings)} of {len(plan.trainings())}"),
        ("results", f"{found} of {wanted}"),
        ("of training, all GPUs", duration(gpu_hours)) if gpu_hours else spent,
    ]


def lacking(missing: Sequence[Output], wanted: int) -> str:
    """Say how many results are missing or outdated, counted like the head's; a backbone that is missing lacks all of its results."""
    absent = [output for output in missing if output.state != "outdated"]
    results = sum(1 if output.evaluation else output.results for output in absent)
    alone = sum(output.evaluation is None and not output.results for output in absent)
    counts = [
        (results, f"of {wanted} results", "missing"),
        (alone, "backbone without evaluations" if alone == 1 else "backbones without evaluations", "missing"),
    ]
    outdated = len(missing) - len(absent)
    counts.append((outdated, "output" if outdated == 1 else "outputs", "outdated"))
    return ", ".join(f"{count} {what} {'is' if count == 1 else 'are'} {state}" for count, what, state in counts if count)


def duration(hours: float) -> str:
    """A time with its unit, three digits: 31.4 h, 12.5 min, 155 s."""
    unit = time_unit(hours)
    return f"{hours * PER_HOUR[unit]:.3g} {unit}"


def incomplete(plan: Plan, missing: Sequence[Output]) -> dict[str, str]:
    """Say in a few words what is missing of each run that is not complete."""
    texts = {}
    for run in dict.fromkeys(output.run for output in missing):
        own = [output for output in missing if output.run == run]
        backbones = [output for output in own if output.evaluation is None]
        if backbones:
            texts[run] = f"{backbones[0].state}: {len(backbones)} of {len(plan.runs[run].seeds)} seeds"
        else:
            state = "outdated" if all(output.state == "outdated" for output in own) else "missing"
            texts[run] = f"{len(own)} result{'s' if len(own) > 1 else ''} {state}"
    return texts
