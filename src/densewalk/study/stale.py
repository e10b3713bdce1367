"""List what a study would not make in the same way today, and let Snakemake make exactly that again.

densewalk stale config.yaml
snakemake --cores all all --forcerun $(densewalk stale config.yaml --rerun)
"""

from collections.abc import Iterator
from pathlib import Path

from densewalk.core import provenance
from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write
from densewalk.core.hashing import file_sha256
from densewalk.core.provenance import Provenance
from densewalk.data.fingerprint import Fingerprint, fingerprint
from densewalk.results.records import ResultRecord, read_result, read_run
from densewalk.results.stale import Stale, code_reasons, file_reasons
from densewalk.study.config import Study

OUTDATED = "made by another configuration than the study's is now; Snakemake makes it again by itself"


def find_stale(study: Study, results: Path, now: Provenance | None = None) -> Iterator[Stale]:
    """Look at every backbone and result of the study that is there, in the study's order.

    Args:
        now: the code to compare with; this one if it is not given.
    """
    code = now or provenance.current()
    data: dict[tuple[str, ...], Fingerprint] = {}
    for run, seed in study.jobs():
        folder = results / run / f"s{seed}"
        if (folder / "run.json").is_file() and (reasons := _of_run(study, run, seed, folder, code)):
            yield Stale(run, seed, None, folder / "backbone.safetensors", tuple(reasons))
        for name in [e for r, s, e in study.evaluation_jobs() if (r, s) == (run, seed) and (folder / f"{e}.json").is_file()]:
            if reasons := _of_result(study, run, seed, name, folder, code, data):
                yield Stale(run, seed, name, folder / f"{name}.json", tuple(reasons))


def _of_run(study: Study, run: str, seed: int, folder: Path, now: Provenance) -> list[str]:
    try:
        record = read_run(folder / "run.json")
    except UserError as error:
        return [error.found]
    outdated = [OUTDATED] if record.config_hash != study.run_spec(run, seed).hash else []
    return [*outdated, *code_reasons(record, now), *file_reasons(record)]


def _of_result(
    study: Study, run: str, seed: int, name: str, folder: Path, now: Provenance, data: dict[tuple[str, ...], Fingerprint]
) -> list[str]:
    try:
        record = read_result(folder / f"{name}.json")
    except UserError as error:
        return [error.found]
    outdated = [OUTDATED] if record.config_hash != study.evaluation_spec(run, seed, name).hash else []
    return [*outdated, *code_reasons(record, now), *_changed(record, folder, study.evaluations[name].settings.data_paths, data)]


def _changed(record: ResultRecord, folder: Path, paths: tuple[str, ...], data: dict[tuple[str, ...], Fingerprint]) -> Iterator[str]:
    """The evaluation's data or its backbone are others than those of the record."""
    if record.data is not None and any(Path(path).exists() for path in paths):
        if paths not in data:
            data[paths] = fingerprint(paths)
        if data[paths] != record.data:
            yield f"the data in {', '.join(paths)} have changed: {record.data.files} files then, {data[paths].files} now"
    backbone = folder / "backbone.safetensors"
    if record.backbone_sha256 is not None and backbone.is_file() and file_sha256(backbone) != record.backbone_sha256:
        yield f"{backbone} is another one now"


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
