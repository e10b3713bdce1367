"""The command line. The workflow's rules call it; each command can be typed by hand as well.

densewalk check config.yaml                        # what is wrong with a study, without starting anything
densewalk status config.yaml                       # how far it is, when it ends, what it has cost
densewalk doctor --config config.yaml              # machine, data and checkpoints, before a GPU is asked for
densewalk data coco                                # download, unpack and check a data set, or say how to get it
densewalk checkpoints                              # the public backbones that a run's `init` may name
densewalk fetch dinov2_vits14_reg | --config FILE  # download public checkpoints, or all of a study's
densewalk probe walk.mp4                           # codec, size, frame rate, length of a video
densewalk add-video walk.mp4 --out study.yaml      # what is usable in it, a contact sheet, a study to begin with
densewalk train --spec FILE --state DIR --out DIR [--init FILE] [--data RECEIPT ...]
densewalk evaluate --spec FILE --backbone FILE --state DIR --out FILE
densewalk tables | report ...                      # results -> CSV, HTML
densewalk diff results_before results_after        # which numbers changed, and why
"""

import argparse
import json
import os
from pathlib import Path

from densewalk.cli.commands import (
    add_video,
    check,
    check_images,
    checkpoints,
    curate,
    data,
    deviations,
    diff,
    doctor,
    evaluate,
    features,
    fetch,
    generate,
    prepare_video,
    probe,
    report,
    schema,
    status,
    tables,
    train,
)
from densewalk.training.execution import Execution


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    top = argparse.ArgumentParser(prog="densewalk", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    p = _command(commands, "check", check, "validate a study's configuration")
    p.add_argument("config", type=Path)
    p = _command(commands, "status", status, "print a study's runs, progress and cost")
    p.add_argument("config", type=Path)
    p.add_argument(
        "--results", type=Path, help="folder of results (default: results/ where you are, as for Snakemake)", default=Path("results")
    )
    p = _command(commands, "doctor", doctor, "look for what would stop a study")
    p.add_argument("--config", type=Path, help="the study whose data and checkpoints are looked at, from the folder where you are")
    p.add_argument("--slurm", action="store_true", help="look for Slurm's commands, too")
    _command(commands, "checkpoints", checkpoints, "list the public backbones")
    p = _command(commands, "fetch", fetch, "download checkpoints, resumed and checked")
    p.add_argument("names", nargs="*", help="public checkpoints, or timm/ and a name of timm's")
    p.add_argument("--config", type=Path, help="all checkpoints of this study")
    p = _command(commands, "data", data, "download, unpack and check a data set")
    p.add_argument("name", help="a name of datasets.yaml, e.g. coco, ade20k, davis, voc")
    p.add_argument("--receipt", type=Path, help="default: results/data/sets/NAME.json")
    p.add_argument("--folder", type=Path, help="where it goes (default: `folder` in datasets.yaml, below the folder where you are)")
    p.add_argument("--name", dest="video_name", help="walking_tours: one of its videos, e.g. venice")
    p.add_argument("--video", help="walking_tours: an address instead of the list's, under the name --name")
    p.add_argument("--codec", default="avc1", help="walking_tours: avc1, vp9 or av01")
    p.add_argument("--height", type=int, default=1080, help="walking_tours: lines, at most")
    _command(commands, "schema", schema, "print the configuration's JSON schema")
    _command(commands, "deviations", deviations, "print where the released code differs from the papers (docs/deviations.md)")
    p = _command(commands, "probe", probe, "describe a video file")
    p.add_argument("video", type=Path)

    p = _command(commands, "add-video", add_video, "look at a video of your own and write a study on it")
    p.add_argument("video", type=Path)
    p.add_argument("--out", default="-", help="the study's configuration; - prints it, and the report to standard error (default)")
    p.add_argument("--sheet", type=Path, help="contact sheet (default: {video's name}.png beside --out)")
    p.add_argument("--all-frames", action="store_true", help="look at every frame of a long video, too")

    p = _command(commands, "generate", generate, "write the synthetic city walk")
    p.add_argument("--settings", type=json.loads, required=True)
    p.add_argument("--root", type=Path, required=True)
    p = _command(commands, "prepare-video", prepare_video, "transcode a video to its training copy")
    p.add_argument("--settings", type=json.loads, required=True)
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--receipt", type=Path, required=True)
    p = _command(commands, "check-images", check_images, "check an image folder")
    p.add_argument("--settings", type=json.loads, required=True)
    p.add_argument("--receipt", type=Path, required=True)

    p = _command(commands, "curate", curate, "choose frames and pictures to train on")
    p.add_argument("--spec", type=Path, required=True, help="results/specs/{hash}.json, which the workflow writes")
    p.add_argument("--backbone", type=Path, required=True)
    p.add_argument("--data", type=Path, nargs="+", required=True, metavar="RECEIPT")
    p.add_argument("--out", type=Path, required=True)
    _execution_options(p)

    p = _command(commands, "train", train, "make one run's backbone")
    p.add_argument("--spec", type=Path, required=True, help="results/specs/{hash}.json, which the workflow writes")
    p.add_argument("--init", type=Path)
    p.add_argument("--data", type=Path, nargs="*", default=[], metavar="RECEIPT")
    p.add_argument("--out", type=Path, required=True)
    _job_options(p)
    p.add_argument("--nodes", type=int, default=1, help="of the Slurm job; each runs a process per GPU that Slurm gives it")

    p = _command(commands, "evaluate", evaluate, "evaluate one backbone by one protocol")
    p.add_argument("--spec", type=Path, required=True, help="results/specs/{hash}.json, which the workflow writes")
    p.add_argument("--backbone", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    _job_options(p)

    p = _command(commands, "features", features, "pictures of one backbone's features")
    p.add_argument("--spec", type=Path, required=True, help="results/specs/{hash}.json, which the workflow writes")
    p.add_argument("--init", type=Path)
    p.add_argument("--backbone", type=Path, required=True)
    p.add_argument("--data", type=Path, nargs="*", default=[], metavar="RECEIPT")
    p.add_argument("--settings", type=json.loads, required=True)
    p.add_argument("--out", type=Path, required=True)
    _execution_options(p)

    p = _command(commands, "tables", tables, "result records -> one table")
    p.add_argument("--table", required=True, help="a task's name, `all` for the tidy table, `cost`")
    p.add_argument("--out", type=Path, required=True, help="CSV file; Markdown and LaTeX are written beside it")
    p.add_argument("records", type=Path, nargs="*", help="result records, or folders of results: all in them")
    p = _command(commands, "diff", diff, "what is different between two result folders, and why (exit status 1 if anything is)")
    p.add_argument("before", type=Path)
    p.add_argument("after", type=Path)
    p.add_argument("--csv", type=Path, help="write the changes to this file, too")
    p = _command(commands, "report", report, "tables, curves and pictures -> one page, of an unfinished study, too")
    p.add_argument("config", type=Path, nargs="?", help="the study's configuration")
    p.add_argument("--plan", type=Path, help="the plan that the workflow writes, in its place")
    p.add_argument("--results", type=Path, default=Path("results"))
    p.add_argument("--out", type=Path, help="default: report.html in the folder of results")
    return top


def _command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, function, text: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
    p = commands.add_parser(name, help=text, description=text)
    p.set_defaults(command=function)
    return p


def _job_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--state", type=Path, required=True, help="folder of the resumable state")
    _execution_options(p)


def _execution_options(p: argparse.ArgumentParser) -> None:
    p.add_argument(
        "--execution",
        type=Execution.model_validate_json,
        default=os.environ.get("DENSEWALK_EXECUTION", "{}"),
        help="how to run, as JSON (default: $DENSEWALK_EXECUTION, which the workflow sets)",
    )
    p.add_argument("--threads", type=int, default=1, help="CPU threads of torch, shared by the processes of a node")
    p.add_argument("--gpus", type=int, default=0, help="GPUs of this machine to take; a training runs a process on each")
