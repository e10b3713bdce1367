"""One short function for each command; its docstring is the command's help.

Heavy imports happen inside the functions, so that `check` and `--help` answer at once.
"""

import argparse
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import chdir, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from densewalk.core.errors import UserError
from densewalk.core.text.complaints import did_you_mean

if TYPE_CHECKING:
    from densewalk.study.config import Study

WHOLE_TABLES = ("all", "cost", "gain")  # beside one for each task
STUDY_FILE = "config.yaml"  # what Snakemake reads in the folder of its --directory


@contextmanager
def study_in_its_folder(config: Path, results: Path | None = None) -> Iterator[tuple["Study", Path]]:
    """The study and its folder of results, while the study's folder is the working directory: its paths are relative to that.

    The folder is that of a file named config.yaml (`snakemake --directory FOLDER`), for another one where you are (`--configfile FILE`).

    Args:
        results: given in place of the study's own, from where you are.
    """
    from densewalk.study.config import load_study

    study = load_study(config)
    folder = _folder_of(config)
    if results is not None and folder.resolve() != Path.cwd():
        results = results.absolute()
    with chdir(folder):
        yield study, _results(results, study.results)


def _folder_of(config: Path) -> Path:
    """The study's folder."""
    return config.parent if config.name == STUDY_FILE else Path()


def _results(given: Path | None, planned: str) -> Path:
    """The folder of results: that of `--results`, which must be there, or the study's, which its first job makes.

    Raises:
        UserError: there is no such folder, or a file is there.
    """
    folder = given or Path(planned)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder of results", todo="give --results a study's folder of results")
    if given is not None and not folder.exists():
        raise UserError(f"--results {folder}: there is no such folder", todo="give a study's folder of results, or leave it out")
    return folder


def check(args: argparse.Namespace) -> None:
    """Validate a study's configuration, or print all of its settings."""
    from densewalk.data.video.stated import stated_length
    from densewalk.study.amounts import require_amounts
    from densewalk.study.config import load_study
    from densewalk.study.text.own_code import own_code_lines

    study = load_study(args.config)
    if args.resolved:
        from densewalk.core.config_file import read_config
        from densewalk.study.text.resolved import resolved_yaml

        print(resolved_yaml(study, read_config(args.config), args.config.name), end="")
        return
    jobs, evaluations = len(list(study.jobs())), len(list(study.evaluation_jobs()))
    seeds = f" ({jobs} with their seeds)" if jobs != len(study.runs) else ""
    print(f"{args.config} is a study of {len(study.runs)} runs{seeds} and {evaluations} evaluations")
    with chdir(_folder_of(args.config)):
        require_amounts(study, Path(study.results), stated_length)
        for line in own_code_lines(study):
            print(line)
    print(f"videos, folders and checkpoints were not looked at: densewalk doctor --config {shlex.quote(str(args.config))}")


def status(args: argparse.Namespace) -> None:
    """Print a study's runs, progress and cost."""
    from densewalk.results.changes import Changes
    from densewalk.study import status as progress
    from densewalk.study.upkeep.forgotten import forgotten

    with study_in_its_folder(args.config, args.results) as (study, results):
        print(progress.table(list(progress.status(study, results))))
        for found in forgotten(Changes(study.plan(), results)):
            print(found.text(args.config))


def why(args: argparse.Namespace) -> None:
    """Say which setting, input or version of a backbone or result differs from what the study wants now."""
    from densewalk.study.upkeep.why import why as explain

    home = Path.cwd()
    with study_in_its_folder(args.config, args.results) as (study, results):
        # the output is named from where one is
        output = args.output if Path.cwd() == home else Path(os.path.relpath(home / args.output))
        print("\n".join(explain(study, output, results, args.config)))


def explain(args: argparse.Namespace) -> None:
    """Say which setting makes which part of the difference between two evaluations, by scoring one run with the settings between them."""
    from densewalk.cli.job_commands import with_cpus
    from densewalk.jobs import explain as ladder

    question = ladder.Question(args.first, args.second, args.run, args.seed, args.metric, args.limit, args.pairs)
    with study_in_its_folder(args.config, args.results) as (study, results):
        args.execution = study.execution
        for line in ladder.answer(study, question, results, with_cpus(args), only_plan=args.dry_run):
            print(line)


def rename(args: argparse.Namespace) -> None:
    """Move what a run, an evaluation or prepared data have left to the name that they have in the study now."""
    from densewalk.study.upkeep.rename import rename as move

    with study_in_its_folder(args.config, args.results) as (study, results):
        print("\n".join(move(study, args.old, args.new, results)))


def stale(args: argparse.Namespace) -> None:
    """List what other code, packages, files or data have made than there are now, with the reasons."""
    from densewalk.study.stale import find_stale, states_of, write_targets

    with study_in_its_folder(args.config, args.results) as (study, results):
        found = list(find_stale(study, results))
        print("\n".join([*(one.text for one in found), f"{len(found)} outputs are stale"]))
        if not args.rerun:
            return
        if folders := states_of(study, found, results):
            from densewalk.training.state import forget

            for folder in folders:
                forget(folder)
        targets = write_targets(found, results).absolute()
    of_a_folder = args.config.name == STUDY_FILE
    place = f" --directory {shlex.quote(str(args.config.parent))}" if of_a_folder else f" --configfile {shlex.quote(str(args.config))}"
    place = "" if args.config == Path(STUDY_FILE) else place
    print(f"to make exactly these again: snakemake --cores all all{place} --forcerun $(cat {shlex.quote(os.path.relpath(targets))})")


def plan(args: argparse.Namespace) -> None:
    """Estimate a study before anything is queued: jobs, GPU-hours, memory, disk, and what dominates."""
    from densewalk.data.video.stated import stated_length
    from densewalk.study import estimate_text
    from densewalk.study.amounts import Assumed
    from densewalk.study.estimate import estimate
    from densewalk.study.gpus import gpu_named

    gpu = gpu_named(args.gpu)
    assumed = Assumed(args.hours, args.fps, args.images, args.utilization, stated_length)
    with study_in_its_folder(args.config, args.results) as (study, results):
        print(estimate_text.text(study, estimate(study, gpu, results, assumed), results, args.gpu))


def bench(args: argparse.Namespace) -> int:
    """Evaluate networks on all known data sets below a folder, and print the tables with published values."""
    from densewalk.jobs.bench.run import Request
    from densewalk.jobs.bench.run import bench as run_bench

    choice = {"arch": args.arch, "key": args.key, "options": args.snakemake_options, "dry_run": args.dry_run}
    return run_bench(Request(args.networks, args.data, args.protocols, args.out, **choice))


def doctor(args: argparse.Namespace) -> int:
    """Look for what would stop a study; the exit status is 2 if anything would."""
    from densewalk.jobs import doctor as examination

    home = Path.cwd()
    with study_in_its_folder(args.config) if args.config else nullcontext((None, None)) as (study, _):
        if Path.cwd() != home:
            print(f"paths are the study's, in {args.config.parent}; so are the commands")
        findings = examination.examine(study, slurm=args.slurm, config=args.config)
    print(examination.table(findings))
    if args.config is None and Path(STUDY_FILE).is_file():
        print(f"{STUDY_FILE} was not looked at: densewalk doctor --config {STUDY_FILE}")
    return UserError.exit_status if any(finding.problem for finding in findings) else 0


def checkpoints(_args: argparse.Namespace) -> None:
    """List the public backbones."""
    from densewalk.models.catalog import listing

    print(listing())


def fetch(args: argparse.Namespace) -> None:
    """Download checkpoints, resumed and checked, to where Snakemake's jobs look for them."""
    from densewalk.jobs.fetch import fetch_checkpoints

    with study_in_its_folder(args.config) if args.config else nullcontext((None, None)) as (study, _):
        for line in fetch_checkpoints(args.names, study):
            print(line)


def data(args: argparse.Namespace) -> None:
    """Download, unpack and check a data set."""
    from densewalk.jobs.fetch import VideoChoice, prepare

    choice = VideoChoice(args.video_name, args.video, args.codec, args.height)
    print(prepare(args.name, args.receipt or Path(f"results/data/sets/{args.name}.json"), args.folder, choice))


def schema(_args: argparse.Namespace) -> None:
    """Print the JSON schema of a study's configuration."""
    from densewalk.study.config import json_schema

    print(json.dumps(json_schema(), indent=2))


def deviations(_args: argparse.Namespace) -> None:
    """Print the page on switches."""
    from densewalk.study.deviations import page

    print(page(), end="")


def probe(args: argparse.Namespace) -> None:
    """Describe a video file."""
    from dataclasses import asdict

    from densewalk.data.video.probe import probe as probe_video

    print(json.dumps(asdict(probe_video(args.video)), indent=2, default=str))


def add_video(args: argparse.Namespace) -> None:
    """Report on a video or a folder of frames, draw its contact sheet and write a study."""
    from densewalk.jobs import add_video as add_video_job

    out = None if args.out == "-" else Path(args.out)
    whole = args.all_frames or None
    add_video_job.add_video(args.video, out, args.sheet, whole=whole, fps=args.fps, masks=args.masks, ignore=args.ignore)


def generate(args: argparse.Namespace) -> None:
    """Write the synthetic city walk."""
    from densewalk.jobs.prepare import generate_walk
    from densewalk.synthetic.settings import SyntheticSettings

    generate_walk(SyntheticSettings.model_validate(args.settings), args.root)


def tables(args: argparse.Namespace) -> None:
    """Write a table of result records as CSV, Markdown and LaTeX, or with --columns a table for a paper."""
    from densewalk.cli.current import warn_of_others
    from densewalk.results.plan import read_plan
    from densewalk.results.records import results_in
    from densewalk.study.registry import metrics_of_tables

    if args.plan is not None and args.records:
        raise UserError("densewalk tables takes records, or --plan")
    known = [*WHOLE_TABLES, *metrics_of_tables()]
    if args.table not in (None, *known):
        raise UserError(f"no table is called '{args.table}'{did_you_mean(args.table, known)}", allowed=", ".join(known))
    if args.plan is None and not args.records and not Path("results").is_dir():
        raise UserError(f"there is no folder results in {Path.cwd()}", todo="name records, or folders of results")
    plan = read_plan(args.plan) if args.plan else None
    results = _results(args.results, plan.results if plan else "results")
    given = [record for path in args.records or [Path("results")] for record in (results_in(path) if path.is_dir() else [path])]
    records, named = (plan.records(results, args.table or "all"), plan.named) if plan else (given, None)
    if args.columns is not None:
        from densewalk.core.files import atomic_write
        from densewalk.results.paper.formats import FORMATS
        from densewalk.results.paper.tables import paper_table

        table = paper_table(records, args.columns, args.pivot, args.table, metrics_of_tables(), named)
        text = FORMATS[args.format or "markdown"](table)
        warn_of_others([] if plan else given)
        if args.out is None:
            print(text, end="")
            return
        with atomic_write(args.out) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return
    if args.table is None or args.out is None or args.pivot or args.format:
        raise UserError("densewalk tables needs --table and --out, or --columns, which alone may have --pivot and --format")
    from densewalk.results.changes import mark_written
    from densewalk.results.formats import write_formats
    from densewalk.results.gain import write_gain
    from densewalk.results.pairs.differences import differences_file
    from densewalk.results.tables import write_table

    if args.table == "gain":
        cache = differences_file(results) if plan else None
        write_gain(records, args.out, metrics_of_tables(), args.baseline or (plan.baseline if plan else None), named, cache)
    else:
        write_table(records, args.table, args.out, named)
    write_formats(args.out)
    warn_of_others([] if plan else given)
    if plan is not None:
        mark_written(plan, results, args.table)


def diff(args: argparse.Namespace) -> int:
    """Compare two folders of results: which numbers differ, and why; the exit status is 1 if any does."""
    from densewalk.results.compare import compare, text, write_changes

    found = compare(args.before, args.after)
    print(text(found))
    if args.csv:
        write_changes(found, args.csv)
    return int(bool(found.changes))


def compare(args: argparse.Namespace) -> None:
    """Compare rows by their test units: intervals of the differences to the first one, over test images and over training seeds."""
    from densewalk.cli.current import warn_of_others
    from densewalk.results.pairs.rows import compare_rows, text, write_compared

    if len(args.rows) < 2:
        raise UserError("densewalk compare takes two rows or more", allowed="RUN:EVALUATION, or the file of a record")
    found = compare_rows(args.rows, args.results, args.metric, args.resamples)
    warn_of_others(path for row in (found[0].reference, *(one.row for one in found)) for path in row.paths)
    print(text(found))
    if args.csv:
        write_compared(found, args.csv)


def report(args: argparse.Namespace) -> None:
    """Write a study's tables, curves and images as one page, also while the study runs."""
    from densewalk.results.changes import mark_written
    from densewalk.results.page.page import report as write_page
    from densewalk.results.plan import Plan, read_plan

    if (args.config is None) == (args.plan is None):
        raise UserError("densewalk report takes the study's config.yaml, or --plan")

    def write(plan: Plan, results: Path, out: Path | None) -> None:
        write_page(plan, results, out or results / "report.html")
        if out is None or out.absolute() == (results / "report.html").absolute():
            mark_written(plan, results, "report")

    if args.config is None:
        plan = read_plan(args.plan)
        write(plan, _results(args.results, plan.results), args.out)
        return
    out = args.out.absolute() if args.out else None
    with study_in_its_folder(args.config, args.results) as (study, results):
        write(study.plan(), results, out)
