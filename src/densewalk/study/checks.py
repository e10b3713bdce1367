"""Checks of a study that look at two of its sections: names, chains, seeds, accumulation."""

from typing import TYPE_CHECKING

from densewalk.curation.settings import CurationSettings
from densewalk.study.runs import BaseRun, TrainedRun

if TYPE_CHECKING:
    from densewalk.study.config import Study

OR_PUBLIC = "or what `densewalk checkpoints` lists"
RESERVED = {"cache", "data", "logs", "specs", "state", "tables", "random"}
RESERVED_EVALUATIONS = {"run", "training", "features"}  # what else lies in the folder of a run and seed


def check_study(study: "Study") -> None:
    """Every name that is used exists, once, and no run is built on itself.

    Raises:
        ValueError: the first thing that is wrong, with its key.
    """
    names = [*study.videos, *study.images, *study.curations]
    twice = sorted({n for n in names if names.count(n) > 1} | (study.checkpoints.keys() & study.runs.keys()))
    if twice:
        raise ValueError(f"used twice as a name: {', '.join(twice)}")
    for name, run in study.runs.items():
        _check_run(study, name, run)
    for name, curation in study.curations.items():
        _check_curation(study, f"curations.{name}", curation)
    for name in study.runs:
        _check_chain(study, [name])
    _check_accumulation(study)
    unknown_sources = sorted(set(study.pictures.sources or []) - set(names))
    if unknown_sources:
        raise ValueError(f"pictures.sources: neither a video nor an image folder: {unknown_sources[0]}; allowed: {', '.join(names)}")
    for name, evaluation in study.evaluations.items():
        if name in RESERVED_EVALUATIONS:
            raise ValueError(f"evaluations.{name}: the name '{name}' is taken; choose another")
        unknown = sorted(set(evaluation.runs or []) - study.runs.keys())
        if unknown:
            raise ValueError(f"evaluations.{name}.runs: no such run: {', '.join(unknown)}; allowed: {', '.join(study.runs)}")


def _check_run(study: "Study", name: str, run: BaseRun) -> None:
    where = f"runs.{name}"
    if name in RESERVED:
        raise ValueError(f"{where}: the name '{name}' is taken; choose another")
    if run.init != "random" and run.init not in study.checkpoints and run.init not in study.runs:
        known = ", ".join(["random", *study.checkpoints, *study.runs])
        raise ValueError(f"{where}.init: '{run.init}' is neither a checkpoint nor a run; allowed: {known}, {OR_PUBLIC}")
    if (run.init == "random") != (run.arch is not None):
        raise ValueError(f"{where}.arch: give it exactly where init is random (init: {run.init}, arch: {run.arch})")
    if len(set(run.seeds)) != len(run.seeds):
        raise ValueError(f"{where}.seeds: {run.seeds} has a seed twice")
    known_data = [*study.videos, *study.images, *study.curations]
    for source in run.data if isinstance(run, TrainedRun) else []:
        if source not in known_data:
            raise ValueError(
                f"{where}.data: '{source}' is no video, image folder or curation; allowed: {', '.join(known_data) or 'none yet'}"
            )
    if run.init in study.runs:
        _check_seeds(study, where, run)


def _check_seeds(study: "Study", where: str, run: BaseRun) -> None:
    theirs = study.runs[run.init].seeds
    missing = [s for s in run.seeds if s not in theirs]
    if missing and len(theirs) > 1:
        raise ValueError(f"{where}.seeds: {run.init} has no seed {missing[0]} (it has {theirs})")


def _check_accumulation(study: "Study") -> None:
    parts = study.execution.accumulate
    unknown = sorted(parts.keys() - study.runs.keys()) if isinstance(parts, dict) else []
    if unknown:
        raise ValueError(f"execution.accumulate: no such run: {', '.join(unknown)}; allowed: {', '.join(study.runs)}")
    for name, run in study.runs.items():
        if isinstance(run, TrainedRun) and (obstacle := run.settings.obstacle_to_parts(study.execution.parts_of(name))):
            raise ValueError(f"execution.accumulate: run '{name}': {obstacle}; to do: give accumulate by run, for those that allow it")


def _check_curation(study: "Study", where: str, curation: CurationSettings) -> None:
    images = [*study.videos, *(name for name, folder in study.images.items() if folder.layout == "pictures")]
    unknown = [name for name in curation.data if name not in images]
    if unknown or len(set(curation.data)) < len(curation.data):
        found = f"'{unknown[0]}' is neither a video nor a folder of pictures" if unknown else "a name stands there twice"
        raise ValueError(f"{where}.data: {found}; allowed: {', '.join(images) or 'none yet'}")
    if curation.backbone not in study.checkpoints and curation.backbone not in study.runs:
        known = ", ".join([*study.checkpoints, *study.runs])
        raise ValueError(f"{where}.backbone: '{curation.backbone}' is neither a checkpoint nor a run; allowed: {known}, {OR_PUBLIC}")
    seeds = study.runs[curation.backbone].seeds if curation.backbone in study.runs else []
    if seeds and curation.seed is not None and curation.seed not in seeds:
        raise ValueError(f"{where}.seed: {curation.backbone} has no seed {curation.seed} (it has {seeds})")


def _check_chain(study: "Study", chain: list[str]) -> None:
    """No run is built on itself, by its initial backbone or by those that its data were chosen with."""
    run = study.runs[chain[-1]]
    chosen_with = [study.curations[n].backbone for n in getattr(run, "data", []) if n in study.curations]
    for name in [run.init, *chosen_with]:
        if name in chain:
            raise ValueError(f"runs.{name}: a circle, {' -> '.join([*chain[chain.index(name) :], name])}")
        if name in study.runs:
            _check_chain(study, [*chain, name])
