"""One short function for each command; heavy imports happen inside them, so that `check` and `--help` answer at once."""

import argparse
import json
import os
import sys
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.core.progress import log

# Heavy imports happen inside the commands: `check` and `--help` answer at once.


def check(args: argparse.Namespace) -> None:
    """Validate a study."""
    from densewalk.study.config import load_study

    study = load_study(args.config)
    print(f"{args.config} is a study of {len(list(study.jobs()))} runs and {len(list(study.evaluation_jobs()))} evaluations")


def status(args: argparse.Namespace) -> None:
    """Print what has become of a study."""
    from densewalk.study.config import load_study
    from densewalk.study.status import status as look
    from densewalk.study.status import table

    print(table(list(look(load_study(args.config), args.results))))


def doctor(args: argparse.Namespace) -> int:
    """Print what is well and what is not; the exit status says whether anything is not."""
    from densewalk.jobs.doctor import examine
    from densewalk.jobs.doctor import table as findings_table
    from densewalk.study.config import load_study

    findings = examine(load_study(args.config) if args.config else None, slurm=args.slurm, config=args.config)
    print(findings_table(findings))
    return UserError.exit_status if any(finding.problem for finding in findings) else 0


def checkpoints(_args: argparse.Namespace) -> None:
    """Print the public checkpoints."""
    from densewalk.models.catalog import listing

    print(listing())


def fetch(args: argparse.Namespace) -> None:
    """Download checkpoints, below the folder where you are, as Snakemake's jobs look for them."""
    from densewalk.jobs.fetch import fetch_checkpoint
    from densewalk.models.catalog import Checkpoint, public_checkpoint
    from densewalk.study.config import load_study

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
    from densewalk.jobs.fetch import VideoChoice, prepare

    choice = VideoChoice(args.video_name, args.video, args.codec, args.height)
    print(prepare(args.name, args.receipt or Path(f"results/data/sets/{args.name}.json"), args.folder, choice))


def schema(_args: argparse.Namespace) -> None:
    """Print the JSON schema."""
    from densewalk.study.config import json_schema

    print(json.dumps(json_schema(), indent=2))


def probe(args: argparse.Namespace) -> None:
    """Describe a video."""
    from dataclasses import asdict

    from densewalk.data.video.probe import probe as probe_video

    print(json.dumps(asdict(probe_video(args.video)), indent=2, default=str))


def add_video(args: argparse.Namespace) -> None:
    """Report on a video, draw its contact sheet and write a study."""
    from densewalk.core.files import atomic_write
    from densewalk.jobs.add_video import look, study_text

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
    from densewalk.synthetic.generate import generate as generate_walk
    from densewalk.synthetic.settings import SyntheticSettings

    generate_walk(args.root, SyntheticSettings.model_validate(args.settings))


def prepare_video(args: argparse.Namespace) -> None:
    """Make a video's training copy and receipt."""
    from densewalk.data.settings import VideoSettings
    from densewalk.data.video.transcode import transcode

    settings = VideoSettings.model_validate(args.settings)
    transcode(settings.source, args.out, args.receipt, settings)


def check_images(args: argparse.Namespace) -> None:
    """Check an image folder and write its receipt."""
    from densewalk.data.check_images import check_images as check_folder
    from densewalk.data.settings import ImagesSettings

    settings = ImagesSettings.model_validate(args.settings)
    check_folder(settings.source, args.receipt, settings.layout, settings.sequence_list, settings.fps)


def curate(args: argparse.Namespace) -> None:
    """Choose what to train on."""
    import torch

    from densewalk.jobs.curate import curate as choose
    from densewalk.study.specs import CurationSpec, read_spec

    torch.set_num_threads(args.threads)
    choose(read_spec(args.spec, CurationSpec), args.backbone, args.data, args.out, args.execution)


def train(args: argparse.Namespace) -> None:
    """Make one run's backbone, in as many processes as asked for."""
    from densewalk.training.launch import become_processes, claim_gpus

    become_processes(claim_gpus(args.gpus), args.nodes, args.threads)
    import torch

    from densewalk.jobs.train import make_backbone
    from densewalk.study.specs import RunSpec, read_spec

    torch.set_num_threads(max(1, args.threads // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    make_backbone(read_spec(args.spec, RunSpec), args.init, args.data, args.state, args.out, args.execution)


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate one backbone by one protocol."""
    from densewalk.training.launch import claim_gpus

    claim_gpus(args.gpus)
    import torch

    from densewalk.jobs.evaluate import evaluate as evaluate_backbone
    from densewalk.study.specs import EvaluationSpec, read_spec

    torch.set_num_threads(args.threads)
    evaluate_backbone(read_spec(args.spec, EvaluationSpec), args.backbone, args.state, args.out, args.execution)


def features(args: argparse.Namespace) -> None:
    """Draw one backbone's features."""
    import torch

    from densewalk.jobs.features import features as draw
    from densewalk.study.specs import RunSpec, read_spec
    from densewalk.visualization.settings import PictureSettings

    torch.set_num_threads(args.threads)
    settings = PictureSettings.model_validate(args.settings)
    draw(read_spec(args.spec, RunSpec), args.init, args.backbone, args.data, settings, args.out, args.execution.device)


def tables(args: argparse.Namespace) -> None:
    """Write one table."""
    from densewalk.results.formats import write_formats
    from densewalk.results.records import results_in
    from densewalk.results.tables import write_table

    write_table([record for path in args.records for record in (results_in(path) if path.is_dir() else [path])], args.table, args.out)
    write_formats(args.out)


def diff(args: argparse.Namespace) -> int:
    """Compare two result folders."""
    from densewalk.results.compare import compare, text, write_changes

    found = compare(args.before, args.after)
    print(text(found))
    if args.csv:
        write_changes(found, args.csv)
    return int(bool(found.changes))


def report(args: argparse.Namespace) -> None:
    """Write the page."""
    from densewalk.results.page.page import report as write_page
    from densewalk.results.plan import read_plan
    from densewalk.study.config import load_study

    if (args.config is None) == (args.plan is None):
        raise UserError("densewalk report takes the study's config.yaml, or --plan")
    plan = load_study(args.config).plan() if args.config else read_plan(args.plan)
    write_page(plan, args.results, args.out or args.results / "report.html")
