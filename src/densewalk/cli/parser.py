"""The command line. The workflow's rules call it; each command can be typed by hand as well.

densewalk check config.yaml                        # what is wrong with a study, without starting anything
densewalk check config.yaml --resolved             # every setting, also those that it leaves open, and where they come from
densewalk status config.yaml                       # how far it is, when it ends, what it has cost
densewalk plan config.yaml --gpu h100               # jobs, GPU-hours, memory, disk, before anything is queued
densewalk why results/dora/s0/davis.json           # which setting, input or version differs from what the study wants now
densewalk explain EVAL_A EVAL_B --run R            # which setting makes which part of a difference
densewalk rename config.yaml OLD NEW               # after a name was changed in the study: move what is there
densewalk stale config.yaml                        # what other code or data have made than there are now, and why
densewalk bench dinov2_vits14 --data /datasets     # networks on all known data sets below a folder, with published values
densewalk doctor --config config.yaml              # machine, data and checkpoints, before a GPU is asked for
densewalk data coco                                # download, unpack and check a data set, or say how to get it
densewalk checkpoints                              # the public backbones that a run's `init` may name
densewalk fetch dinov2_vits14_reg | --config FILE  # download public checkpoints, or all of a study's
densewalk probe walk.mp4                           # codec, size, frame rate, length of a video
densewalk add-video walk.mp4 --out study.yaml      # what is usable in it, a contact sheet, a study to begin with
densewalk train --spec FILE --state DIR --out DIR [--init FILE] [--data RECEIPT ...]
densewalk evaluate --spec FILE --backbone FILE --state DIR --out FILE
densewalk tables --table NAME --out FILE results   # result records -> CSV, Markdown, LaTeX
densewalk tables --columns run,J,F --format latex  # a table for a paper
densewalk report config.yaml                       # the page, also of an unfinished study
densewalk diff results_before results_after        # which numbers changed, and why
densewalk compare dino:davis neco:davis            # is a difference more than the choice of test images could make?
"""

import argparse
import inspect
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from densewalk.cli import commands, job_commands
from densewalk.core.settings import Settings
from densewalk.core.text.complaints import complaints
from densewalk.data.settings import ImagesSettings, VideoSettings
from densewalk.study.gpus import GPUS
from densewalk.synthetic.settings import SyntheticSettings
from densewalk.training.execution import Execution
from densewalk.visualization.settings import PictureSettings

Command = Callable[..., argparse.ArgumentParser]


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    top = argparse.ArgumentParser(prog="densewalk", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    subparsers = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, *paths: str) -> argparse.ArgumentParser:
        """Add the command that calls the function of its name; `paths` are arguments that must be given."""
        function = getattr(job_commands, name.replace("-", "_"), None) or getattr(commands, name.replace("-", "_"))
        text = inspect.getdoc(function)
        p = subparsers.add_parser(name, help=text, description=text)
        p.set_defaults(command=function)
        for path in paths:
            required: dict[str, Any] = {"required": True} if path.startswith("--") else {}
            p.add_argument(path, type=Path, **required)
        p.set_defaults(is_job=False)
        return p

    _add_study_commands(command)
    _add_data_commands(command)
    _add_job_commands(command)
    return top


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; what follows `--` of `bench` are options of Snakemake."""
    own, options = list(argv), []
    if own[:1] == ["bench"] and "--" in own:
        at = own.index("--")
        own, options = own[:at], own[at + 1 :]
    args = parser().parse_args(own)
    args.snakemake_options = options
    return args


def _add_study_commands(command: Command) -> None:
    """Look at a study and at its results."""
    p = command("check", "config")
    p.add_argument("--resolved", action="store_true", help="print the study with every default and every value of a preset, as YAML")
    p = command("status", "config")
    p.add_argument("--results", type=Path, help="folder of results (default: the study's own)")
    p = command("plan", "config")
    p.add_argument("--gpu", default="a100", help="whose peak and memory are taken: " + ", ".join(GPUS) + " (default: a100)")
    p.add_argument("--utilization", type=_share, help="share of the peak that is reached (default: 0.3 in bfloat16, 0.6 in float32)")
    p.add_argument("--hours", type=_positive, default=1.5, help="length of a video that is not prepared yet (default: 1.5)")
    p.add_argument("--fps", type=_positive, default=30.0, help="its frames a second (default: 30)")
    p.add_argument("--images", type=int, default=100_000, help="images of a folder that is not checked yet (default: 100000)")
    p.add_argument("--results", type=Path, help="folder of results (default: the study's own)")
    p = command("why", "output")
    p.add_argument("--config", type=Path, default=Path("config.yaml"), help="the study (default: config.yaml)")
    p.add_argument("--results", type=Path, help="folder of results (default: the study's own)")
    _add_explain(command)
    p = command("rename", "config")
    p.add_argument("old", help="the name that the run, evaluation, video, image folder or curation had")
    p.add_argument("new", help="the name that it has in the study now")
    p.add_argument("--results", type=Path, help="folder of results (default: the study's own)")
    p = command("stale", "config")
    p.add_argument("--results", type=Path, help="folder of results (default: the study's own)")
    p.add_argument("--rerun", action="store_true", help="let the stale ones start from the beginning, and list them in RESULTS/stale.txt")
    p = command("bench")
    p.add_argument("networks", nargs="+", help="public checkpoints, timm/NAME, files or folders of weights, random/ARCHITECTURE")
    p.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="below which the data sets lie")
    p.add_argument(
        "--protocols", type=_names, help="e.g. davis,knn (default: all that the data are there for, but those that train for hours)"
    )
    p.add_argument("--out", type=Path, default=Path("bench"), help="folder of the study and its results (default: bench)")
    p.add_argument("--arch", help="architecture of files that do not say theirs")
    p.add_argument("--key", help="which network of a training checkpoint, by a part of its name")
    p.add_argument("--dry-run", action="store_true", help="say what would run and what is missing; write nothing")
    p.epilog = "What follows -- are options of Snakemake: densewalk bench NAME --data FOLDER -- --profile slurm"
    p = command("doctor")
    p.add_argument("--config", type=Path, help="also look at this study's data and checkpoints (default: at this machine alone)")
    p.add_argument("--slurm", action="store_true", help="also look for Slurm's commands")
    command("schema")
    command("deviations")
    _add_tables(command)
    p = command("diff", "before", "after")
    p.add_argument("--csv", type=Path, help="also write the changes to this file")
    p = command("compare")
    p.add_argument("rows", nargs="+", help="RUN:EVALUATION, or files of records; each is compared with the first")
    p.add_argument("--metric", help="default: the first one of the record")
    p.add_argument("--results", type=Path, default=Path("results"), help="folder of results (default: results)")
    p.add_argument("--resamples", type=_count, default=9_999, help="of the test units (default: 9999)")
    p.add_argument("--csv", type=Path, help="also write the comparisons to this file")
    p = command("report")
    p.add_argument("config", type=Path, nargs="?", help="the study's configuration")
    p.add_argument("--plan", type=Path, help="the plan that the workflow writes, in its place")
    p.add_argument("--results", type=Path, help="folder of results (default: the study's own)")
    p.add_argument("--out", type=Path, help="default: report.html in the folder of results")


def _add_explain(command: Command) -> None:
    p = command("explain")
    p.add_argument("first", help="the evaluation to start from")
    p.add_argument("second", help="another one of the same protocol and data, or linear_segmentation for a linear head of the toolbox")
    p.add_argument("--run", required=True, help="the run whose backbone is scored")
    p.add_argument("--seed", type=int, help="of the run (default: its first)")
    p.add_argument("--metric", help="what is explained (default: the evaluation's first metric)")
    p.add_argument("--limit", type=int, default=64, help="refuse more scorings than this (default: 64)")
    p.add_argument(
        "--pairs", type=int, help="beyond six steps: orders to sample, each with its reverse (default: at most 4; 0: one order only)"
    )
    p.add_argument("--dry-run", action="store_true", help="print the steps and what they cost, and stop")
    p.add_argument("--threads", type=int, help="threads of torch (default: one)")
    p.add_argument("--config", type=Path, default=Path("config.yaml"), help="the study (default: config.yaml)")
    p.add_argument("--results", type=Path, help="folder of results (default: the study's own)")


def _add_tables(command: Command) -> None:
    """Tables of result records."""
    p = command("tables")
    p.add_argument("records", type=Path, nargs="*", help="result records, or folders of results: all in them (default: results)")
    p.add_argument("--table", help="a task's name, `all` for the tidy table, `cost`, `gain`; with --columns: only this task's evaluations")
    p.add_argument("--out", type=Path, help="a CSV, Markdown and LaTeX come beside it; with --columns: the file (default: print it)")
    p.add_argument("--plan", type=Path, help="in their place, the workflow's plan: all records of the table's evaluations")
    p.add_argument("--results", type=Path, help="with --plan: folder of results (default: the plan's, from where you are)")
    p.add_argument("--baseline", help="table `gain`: the run that the others are compared with (default: the plan's `baseline`, if any)")
    p.add_argument(
        "--columns",
        type=_names,
        help="a table for a paper: its columns, e.g. run,J,F, from the wide tables; of one evaluation: EVALUATION:METRIC",
    )
    p.add_argument("--pivot", choices=("dataset", "evaluation"), help="with --columns: a group of columns for each of these")
    p.add_argument("--format", choices=("latex", "markdown", "csv"), help="with --columns: (default: markdown)")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _add_data_commands(command: Command) -> None:
    """Have checkpoints, data sets and videos."""
    command("checkpoints")
    p = command("fetch")
    p.add_argument("names", nargs="*", help="public checkpoints, or timm/ and a name of timm's")
    p.add_argument("--config", type=Path, help="all checkpoints of this study")
    p = command("data")
    p.add_argument("name", help="a name of datasets.yaml, e.g. coco, ade20k, davis, voc")
    p.add_argument("--receipt", type=Path, help="default: results/data/sets/NAME.json")
    p.add_argument("--folder", type=Path, help="its place (default: `folder` in datasets.yaml, below the folder where you are)")
    p.add_argument("--name", dest="video_name", help="walking_tours: one of its videos, e.g. venice")
    p.add_argument("--video", help="walking_tours: an address instead of the list's, under the name --name")
    p.add_argument("--codec", default="avc1", help="walking_tours: avc1, vp9 or av01")
    p.add_argument("--height", type=int, default=1080, help="walking_tours: lines, at most")
    command("probe", "video")
    p = command("add-video", "video")
    p.add_argument(
        "--masks", type=Path, help="folder of masks, 00000.png for frame 0, ... (docs/own_masks.md): the study evaluates on them"
    )
    p.add_argument("--ignore", type=int, help="with --masks: label of pixels that count for nothing (default: 255 where it occurs)")
    p.add_argument("--fps", type=_positive, help="of a folder of frames in the video's place: frames a second")
    p.add_argument("--out", default="-", help="the study's configuration; - prints it, and the report to standard error (default)")
    p.add_argument("--sheet", type=Path, help="contact sheet (default: {video's name}.png beside --out)")
    p.add_argument("--all-frames", action="store_true", help="look at every frame also of a long video")


def _add_job_commands(command: Command) -> None:
    """What the workflow's rules call."""

    def job(name: str, *paths: str) -> argparse.ArgumentParser:
        p = command(name, *paths)
        p.set_defaults(is_job=True)
        return p

    p = job("generate", "--root")
    p.add_argument("--settings", type=_json(SyntheticSettings), required=True)
    p = job("prepare-video", "--out", "--receipt")
    p.add_argument("--settings", type=_json(VideoSettings), required=True)
    p = job("check-images", "--receipt")
    p.add_argument("--settings", type=_json(ImagesSettings), required=True)

    p = job("curate", "--backbone", "--out")
    p.add_argument("--data", type=Path, nargs="+", required=True, metavar="RECEIPT")
    _job_options(p)
    p = job("train", "--out")
    p.add_argument("--nodes", type=int, default=1, help="of the Slurm job; each runs a process per GPU that Slurm gives it")
    p.add_argument("--teacher", type=Path, action="append", default=[], help="file of a network to learn from, in the study's order")
    _job_options(p, "--init", "--data", "--state")
    p = job("evaluate", "--backbone", "--out")
    p.add_argument("--read-features", nargs="*", default=[], metavar="SPLIT", help="look for features of these images in the cache")
    p.add_argument("--keep-features", nargs="*", default=[], metavar="SPLIT", help="write those that are not there: another job reads them")
    _job_options(p, "--state")
    p = job("features", "--backbone", "--out")
    p.add_argument("--settings", type=_json(PictureSettings), required=True)
    _job_options(p, "--init", "--data")


def _number(kind: Callable[[str], Any], least: float, most: float, allowed: str) -> Callable[[str], Any]:
    """The type of an argument that is a number: above `least`, and below or at `most`."""

    def parse(text: str) -> Any:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not least < number <= most:
            raise argparse.ArgumentTypeError(f"{text!r}; allowed: {allowed}")
        return number

    return parse


_positive = _number(float, 0, sys.float_info.max, "a number above 0")
_count = _number(int, 0, 2**63 - 1, "a whole number above 0")
_share = _number(float, 0, 1, "a number above 0, at most 1")


def _job_options(p: argparse.ArgumentParser, *more: str) -> None:
    """Options of jobs that a specification describes."""
    p.add_argument("--spec", type=Path, required=True, help="results/specs/{hash}.json, which the workflow writes")
    if "--init" in more:
        p.add_argument("--init", type=Path, help="file of the initial backbone, unless it is random")
    if "--data" in more:
        p.add_argument("--data", type=Path, nargs="*", default=[], metavar="RECEIPT")
    if "--state" in more:
        p.add_argument("--state", type=Path, required=True, help="folder of the resumable state")
    p.add_argument(
        "--execution",
        type=_json(Execution),
        default=os.environ.get("DENSEWALK_EXECUTION", "{}"),
        help="how to run, as JSON (default: $DENSEWALK_EXECUTION, which the workflow sets)",
    )
    p.add_argument(
        "--threads",
        type=int,
        help="CPUs of the job, shared by the processes of a node: threads of torch, and as many data-loading processes at most (default: "
        "one thread, and as many of these as the study says)",
    )
    p.add_argument("--gpus", type=int, default=0, help="GPUs of this machine to take; a training runs a process on each")


def _json(model: type[Settings]) -> Callable[[str], Settings]:
    """The type of an argument that is settings as JSON."""

    def parse(text: str) -> Settings:
        try:
            return model.model_validate_json(text)
        except ValidationError as error:
            raise argparse.ArgumentTypeError("; ".join(complaints(error, model))) from error

    return parse
