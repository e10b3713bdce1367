"""Checks of a study that look at two of its sections: names, chains, seeds, accumulation."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from densewalk.core.text.complaints import did_you_mean
from densewalk.curation.settings import CurationSettings
from densewalk.models.architecture import abilities_of, is_vit, shape_of
from densewalk.models.catalog import published
from densewalk.models.families.abilities import ABILITIES
from densewalk.models.families.own_code import OWN
from densewalk.study.published_rows import check_published_rows
from densewalk.study.runs import BaseEvaluation, Baseline, BaseRun, ChangedRun, TaughtRun, TrainedRun

if TYPE_CHECKING:
    from densewalk.study.config import Study

OR_PUBLIC = "or what `densewalk checkpoints` lists"
MOST_CHAIN = 100  # runs, each built on the one before
RESERVED = {"cache", "data", "logs", "specs", "state", "tables", "random"}
RESERVED_EVALUATIONS = {"run", "training", "features"}  # other files in the folder of a run and seed


def check_study(study: "Study") -> None:
    """Require that every name that is used exists, once, and that no run is built on itself.

    Raises:
        ValueError: the first thing that is wrong, with its key.
    """
    names = [*study.videos, *study.images, *study.curations]
    twice = sorted({n for n in names if names.count(n) > 1} | (study.checkpoints.keys() & study.runs.keys()))
    if twice:
        raise ValueError(f"used twice as a name: {', '.join(twice)}")
    for name, run in study.runs.items():
        _check_run(study, f"runs.{name}", name, run)
    for name, curation in study.curations.items():
        _check_curation(study, f"curations.{name}", curation)
    _check_chains(study)
    _require_runs(study, "baseline", [study.baseline] if study.baseline else [])
    _check_accumulation(study)
    check_published_rows(study)
    unknown = sorted(set(study.pictures.sources or []) - set(names))
    if unknown:
        found = f"neither a video nor an image folder: {unknown[0]}{did_you_mean(unknown[0], names)}"
        raise ValueError(f"pictures.sources: {found}; allowed: {', '.join(names)}")
    for name, evaluation in study.evaluations.items():
        if name in RESERVED_EVALUATIONS:
            raise ValueError(f"evaluations.{name}: the name '{name}' is taken; choose another")
        _require_runs(study, f"evaluations.{name}.runs", evaluation.runs or [])
        _check_seeds(study, f"evaluations.{name}.seeds", evaluation)
    _check_abilities(study)


def _check_abilities(study: "Study") -> None:
    """Require networks that the methods can train, and that give what the evaluations need, by their architectures' names."""
    for name, run in study.runs.items():
        arch = study.arch_of(name)
        if isinstance(run, ChangedRun) and run.init in study.runs and study.gives(run.init) < abilities_of(arch):
            found = f"{run.method} starts from the layers of a backbone, and {run.init} gives a changed map alone"
            raise ValueError(f"runs.{name}.init: {found}; to do: start from the run that {run.init} starts from")
        if isinstance(run, ChangedRun) and not isinstance(run, TrainedRun) and "keys" not in abilities_of(arch):
            raise ValueError(f"runs.{name}.init: {run.method} changes vision transformers only, not {arch}; to do: choose another init")
        if isinstance(run, TrainedRun) and not is_vit(arch):
            found = f"{run.method} trains plain vision transformers only, not {arch}"
            raise ValueError(f"runs.{name}.init: {found}; to do: choose another init, or method: none to evaluate it as it is")
        shape = shape_of(arch)
        if isinstance(run, TrainedRun) and shape is not None and (obstacle := run.settings.obstacle_to_network(shape)):
            raise ValueError(f"runs.{name}.settings: {obstacle}")
    for name, evaluation in study.evaluations.items():
        for run_name in evaluation.runs or study.runs:
            arch = study.arch_of(run_name)
            if missing := sorted(evaluation.settings.needs - study.gives(run_name)):
                needed = " and ".join(ABILITIES[ability] for ability in missing)
                found = f"{evaluation.protocol} needs {needed}, which {run_name} ({arch}) has not"
                able = [other for other in study.runs if evaluation.settings.needs <= study.gives(other)]
                raise ValueError(
                    f"evaluations.{name}: {found}; to do: name in `runs` those that have it ({', '.join(able) or 'none here'})"
                )


def _require_runs(study: "Study", where: str, names: Iterable[str]) -> None:
    if unknown := sorted(set(names) - study.runs.keys()):
        near = did_you_mean(unknown[0], study.runs)
        raise ValueError(f"{where}: no such run: {', '.join(unknown)}{near}; allowed: {', '.join(study.runs)}")


def _check_seeds(study: "Study", where: str, evaluation: BaseEvaluation) -> None:
    """Require that the seeds of an evaluation exist, and that each of its runs has one of them: a row would be missing unseen."""
    if evaluation.seeds is None:
        return
    seeds = {name: run.seeds for name, run in study.runs.items() if evaluation.runs is None or name in evaluation.runs}
    known = sorted({seed for own in seeds.values() for seed in own})
    if unknown := [seed for seed in evaluation.seeds if seed not in known]:
        raise ValueError(f"{where}: no run that it is applied to has seed {unknown[0]}; allowed: {', '.join(map(str, known))}")
    if without := [name for name, own in seeds.items() if not set(own) & set(evaluation.seeds)]:
        found = f"{without[0]} has none of them (it has {seeds[without[0]]})"
        raise ValueError(f"{where}: {found}; to do: give one of its seeds, or leave the run out in `runs`")


def _check_run(study: "Study", where: str, name: str, run: BaseRun) -> None:
    if name in RESERVED:
        raise ValueError(f"{where}: the name '{name}' is taken; choose another")
    inits = ["random", *study.checkpoints, *study.runs]
    if run.init not in inits:
        found = f"'{run.init}' is neither a checkpoint nor a run{did_you_mean(run.init, [*inits, *published()])}"
        raise ValueError(f"{where}.init: {found}; allowed: {', '.join(inits)}, {OR_PUBLIC}")
    own = run.backbone if isinstance(run, Baseline) else None
    if own is not None and (run.init != "random" or run.arch is not None):
        raise ValueError(
            f"{where}.backbone: give no init and no arch with it (init: {run.init}, arch: {run.arch}); for a file of weights "
            f"name {OWN}{own} as the `arch` of a checkpoint"
        )
    if own is None and (run.init == "random") != (run.arch is not None):
        raise ValueError(f"{where}.arch: give it exactly where init is random (init: {run.init}, arch: {run.arch})")
    if isinstance(run, TrainedRun) and (obstacle := run.settings.obstacle()):
        raise ValueError(f"{where}.settings: {obstacle}")
    for teacher in run.teachers if isinstance(run, TaughtRun) else []:
        if teacher not in inits[1:]:
            found = f"'{teacher}' is neither a checkpoint nor a run{did_you_mean(teacher, [*inits[1:], *published()])}"
            raise ValueError(f"{where}.teachers: {found}; allowed: {', '.join(inits[1:]) or 'none yet'}, {OR_PUBLIC}")
        _require_seeds(study, where, run, teacher)
    sources = [*study.videos, *study.images, *study.curations]
    for source in run.data if isinstance(run, TrainedRun) else []:
        if source not in sources:
            allowed = ", ".join(sources) or "none yet"
            found = f"'{source}' is no video, image folder or curation{did_you_mean(source, sources)}"
            raise ValueError(f"{where}.data: {found}; allowed: {allowed}")
    if isinstance(run, TrainedRun):
        _check_frames(study, f"{where}.data", run)
    _require_seeds(study, where, run, run.init)


def _check_frames(study: "Study", where: str, run: TrainedRun) -> None:
    """Require frames that follow each other, and their times, of methods whose samples are cut from such."""
    needs = run.settings.CUT_FROM
    sources = [source for name in run.data for source in (study.curations[name].data if name in study.curations else [name])]
    for name in sources if needs != "images" else ():
        folder = study.images.get(name)
        if folder is not None and folder.layout == "pictures":
            todo = "give videos, or folders of frames (layout: sequences)"
            raise ValueError(f"{where}: {run.method} learns from videos, and {name} holds unrelated images; to do: {todo}")
        if folder is not None and folder.fps is None and needs == "timed frames":
            found = f"{run.method} takes frames some time apart, and images.{name}.fps is not given"
            raise ValueError(f"{where}: {found}; to do: give the frames a second of the sequences (DAVIS: 24)")


def _require_seeds(study: "Study", where: str, run: BaseRun, built_on: str) -> None:
    """Require that the run that another is built on has one seed, or all of the other's."""
    seeds = study.runs[built_on].seeds if built_on in study.runs else []
    missing = [seed for seed in run.seeds if seed not in seeds]
    if missing and len(seeds) > 1:
        raise ValueError(f"{where}.seeds: {built_on} has no seed {missing[0]} (it has {seeds})")


def _check_curation(study: "Study", where: str, curation: CurationSettings) -> None:
    images = [*study.videos, *(name for name, folder in study.images.items() if folder.layout == "pictures")]
    unknown = [name for name in curation.data if name not in images]
    if unknown:
        allowed = ", ".join(images) or "none yet"
        found = f"'{unknown[0]}' is neither a video nor a folder of images{did_you_mean(unknown[0], images)}"
        raise ValueError(f"{where}.data: {found}; allowed: {allowed}")
    backbones = [*study.checkpoints, *study.runs]
    if curation.backbone not in backbones:
        found = f"'{curation.backbone}' is neither a checkpoint nor a run{did_you_mean(curation.backbone, [*backbones, *published()])}"
        raise ValueError(f"{where}.backbone: {found}; allowed: {', '.join(backbones)}, {OR_PUBLIC}")
    seeds = study.runs[curation.backbone].seeds if curation.backbone in study.runs else []
    if seeds and curation.seed is not None and curation.seed not in seeds:
        raise ValueError(f"{where}.seed: {curation.backbone} has no seed {curation.seed} (it has {seeds})")


def _check_chains(study: "Study") -> None:
    """Require that no run is built on itself, by its initial backbone, its teachers or those that its data were chosen with."""
    lengths: dict[str, int] = {}  # of the longest chain that ends in a run

    def length(chain: list[str]) -> int:
        name = chain[-1]
        if len(chain) > MOST_CHAIN:
            raise ValueError(f"runs.{chain[0]}: it is built on a chain of more than {MOST_CHAIN} runs")
        if name not in lengths:
            run = study.runs[name]
            chosen_with = [study.curations[n].backbone for n in getattr(run, "data", []) if n in study.curations]
            taught_by = run.teachers if isinstance(run, TaughtRun) else []
            built_on = [other for other in (run.init, *chosen_with, *taught_by) if other in study.runs]
            for other in built_on:
                if other in chain:
                    raise ValueError(f"runs.{other}: a circle, {' -> '.join([*chain[chain.index(other) :], other])}")
            lengths[name] = 1 + max((length([*chain, other]) for other in built_on), default=0)
        if lengths[name] > MOST_CHAIN:
            raise ValueError(f"runs.{name}: it is built on a chain of more than {MOST_CHAIN} runs")
        return lengths[name]

    for name in study.runs:
        length([name])


def _check_accumulation(study: "Study") -> None:
    parts = study.execution.accumulate
    if isinstance(parts, dict):
        _require_runs(study, "execution.accumulate", parts)
    for name, run in study.runs.items():
        if isinstance(run, TrainedRun) and (obstacle := run.settings.obstacle_to_parts(study.execution.parts_of(name))):
            raise ValueError(f"execution.accumulate: run '{name}': {obstacle}; to do: give accumulate by run, for those that allow it")
    for name, count in study.execution.accumulate_evaluations.items():
        if name not in study.evaluations:
            raise ValueError(f"execution.accumulate_evaluations: no such evaluation: {name}; allowed: {', '.join(study.evaluations)}")
        if obstacle := study.evaluations[name].settings.obstacle_to_parts(count):
            raise ValueError(f"execution.accumulate_evaluations: evaluation '{name}': {obstacle}")
