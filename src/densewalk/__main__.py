"""The command line. The workflow's rules call it; each command can be typed by hand as well.

densewalk check config.yaml                        # what is wrong with a study, without starting anything
densewalk status config.yaml                       # how far it is, when it ends, what it has cost
densewalk doctor --config config.yaml              # machine, data and checkpoints, before a GPU is asked for
densewalk data coco                                # download, unpack and check a data set, or say how to get it
densewalk checkpoints                              # the public backbones that a run's `init` may name
densewalk fetch dinov2_vits14_reg | --config FILE  # download public checkpoints, or all of a study's
densewalk probe walk.mp4                           # codec, size, frame rate, length of a video
densewalk add-video walk.mp4 --out study.yaml      # what is usable in it, a contact sheet, a study to begin with
densewalk train --spec JSON --state DIR --out DIR [--init FILE] [--data RECEIPT ...]
densewalk evaluate --spec JSON --backbone FILE --state DIR --out FILE
densewalk tables | report ...                      # results -> CSV, HTML
densewalk diff results_before results_after        # which numbers changed, and why
"""

import argparse
import errno
import json
import os
import sys
from pathlib import Path

from densewalk.errors import Interrupted, TrainingError, UserError
from densewalk.progress import log, start_logging
from densewalk.settings.execution import Execution


def main(argv: list[str] | None = None) -> int:
    """Run one command; what stops it becomes one line and an exit status (errors.py)."""
    start_logging()
    args = parser().parse_args(argv)
    try:
        return args.command(args) or 0
    except (UserError, TrainingError, Interrupted) as error:
        log.error("%s%s", "" if isinstance(error, Interrupted) else "error: ", error)
        return error.exit_status
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        log.error("error: %s cannot be written: %s; to do: make room and start again", error.filename or "a file", error.strerror)
        return UserError.exit_status


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
    p.add_argument("--spec", type=json.loads, required=True)
    p.add_argument("--backbone", type=Path, required=True)
    p.add_argument("--data", type=Path, nargs="+", required=True, metavar="RECEIPT")
    p.add_argument("--out", type=Path, required=True)
    _execution_options(p)

    p = _command(commands, "train", train, "make one run's backbone")
    p.add_argument("--spec", type=json.loads, required=True)
    p.add_argument("--init", type=Path)
    p.add_argument("--data", type=Path, nargs="*", default=[], metavar="RECEIPT")
    p.add_argument("--out", type=Path, required=True)
    _job_options(p)
    p.add_argument("--nodes", type=int, default=1, help="of the Slurm job; each runs a process per GPU that Slurm gives it")

    p = _command(commands, "evaluate", evaluate, "evaluate one backbone by one protocol")
    p.add_argument("--spec", type=json.loads, required=True)
    p.add_argument("--backbone", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    _job_options(p)

    p = _command(commands, "features", features, "pictures of one backbone's features")
    p.add_argument("--spec", type=json.loads, required=True)
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
    p.add_argument("--plan", type=json.loads, help="what the workflow gives in its place")
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


# Heavy imports happen inside the commands: `check` and `--help` answer at once.


def check(args: argparse.Namespace) -> None:
    """Validate a study."""
    from densewalk.config import load_study

    study = load_study(args.config)
    print(f"{args.config} is a study of {len(list(study.jobs()))} runs and {len(list(study.evaluation_jobs()))} evaluations")


def status(args: argparse.Namespace) -> None:
    """Print what has become of a study."""
    from densewalk.config import load_study
    from densewalk.status import status as look
    from densewalk.status import table

    print(table(list(look(load_study(args.config), args.results))))


def doctor(args: argparse.Namespace) -> int:
    """Print what is well and what is not; the exit status says whether anything is not."""
    from densewalk.config import load_study
    from densewalk.doctor import examine
    from densewalk.doctor import table as findings_table

    findings = examine(load_study(args.config) if args.config else None, slurm=args.slurm, config=args.config)
    print(findings_table(findings))
    return UserError.exit_status if any(finding.problem for finding in findings) else 0


def checkpoints(_args: argparse.Namespace) -> None:
    """Print the public checkpoints."""
    from densewalk.settings.checkpoints import listing

    print(listing())


def fetch(args: argparse.Namespace) -> None:
    """Download checkpoints, below the folder where you are, as Snakemake's jobs look for them."""
    from densewalk.config import load_study
    from densewalk.download import fetch_checkpoint
    from densewalk.settings.checkpoints import Checkpoint, public_checkpoint

    wanted = dict(load_study(args.config).checkpoints) if args.config else {}
    for name in args.names:
        try:
            found = public_checkpoint(name)
        except ValueError as error:
            raise UserError(str(error)) from error
        if found is None:
            raise UserError(f"no public checkpoint is called '{name}'", allowed="what `densewalk checkpoints` lists, or timm/NAME")
        wanted[found[0]] = Checkpoint.model_validate(found[1])
    problems = []
    for name, checkpoint in wanted.items():
        try:
            print(f"{checkpoint.file}  sha256 {fetch_checkpoint(name, checkpoint)['sha256']}")
        except UserError as error:  # the others are fetched all the same
            log.error("error: %s", error)
            problems.append(name)
    if problems or not wanted:
        raise UserError(f"not fetched: {', '.join(problems)}" if problems else "nothing to fetch", todo="see above, or name a checkpoint")


def data(args: argparse.Namespace) -> None:
    """Have a data set, below the folder where you are."""
    from densewalk.datasets import VideoChoice, prepare

    choice = VideoChoice(args.video_name, args.video, args.codec, args.height)
    print(prepare(args.name, args.receipt or Path(f"results/data/sets/{args.name}.json"), args.folder, choice))


def schema(_args: argparse.Namespace) -> None:
    """Print the JSON schema."""
    from densewalk.config import json_schema

    print(json.dumps(json_schema(), indent=2))


def probe(args: argparse.Namespace) -> None:
    """Describe a video."""
    from dataclasses import asdict

    from densewalk.video import probe as probe_video

    print(json.dumps(asdict(probe_video(args.video)), indent=2, default=str))


def add_video(args: argparse.Namespace) -> None:
    """Report on a video, draw its contact sheet and write a study."""
    from densewalk.checkpoint import atomic_write
    from densewalk.own_video import look, study_text

    folder = Path() if args.out == "-" else Path(args.out).parent
    if args.out != "-" and Path(args.out).exists():
        raise UserError(f"{args.out} exists", todo="give another --out, or copy what `--out -` prints into it")
    sheet = args.sheet or folder / f"{args.video.stem}.png"
    findings = look(args.video, sheet, whole=args.all_frames or None)
    print(f"{findings.report()}\nsheet       {sheet}", file=sys.stderr if args.out == "-" else sys.stdout)
    # a study's paths are relative to its folder
    inside = args.video.resolve().is_relative_to(folder.resolve())
    text = study_text(findings, str(args.video.resolve().relative_to(folder.resolve()) if inside else args.video.resolve()))
    if args.out == "-":
        print(text, end="")
        return
    with atomic_write(args.out) as temporary:
        temporary.write_text(text)


def generate(args: argparse.Namespace) -> None:
    """Write the synthetic city walk."""
    from densewalk.settings.synthetic import SyntheticSettings
    from densewalk.synthetic import generate as generate_walk

    generate_walk(args.root, SyntheticSettings.model_validate(args.settings))


def prepare_video(args: argparse.Namespace) -> None:
    """Make a video's training copy and receipt."""
    from densewalk.settings.data import VideoSettings
    from densewalk.video import transcode

    settings = VideoSettings.model_validate(args.settings)
    transcode(settings.source, args.out, args.receipt, settings)


def check_images(args: argparse.Namespace) -> None:
    """Check an image folder and write its receipt."""
    from densewalk.images import check_images as check_folder
    from densewalk.settings.data import ImagesSettings

    settings = ImagesSettings.model_validate(args.settings)
    check_folder(settings.source, args.receipt, settings.layout, settings.sequence_list, settings.fps)


def curate(args: argparse.Namespace) -> None:
    """Choose what to train on."""
    import torch

    from densewalk import jobs

    torch.set_num_threads(args.threads)
    jobs.curate(args.spec, args.backbone, args.data, args.out, args.execution)


def train(args: argparse.Namespace) -> None:
    """Make one run's backbone, in as many processes as asked for."""
    from densewalk.launch import become_processes, claim_gpus

    claim_gpus(args.gpus)
    become_processes(args.gpus, args.nodes, args.threads)
    import torch

    from densewalk import jobs

    torch.set_num_threads(max(1, args.threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    jobs.run(args.spec, args.init, args.data, args.state, args.out, args.execution)


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate one backbone by one protocol."""
    from densewalk.launch import claim_gpus

    claim_gpus(args.gpus)
    import torch

    from densewalk import jobs

    torch.set_num_threads(args.threads)
    jobs.evaluate(args.spec, args.backbone, args.state, args.out, args.execution)


def features(args: argparse.Namespace) -> None:
    """Draw one backbone's features."""
    import torch

    from densewalk import jobs
    from densewalk.settings.pictures import PictureSettings

    torch.set_num_threads(args.threads)
    settings = PictureSettings.model_validate(args.settings)
    jobs.features(args.spec, args.init, args.backbone, args.data, settings, args.out, args.execution.device)


def tables(args: argparse.Namespace) -> None:
    """Write one table."""
    from densewalk.tables import records_in, write_table
    from densewalk.typeset import write_latex, write_markdown

    write_table([record for path in args.records for record in (records_in(path) if path.is_dir() else [path])], args.table, args.out)
    write_markdown(args.out, args.out.with_suffix(".md"))
    write_latex(args.out, args.out.with_suffix(".tex"))


def diff(args: argparse.Namespace) -> int:
    """Compare two result folders."""
    from densewalk.diff import compare, text, write_changes

    found = compare(args.before, args.after)
    print(text(found))
    if args.csv:
        write_changes(found, args.csv)
    return int(bool(found.changes))


def report(args: argparse.Namespace) -> None:
    """Write the page."""
    from densewalk.config import load_study
    from densewalk.report import report as write_page

    if (args.config is None) == (args.plan is None):
        raise UserError("densewalk report takes the study's config.yaml, or --plan")
    plan = load_study(args.config).plan() if args.config else args.plan
    write_page(plan, args.results, args.out or args.results / "report.html")


if __name__ == "__main__":
    sys.exit(main())
