"""Say why an output would be made again, or why it is not there.

densewalk why results/dora/s0/davis.json
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from densewalk.core import provenance
from densewalk.core.errors import UserError
from densewalk.results.changes import OUTDATED, Changes
from densewalk.results.identity import unequal, what_decides
from densewalk.results.missing import FINISHED, Output, survey
from densewalk.results.plan import result_key
from densewalk.results.records import RunRecord
from densewalk.results.stale import code_reasons
from densewalk.study.config import Study
from densewalk.study.upkeep.forgotten import forgotten


def why(study: Study, path: Path, results: Path, config: Path) -> Iterator[str]:
    """Yield lines on one output of a study: its state, each setting, input or version that differs, and which code made it.

    Args:
        config: the study's file, for commands and messages.

    Raises:
        UserError: the path is no backbone, run record, result, table or page of the study.
    """
    plan = study.plan()
    outputs = [output for found in survey(plan, results) for output in (found.backbone, *found.results)]
    if (table := _table(study, path, results)) is not None:
        yield f"{path}: {_state_of_table(Changes(plan, results), table, path, outputs)}"
        return
    output = _output(outputs, path, results, config)
    yield f"{path}: {_state(output)}"
    changes, run, seed = Changes(plan, results), output.run, output.seed
    former = forgotten(changes) if output.state not in FINISHED else ()
    yield from (f"    {found.text(config)}" for found in former if found.new in (output.run, output.evaluation))
    wanted_run = study.run_spec(run, seed)
    made_run = changes.run_record(run, seed)
    if output.evaluation is not None and (record := changes.result_record(run, seed, output.evaluation)):
        wanted = study.evaluation_spec(run, seed, output.evaluation).model_dump(mode="json")
        yield from _differences("", record.spec, wanted, "run_hash")
        yield from (f"    {reason}" for reason in changes.of_result(run, seed, output.evaluation) if reason != OUTDATED)
        if changes.of_run(run, seed) and made_run:
            yield from _of_run(changes, study, made_run, wanted_run.model_dump(mode="json"), "the run: ")
        yield from (f"    {reason} (reruns nothing)" for reason in code_reasons(record, provenance.current()))
    elif output.evaluation is None and made_run:
        yield from _of_run(changes, study, made_run, wanted_run.model_dump(mode="json"), "")
        yield from (f"    {reason} (reruns nothing)" for reason in code_reasons(made_run, provenance.current()))
    changes.contents.save()


def _of_run(changes: Changes, study: Study, record: RunRecord, wanted: Mapping[str, Any], where: str) -> Iterator[str]:
    """How a run differs, back to the first one of the chain that differs by itself."""
    run, seed = record.spec.run, record.spec.seed
    yield from _differences(where, record.spec.model_dump(mode="json"), wanted, "hash")
    yield from (f"    {where}{reason}" for reason in changes.of_run(run, seed) if reason != OUTDATED)
    parent = changes.plan.backbones[f"{run}/s{seed}"].parent
    if parent and changes.of_run(*parent) and (made := changes.run_record(*parent)):
        yield from _of_run(changes, study, made, study.run_spec(*parent).model_dump(mode="json"), f"{parent[0]}: ")


def _differences(where: str, made: Mapping[str, Any], wanted: Mapping[str, Any], hashes: str) -> Iterator[str]:
    """Each setting that decides and differs."""
    if not made:
        yield f"    {where}its record does not say with which settings it was made"
        return
    then, now = (_keyed(what_decides(spec)) for spec in (made, wanted))
    yield from (f"    {where}{text}" for text in unequal(then, now, ignored=(hashes,)))


def _keyed(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Data by their place, so that single settings are compared."""
    return {key: dict(enumerate(value)) if key == "data" and value else value for key, value in spec.items()}


def _output(outputs: Iterable[Output], path: Path, results: Path, config: Path) -> Output:
    """What the study knows of a path."""
    for output in outputs:
        names = ("run.json", "backbone.safetensors") if output.evaluation is None else (f"{output.evaluation}.json",)
        if path.resolve() in [(results / output.run / f"s{output.seed}" / name).resolve() for name in names]:
            return output
    places = ("RUN/sSEED/backbone.safetensors", "RUN/sSEED/run.json", "RUN/sSEED/EVALUATION.json", "tables/TABLE.csv", "report.html")
    raise UserError(
        f"{path} is no output of the study in {config.absolute()}",
        allowed=", ".join(f"{results}/{place}" for place in places),
        todo="name another study by --config; or, after a name was changed in the study: densewalk rename",
    )


def _table(study: Study, path: Path, results: Path) -> str | None:
    """The name of a table, or `report` for the page; None for any other path."""
    files = {f"tables/{name}": name for name in ("gain", "all", "cost", *study.task_tables)} | {"report": "report"}
    ends = {name: (".html",) if name == "report" else (".csv", ".md", ".tex") for name in files.values()}
    places = {(results / f"{file}{end}").resolve(): name for file, name in files.items() for end in ends[name]}
    return places.get(path.resolve())


def _state_of_table(changes: Changes, name: str, path: Path, outputs: Iterable[Output]) -> str:
    """Of a table or the page, as the summary of a dry run says it (workflow/rules/driver.smk)."""
    if not path.is_file():
        return "not there"
    if reasons := changes.of_table(name):
        return f"outdated ({'; '.join(reasons)})"
    records = changes.plan.records(changes.results, "all" if name == "report" else name)
    due = [o for o in outputs if o.evaluation and o.state != "done"]
    if any(changes.results / f"{result_key(o.run, o.seed, o.evaluation or '')}.json" in records for o in due):
        return "outdated (made from what is made again)"
    inputs = [*records, *(sorted((changes.results / "tables").glob("*.csv")) if name == "report" else [])]
    if any(file.stat().st_mtime_ns > path.stat().st_mtime_ns for file in inputs):
        return "outdated (an input is newer)"
    return "up to date"


def _state(output: Output) -> str:
    if output.state == "done":
        return "up to date"
    return f"{output.state}{f' ({output.why})' if output.why and output.state != 'outdated' else ''}"
