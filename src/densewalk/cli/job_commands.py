"""The commands of Snakemake's rules, one short function each; its docstring is the command's help.

Settings are read before torch is imported: building pydantic's models takes three times as long in a process that holds it.
"""

import argparse
import os
from typing import TYPE_CHECKING

from densewalk.cli.collection import collect_as_usual

if TYPE_CHECKING:
    from densewalk.training.execution import Execution


def prepare_video(args: argparse.Namespace) -> None:
    """Make a video's training copy and receipt."""
    from densewalk.data.settings import VideoSettings
    from densewalk.jobs import prepare

    collect_as_usual()
    prepare.prepare_video(VideoSettings.model_validate(args.settings), args.out, args.receipt)


def check_images(args: argparse.Namespace) -> None:
    """Check an image folder and write its receipt."""
    from densewalk.data.settings import ImagesSettings
    from densewalk.jobs.prepare import prepare_images

    collect_as_usual()
    prepare_images(ImagesSettings.model_validate(args.settings), args.receipt)


def with_cpus(args: argparse.Namespace) -> "Execution":
    """Import torch, after the settings, and give it the threads of this process; how to run within the job's CPUs."""
    import torch

    from densewalk.ops.cpu.imports import import_without_compiler

    import_without_compiler()
    collect_as_usual()
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(max(1, (args.threads or 1) // processes))
    return args.execution if args.threads is None else args.execution.within(args.threads, processes)


def curate(args: argparse.Namespace) -> None:
    """Choose frames and images to train on."""
    from densewalk.study.specs import CurationSpec, read_spec

    spec, execution = read_spec(args.spec, CurationSpec), with_cpus(args)
    from densewalk.data.storage.staging import staging
    from densewalk.jobs.curate import curate as choose

    with staging(args.execution.stage):
        choose(spec, args.backbone, args.data, args.out, execution)


def train(args: argparse.Namespace) -> None:
    """Make one run's backbone, in as many processes as asked for."""
    from densewalk.study.specs import RunSpec, read_spec
    from densewalk.training.launch import become_processes, claim_gpus

    spec = read_spec(args.spec, RunSpec)
    become_processes(claim_gpus(args.gpus, args.execution.device), args.nodes, args.threads or 1)
    execution = with_cpus(args)
    from densewalk.data.storage.staging import staging
    from densewalk.jobs.train import make_backbone

    with staging(args.execution.stage):
        make_backbone(spec, args.init, args.data, args.state, args.out, execution, teachers=args.teacher)


def evaluate(args: argparse.Namespace) -> None:
    """Evaluate one backbone by one protocol, in as many processes as asked for where they can share the work."""
    from densewalk.core.progress import log
    from densewalk.study.specs import EvaluationSpec, read_spec
    from densewalk.training.launch import become_processes, claim_gpus

    spec, gpus = read_spec(args.spec, EvaluationSpec), args.gpus
    if gpus > 1 and not spec.settings.PROCESSES:
        log.info("%s runs in one process instead of %d: several cannot share its work", spec.protocol, gpus)
        gpus = 1
    become_processes(claim_gpus(gpus, args.execution.device), 1, args.threads or 1)
    execution = with_cpus(args)
    from densewalk.data.storage.staging import staging
    from densewalk.jobs.evaluate import evaluate as evaluate_backbone

    with staging(args.execution.stage):
        evaluate_backbone(spec, args.backbone, args.state, args.out, execution, read=args.read_features, keep=args.keep_features)


def features(args: argparse.Namespace) -> None:
    """Draw one backbone's features."""
    from densewalk.study.specs import RunSpec, read_spec

    spec, execution = read_spec(args.spec, RunSpec), with_cpus(args)
    from densewalk.jobs.features import features as draw

    draw(spec, args.init, args.backbone, args.data, args.settings, args.out, execution.device)
