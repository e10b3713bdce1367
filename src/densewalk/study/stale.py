"""List what a study would not make in the same way today, and let Snakemake make exactly that again.

densewalk stale config.yaml
snakemake --cores all all --forcerun $(densewalk stale config.yaml --rerun)
"""

from collections.abc import Iterator
from pathlib import Path

from densewalk.core import provenance
from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write
from densewalk.core.provenance import Provenance
from densewalk.data.fingerprint import Fingerprint, fingerprint
from densewalk.results.changes import Changes
from densewalk.results.records import ResultRecord
from densewalk.results.stale import Stale, code_reasons, file_reasons
from densewalk.study.config import Study


def find_stale(study: Study, results: Path, now: Provenance | None = None) -> Iterator[Stale]:
    """Look at every backbone and result of the study that is there, in the study's order.

    Args:
        now: the code to compare with; this one if it is not given.
    """
    code, changes = now or provenance.current(), Changes(study.plan(), results)
    data: dict[tuple[str, ...], Fingerprint] = {}
    for run, seed in study.jobs():
        folder = results / run / f"s{seed}"
        if (folder / "run.json").is_file() and (reasons := _of_run(changes, run, seed, code)):
            yield Stale(run, seed, None, folder / "backbone.safetensors", reasons)
        for name in [e for r, s, e in study.evaluation_jobs() if (r, s) == (run, seed) and (folder / f"{e}.json").is_file()]:
            if reasons := _of_result(changes, run, seed, name, code, study.evaluations[name].settings.data_paths, data):
                yield Stale(run, seed, name, folder / f"{name}.json", reasons)
    changes.contents.save()


def _of_run(changes: Changes, run: str, seed: int, now: Provenance) -> tuple[str, ...]:
    try:
        record = changes.run_record(run, seed)
        outdated = changes.of_run(run, seed)
    except UserError as error:
        return (error.found,)
    assert record is not None
    return tuple(dict.fromkeys([*outdated, *code_reasons(record, now), *([] if record.contents else file_reasons(record))]))


def _of_result(
    changes: Changes,
    run: str,
    seed: int,
    name: str,
    now: Provenance,
    paths: tuple[str, ...],
    data: dict[tuple[str, ...], Fingerprint],
) -> tuple[str, ...]:
    try:
        record = changes.result_record(run, seed, name)
        outdated = changes.of_result(run, seed, name)
    except UserError as error:
        return (error.found,)
    assert record is not None
    return (*outdated, *code_reasons(record, now), *_changed_data(record, paths, data))


def _changed_data(record: ResultRecord, paths: tuple[str, ...], data: dict[tuple[str, ...], Fingerprint]) -> Iterator[str]:
    """The evaluation's data are others than those of the record."""
    if record.data is not None and any(Path(path).exists() for path in paths):
        if paths not in data:
            data[paths] = fingerprint(paths)
        if data[paths] != record.data:
            yield f"the data in {', '.join(paths)} have changed: {record.data.files} files then, {data[paths].files} now"


def states_of(study: Study, stale: list[Stale], results: Path) -> list[Path]:
    """The folders of state that would give the same outputs again, of those that are there."""
    folders = []
    for one in stale:
        of_run = one.evaluation is None
        spec = study.run_spec(one.run, one.seed) if of_run else study.evaluation_spec(one.run, one.seed, one.evaluation or "")
        folders.append(spec.state(results))
    return [folder for folder in folders if folder.is_dir()]


def write_targets(stale: list[Stale], results: Path) -> Path:
    """Write the paths of stale outputs, one a line, for Snakemake; the file's path."""
    path = results / "stale.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("".join(f"{one.path}\n" for one in stale))
    return path
