"""States of interrupted jobs that an earlier version left: folders whose hash had names and paths in it are taken over."""

import os
from pathlib import Path

from densewalk.core.hashing import config_hash
from densewalk.core.progress import log
from densewalk.models.origin import RunBackbone
from densewalk.results.plan import state_folder
from densewalk.study.config import Study


def take_over_states(study: Study, results: Path) -> None:
    """Rename the folders of state that are still called by a hash of an earlier version."""
    if not (results / "state").is_dir():
        return
    for run, seed in study.jobs():
        _take_over(results, former_hash(study, run, seed), study.run_spec(run, seed).hash, run, seed)
    for run, seed, name in study.evaluation_jobs():
        spec = study.evaluation_spec(run, seed, name)
        former = config_hash({**spec.model_dump(mode="json"), "run_hash": former_hash(study, run, seed)})
        _take_over(results, former, spec.hash, run, seed, name)


def former_hash(study: Study, run: str, seed: int) -> str:
    """The hash that a run's specification had: of all of it, and of what it is built on."""
    spec = study.run_spec(run, seed)
    content = spec.model_dump(mode="json")
    if isinstance(spec.init, RunBackbone):
        content["init"]["hash"] = former_hash(study, spec.init.name, spec.init.seed)
    return config_hash(content)


def _take_over(results: Path, former: str, now: str, run: str, seed: int, evaluation: str | None = None) -> None:
    before, after = (state_folder(results, found, run, seed, evaluation) for found in (former, now))
    if before.is_dir() and not after.exists():
        os.rename(before, after)
        log.info("%s is called %s now", before, after)
