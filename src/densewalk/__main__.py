"""The command line. The workflow's rules call it; each command can be typed by hand as well.

densewalk check config.yaml                        # what is wrong with a study, without starting anything
densewalk status config.yaml                       # how far it is, when it ends, what it has cost
densewalk doctor --config config.yaml              # machine, data and checkpoints, before a GPU is asked for
densewalk data coco                                # download, unpack and check a data set, or say how to get it
densewalk checkpoints                              # the public backbones that a run's `init` may name
densewalk fetch dinov2_vits14_reg | --config FILE  # download public checkpoints, or all of a study's
densewalk probe walk.mp4                           # codec, size, frame rate, length of a video
densewalk train --spec JSON --state DIR --out DIR [--init FILE] [--data RECEIPT ...]
densewalk evaluate --spec JSON --backbone FILE --state DIR --out FILE
densewalk tables | report ...                      # results -> CSV, HTML
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
    p.add_argument("--video", help="walking_tours: the video's address, for yt-dlp")
    p.add_argument("--name", dest="video_name", default="video", help="walking_tours: its name")
    p.add_argument("--codec", default="avc1", help="walking_tours: avc1, vp9 or av01")
    p.add_argument("--height", type=int, default=1080, help="walking_tours: lines, at most")
    _command(commands, "schema", schema, "print the configuration's JSON schema")
    p = _command(commands, "probe", probe, "describe a video file")
    p.add_argument("video", type=Path)

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

    p = _command(commands, "train", train, "make one run's backbone")
    p.add_argument("--spec", type=json.loads, required=True)
    p.add_argument("--init", type=Path)
    p.add_argument("--data", type=Path, nargs="*", default=[], metavar="RECEIPT")
    p.add_argument("--out", type=Path, required=True)
    _job_options(p)
    p.add_argument("--processes", type=int, default=1, help="training processes on this machine, one per GPU")

    p = _command(commands, "evaluate", evaluate, "evaluate one backbone by one protocol")
    p.add_argument("--spec", type=json.loads, required=True)
    p.add_argument("--backbone", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    _job_options(p)

    p = _command(commands, "tables", tables, "result records -> one table")
    p.add_argument("--table", required=True, help="a task's name, or `all` for the tidy table")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("records", type=Path, nargs="*")
    p = _command(commands, "report", report, "tables, curves and pictures -> one page")
    p.add_argument("--title", required=True)
    p.add_argument("--results", type=Path, required=True)
    p.add_argument("--out", type=Path, required=True)
    return top


def _command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, function, text: str) -> argparse.ArgumentParser:  # type: ignore[no-untyped-def]
    p = commands.add_parser(name, help=text, description=text)
    p.set_defaults(command=function)
    return p


def _job_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--state", type=Path, required=True, help="folder of the resumable state")
    p.add_argument(
        "--execution",
        type=Execution.model_validate_json,
        default=os.environ.get("DENSEWALK_EXECUTION", "{}"),
        help="how to run, as JSON (default: $DENSEWALK_EXECUTION, which the workflow sets)",
    )
    p.add_argument("--threads", type=int, default=1, help="CPU threads of torch")


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

    findings = examine(load_study(args.config) if args.config else None, slurm=args.slurm)
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
    from densewalk.datasets import datasets, fetch_video, prepare

    if args.video:
        known = datasets()
        target = Path(known["walking_tours"].folder) / f"{args.video_name}.mp4"
        print(json.dumps(fetch_video(args.video, target, codec=args.codec, height=args.height), indent=2))
        return
    print(prepare(args.name, args.receipt or Path(f"results/data/sets/{args.name}.json")))


def schema(_args: argparse.Namespace) -> None:
    """Print the JSON schema."""
    from densewalk.config import json_schema

    print(json.dumps(json_schema(), indent=2))


def probe(args: argparse.Namespace) -> None:
    """Describe a video."""
    from dataclasses import asdict

    from densewalk.video import probe as probe_video

    print(json.dumps(asdict(probe_video(args.video)), indent=2, default=str))


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
    check_folder(settings.source, args.receipt, settings.layout, settings.sequence_list)


def train(args: argparse.Namespace) -> None:
    """Make one run's backbone, in as many processes as asked for."""
    if args.processes > 1 and "WORLD_SIZE" not in os.environ:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={args.processes}"]
        os.execv(sys.executable, [*launcher, "-m", "densewalk", *sys.argv[1:]])
    import torch

    from densewalk import jobs

    torch.set_num_threads(args.threads)
    jobs.run(args.spec, args.init, args.data, args.state, args.out, args.execution)


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate one backbone by one protocol."""
    import torch

    from densewalk import jobs

    torch.set_num_threads(args.threads)
    jobs.evaluate(args.spec, args.backbone, args.state, args.out, args.execution)


def tables(args: argparse.Namespace) -> None:
    """Write one table."""
    from densewalk.tables import write_all, write_task_table

    if args.table == "all":
        write_all(args.records, args.out)
    else:
        write_task_table(args.records, args.table, args.out)


def report(args: argparse.Namespace) -> None:
    """Write the page."""
    from densewalk.report import report_folder

    report_folder(args.results, args.title, args.out)


if __name__ == "__main__":
    sys.exit(main())
