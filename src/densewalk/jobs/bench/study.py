"""The study that `densewalk bench` writes: networks as runs, found data sets as evaluations. Free of torch."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from densewalk.core.errors import UserError
from densewalk.core.settings import Settings
from densewalk.core.text.complaints import did_you_mean
from densewalk.data.download.find import FoundDataset, describe_signs
from densewalk.data.storage.places import is_file, is_folder, resolve
from densewalk.jobs.bench.networks import BenchNetwork
from densewalk.models.architecture import abilities_of
from densewalk.study.config import Study, parse_study
from densewalk.study.registry import evaluations, parse_evaluation
from densewalk.study.shorthand.evaluation_presets import expand_evaluations

HEADER = """\
# Written by `densewalk bench`, which adds to it: runs are rows, evaluations are columns. What is here stays as it is, so settings may be
# changed; comments are not kept. Run it by hand:  snakemake --directory FOLDER --cores all all   (FOLDER: this file's)
"""


class BenchEvaluation(Settings):
    """One entry of evaluations.yaml. data: a name of datasets.yaml. requires: what must lie below the root besides the set's signs."""

    data: str
    protocol: str
    settings: dict[str, Any]
    requires: str | None = None
    costly: bool = False


@lru_cache
def offered() -> dict[str, BenchEvaluation]:
    """All evaluations that bench knows, by name."""
    content = yaml.safe_load(files("densewalk.jobs.bench").joinpath("evaluations.yaml").read_text())
    return {name: BenchEvaluation.model_validate(entry) for name, entry in content.items()}


def wanted_evaluations(found: Sequence[FoundDataset], protocols: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """Name -> evaluation of a study, for each data set and protocol; by default all protocols but the costly ones.

    Raises:
        UserError: an unknown protocol, or one without data.
    """
    for protocol in protocols or ():
        if protocol not in evaluations():
            near = did_you_mean(protocol, evaluations())
            raise UserError(f"--protocols: there is no protocol '{protocol}'{near}", allowed=", ".join(evaluations()))
    wanted: dict[str, dict[str, Any]] = {}
    for name, entry in offered().items():
        if entry.protocol not in protocols if protocols is not None else entry.costly:
            continue
        for dataset in (one for one in found if one.name == entry.data and _has(one.root, entry.requires)):
            wanted[_unused(name, wanted)] = {"protocol": entry.protocol, "settings": settings_on(dataset, entry)}
    if without := [p for p in protocols or () if p not in {evaluation["protocol"] for evaluation in wanted.values()}]:
        data = [entry for entry in offered().values() if entry.protocol == without[0]]
        looked_for = "; ".join(describe_signs(entry.data) + (f", {entry.requires}" if entry.requires else "") for entry in data)
        raise UserError(f"--protocols: no data for {without[0]} below --data", allowed=looked_for or "no data set is known for it")
    return wanted


def settings_on(dataset: FoundDataset, entry: BenchEvaluation) -> dict[str, Any]:
    """The settings on a data set. A part of a set has another name in the tables: published values are of the whole."""
    settings, lacks = {"root": str(dataset.root), **entry.settings}, dataset.lacks
    if "masks" in settings and not _has(dataset.root, settings["masks"]):
        lacks = (*lacks, f"without {settings.pop('masks')}")
    if lacks:
        settings["dataset"] += f" ({lacks[0]})"
    return settings


def extended(
    study: dict[str, Any], networks: Sequence[BenchNetwork], wanted: dict[str, dict[str, Any]]
) -> tuple[dict[str, Any], list[str], dict[str, str]]:
    """The study with new rows and columns; what is in it stays.

    Returns:
        The study, the runs of the networks, and for each evaluation that no network can have, why.
    """
    study = {**study, "evaluations": expand_evaluations(study.get("evaluations", {}))}
    runs, checkpoints, columns = ({**study.get(key, {})} for key in ("runs", "checkpoints", "evaluations"))
    rows = [_add_network(network, runs, checkpoints) for network in networks]
    for name, evaluation in wanted.items():
        same = [other for other in columns.values() if _is_same(other, evaluation)]
        if not same:
            columns[_unused(name, columns)] = evaluation
    content = {"study": study.get("study", "Benchmark"), **study, "checkpoints": checkpoints, "runs": runs}
    bare = parse_study({key: value for key, value in content.items() if key not in ("evaluations", "baseline") and value}, "the study")
    known = study.get("runs", {})
    left_out: dict[str, str] = {}
    limited: dict[str, dict[str, Any]] = {}
    for name, evaluation in columns.items():
        able = list(_able(bare, evaluation))
        if "runs" in evaluation:
            able = [run for run in able if run in evaluation["runs"] or run not in known]
        if able:
            others = {key: value for key, value in evaluation.items() if key != "runs"}
            limited[name] = others if len(able) == len(runs) else {"protocol": others["protocol"], "runs": able, **others}
        else:
            left_out[name] = "no network has what it needs"
    return {**content, "evaluations": limited}, rows, left_out


def as_text(study: dict[str, Any]) -> str:
    """The study as YAML, the innermost mappings in one line each."""
    plain = {key: value for key, value in study.items() if value}
    return HEADER + yaml.dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=None, width=130)


def _add_network(network: BenchNetwork, runs: dict[str, Any], checkpoints: dict[str, Any]) -> str:
    """Add a run, and its checkpoint, unless they are there; the run's name."""
    init = dict(network.init)
    if network.checkpoint is not None:
        same = [name for name, entry in checkpoints.items() if network.checkpoint.items() <= entry.items()]
        name = same[0] if same else _unused(f"{network.run}_file", checkpoints)
        checkpoints[name] = checkpoints.get(name, network.checkpoint)
        init = {"init": name}
    run = {"method": "none", **init}
    for name, other in runs.items():
        if run.items() <= other.items():
            return name
    name = _unused(network.run, runs)
    runs[name] = run
    return name


def _able(study: Study, evaluation: dict[str, Any]) -> Iterable[str]:
    needs = parse_evaluation(evaluation["protocol"], evaluation["settings"]).needs
    return (run for run in study.runs if needs <= abilities_of(study.arch_of(run)))


def _is_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """True for one protocol on one folder's data, whatever else was changed; several of a protocol on one folder differ in their data."""
    names = ("root", "layout", "year", "clusters", "ids")
    return one["protocol"] == other["protocol"] and all(one["settings"].get(n) == other["settings"].get(n) for n in names)


def _unused(name: str, taken: Iterable[str]) -> str:
    number, found, taken = 1, name, set(taken)
    while found in taken:
        number += 1
        found = f"{name}_{number}"
    return found


def _has(root: Path, part: str | None) -> bool:
    return part is None or is_file(place := resolve(root / part)) or is_folder(place)
