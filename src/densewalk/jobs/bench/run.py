"""Evaluate networks on the data sets below a folder, by one command: a study is written and run, and its tables are printed.

    densewalk bench dinov2_vits14 dino_vits16 --data /datasets
    densewalk bench weights.pth --arch timm/resnet50 --data /datasets --protocols davis,knn --out resnets
    densewalk bench dinov2_vits14 --data /datasets -- --profile slurm      # options of Snakemake

DIR/config.yaml is the study, DIR/results its results. Another call with the same --out adds rows and columns, and makes nothing again.
"""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from densewalk.core.config_file import read_config
from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write
from densewalk.core.progress import columns
from densewalk.data.download.catalog import datasets
from densewalk.data.download.find import FoundDataset, describe_signs, find_datasets
from densewalk.jobs.bench.networks import BenchNetwork, network_of
from densewalk.jobs.bench.study import as_text, extended, wanted_evaluations
from densewalk.models.catalog import FOLDER as CHECKPOINTS
from densewalk.models.families.own_code import module_file
from densewalk.results.missing import survey
from densewalk.study.config import Study, parse_study
from densewalk.study.text.own_code import own_code_lines

WHERE = ("--cores", "-c", "--jobs", "-j", "--profile", "--executor", "-e")  # options that say where and how much Snakemake runs
CONFIG = "config.yaml"


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line. options: of Snakemake."""

    networks: Sequence[str]
    data: Path
    protocols: Sequence[str] | None = None
    out: Path = Path("bench")
    arch: str | None = None
    key: str | None = None
    options: Sequence[str] = ()
    dry_run: bool = False


def bench(request: Request) -> int:
    """Write the study, run it and print its tables; the exit status is Snakemake's.

    Raises:
        UserError: no data, an unknown network or protocol, or a file that is missing, before anything runs.
    """
    snakefile = find_snakefile()
    found = find_datasets(request.data)
    if not found:
        looked_for = "; ".join(describe_signs(name) for name, dataset in datasets().items() if dataset.signs)
        raise UserError(
            f"no known data set lies in {request.data} or up to four folders below it",
            allowed=looked_for,
            todo="correct --data, or get one by `densewalk data NAME`",
        )
    wanted = wanted_evaluations(found, request.protocols)
    networks = [network_of(given, request.arch, request.key) for given in request.networks]
    file = request.out / CONFIG
    before = read_config(file) if file.exists() else {}
    if before:
        parse_study(before, str(file))  # a person may have changed it
    content, rows, left_out = extended(before, networks, wanted)
    study = parse_study(content, str(file))
    print("\n".join(_describe(found, study, rows, left_out)))
    roots = modules_elsewhere(networks, request.out)
    print("".join(f"modules are found by PYTHONPATH={root}: set it, too, for other commands on this study\n" for root in roots), end="")
    sys.path[:0] = roots
    with chdir(request.out if request.out.is_dir() else Path()):
        print("\n".join(own_code_lines(study)))
    if request.dry_run:
        absent = [name for name, dataset in datasets().items() if dataset.signs and name not in {one.name for one in found}]
        missing = _missing(study, request.out)
        print("\n".join([*_to_do(study, request.out), *(f"missing: {line}; {how}" for line, how in missing.items())]))
        print(f"data sets that are not there: {', '.join(absent) or 'none'}")
        return 0
    if content != before:
        with atomic_write(file) as temporary:
            temporary.write_text(as_text(content), encoding="utf-8")
    _share_checkpoints(request.out)
    if missing := _missing(study, request.out):
        raise UserError("; ".join(missing), todo=f"densewalk fetch --config {shlex.quote(str(file))}, and give this command again")
    status = _run(_command(snakefile, request), snakefile.parent, roots)
    print(tables(study, request.out))
    return status


def find_snakefile() -> Path:
    """The Snakefile of the clone that this package is in, or of the folder where one is.

    Raises:
        UserError: there is none.
    """
    places = [Path(__file__).resolve().parents[4] / "Snakefile", Path.cwd() / "Snakefile"]
    if found := next((place for place in places if place.is_file()), None):
        return found
    raise UserError(f"there is no {places[0]}", todo="give this command in a clone of the repository, where the Snakefile is")


def tables(study: Study, out: Path) -> str:
    """The tables of all results that are there, with published values in brackets."""
    from densewalk.results.formats import condensed
    from densewalk.results.records import read_results
    from densewalk.results.tables import of_task, wide_table

    results = out / study.results
    with chdir(out):  # which the study's paths are relative to
        plan = study.plan()
    records = read_results(plan.records(results, "all"), plan.named)
    texts = []
    for task in study.task_tables:
        of_this = of_task(records, task)
        if of_this:
            shown = condensed(wide_table(of_this)).drop(columns=["method", "init", "seeds", "compat"], errors="ignore")
            texts.append(f"\n{task}\n{columns(list(shown.columns), shown.astype(str).to_numpy().tolist())}")
    return "\n".join([*texts, f"\nmore in {results / 'report.html'} and {results / 'tables'}" if texts else "no results yet"])


def _describe(found: Sequence[FoundDataset], study: Study, rows: Sequence[str], left_out: dict[str, str]) -> list[str]:
    """What was found, and which networks and evaluations the study has."""
    data = [(one.name, str(one.root), "; ".join(one.lacks) or "whole") for one in found]
    evaluations = [
        (name, e.protocol, e.settings.dataset, ", ".join(e.runs or ["all"]), e.settings.root) for name, e in study.evaluations.items()
    ]
    return [
        columns(("data set", "folder", "files"), data),
        "",
        columns(("network", "architecture", "asked for now"), [(n, study.arch_of(n), "yes" if n in rows else "") for n in study.runs]),
        "",
        columns(("evaluation", "protocol", "data", "networks", "folder"), evaluations),
        *(f"{name} is left out: {why}" for name, why in left_out.items()),
        "",
    ]


def _to_do(study: Study, out: Path) -> list[str]:
    """A line for each network with what would run of it."""
    lines = []
    if not out.is_dir():
        lines = [f"  {run}: {', '.join(['backbone', *(e for r, _, e in study.evaluation_jobs() if r == run)])}" for run in study.runs]
    else:
        with chdir(out):
            found = list(survey(study.plan(), Path(study.results)))
        for one in found:
            names = [output.evaluation or "backbone" for output in (one.backbone, *one.results) if output.state != "done"]
            lines += [f"  {one.backbone.run}: {', '.join(names)}"] if names else []
    return ["would run:", *lines] if lines else ["nothing would run: all results are there"]


def _missing(study: Study, out: Path) -> dict[str, str]:
    """Files of weights that are not there, and how to get them; a public one may also lie where `densewalk fetch` puts it from here."""
    used = {run.init for run in study.runs.values()}
    found: dict[str, str] = {}
    for name, checkpoint in study.checkpoints.items():
        shared = Path(checkpoint.file) if not (out / CHECKPOINTS).exists() else out / checkpoint.file
        if name in used and not (out / checkpoint.file).is_file() and not shared.is_file():
            from densewalk.jobs.doctor import how_to_get  # torch

            found[f"{checkpoint.file} of {name} does not exist"] = how_to_get(name, checkpoint, out / CONFIG)
    return found


def _share_checkpoints(out: Path) -> None:
    """Let the study see the checkpoints that were fetched from here."""
    here, there = Path(CHECKPOINTS), out / CHECKPOINTS
    if here.is_dir() and not there.exists() and out.resolve() != Path.cwd():
        there.symlink_to(os.path.relpath(here.resolve(), out.resolve()))


def modules_elsewhere(networks: Sequence[BenchNetwork], out: Path) -> list[str]:
    """The folders of the user's modules that jobs in the study's folder would not find by themselves, or of which they would find others.

    Raises:
        UserError: in the study's folder itself lies another module of this name.
    """
    roots: dict[str, None] = {}
    for code in (network.code for network in networks if network.code is not None and ".py:" not in network.init["backbone"]):
        found = module_file(code.module, out.resolve())
        if found is not None and found.resolve() == code.file.resolve():
            continue
        if found is not None and found.is_relative_to(out.resolve()):
            raise UserError(
                f"{code.module} is {found} in the study's folder, not {code.file}", todo="name its file: folder/file.py:function"
            )
        roots[str(code.root.resolve())] = None
    return list(roots)


def _command(snakefile: Path, request: Request) -> list[str]:
    """Snakemake's command line."""
    says_where = any(option.split("=")[0] in WHERE or option.startswith(("-c", "-j")) for option in request.options)
    cores = [] if says_where else ["--cores", "all"]
    study = ["--snakefile", str(snakefile), "--directory", str(request.out.resolve())]
    return [sys.executable, "-m", "snakemake", "all", *study, "--keep-going", *cores, *request.options]


def _run(command: Sequence[str], folder: Path, roots: Sequence[str] = ()) -> int:
    """Run Snakemake in a folder, from which its options name profiles; it gets Ctrl-C itself and ends in its own way.

    Args:
        roots: folders of modules, for Snakemake and its jobs, which get its environment here and on Slurm (sbatch --export=ALL).
    """
    path = os.pathsep.join([*roots, *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, **({"PYTHONPATH": path} if roots else {})})
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
