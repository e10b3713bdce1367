"""Find what would stop a study, before a GPU is asked for.

    densewalk doctor                              # this machine
    densewalk doctor --config config.yaml         # and all data and checkpoints of a study
    densewalk doctor --config config.yaml --slurm # and the cluster's commands

The evaluations' own readers look at their data, and checkpoints are loaded as a run loads them.
"""

import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from densewalk.core.errors import UserError
from densewalk.core.imagenet import PixelStatistics
from densewalk.core.progress import columns
from densewalk.core.provenance import versions
from densewalk.data.check_images import check_images
from densewalk.data.download.catalog import command_for, command_for_file, dataset_of
from densewalk.data.download.fetch import receipt_path, verify
from densewalk.data.download.find import lacks_at, roots_below
from densewalk.data.receipts import SequencesReceipt
from densewalk.data.settings import ImagesSettings
from densewalk.data.video.probe import missing_codecs, probe
from densewalk.data.video.stated import stated_length
from densewalk.models.catalog import Checkpoint, public_checkpoint, published
from densewalk.models.layouts.content import require_file
from densewalk.models.loading import load
from densewalk.results.benchmarks import BENCHMARKS
from densewalk.study.amounts import require_amounts
from densewalk.study.config import Study
from densewalk.study.registry import evaluation_module
from densewalk.study.runs import ChangedRun
from densewalk.training.tensorboard import require_tensorboard

Check = Callable[[], str]  # says what was found, or raises a UserError
SPARE = 20 * 2**30  # bytes that should be free for a study's results, caches and states
CODECS = ("h264", "hevc", "av1", "vp9")  # what walking tours come in
SLURM = ("sbatch", "squeue", "scancel", "sacct")


class Warned(str):
    """What was found, with something that a person should know and that stops nothing."""


@dataclass(frozen=True)
class Finding:
    """One line of the table. problem: None if nothing would stop the study."""

    subject: str
    found: str
    problem: str | None = None


def examine(study: Study | None, *, slurm: bool = False, config: Path | None = None) -> list[Finding]:
    """Run all checks of this machine and of a study. config: the study's file, which commands name."""
    machine: dict[str, Check] = {"Python": _python, "torch": _torch, "video": _video, "disk": _disk}
    if slurm:
        machine["Slurm"] = _slurm
    findings = [_finding(subject, check) for subject, check in machine.items()]
    return findings + [_finding(*check) for check in (_study_checks(study, config) if study else ())]


def table(findings: Iterable[Finding]) -> str:
    """The findings as text."""
    rows = [(f.subject, _state(f), f.problem or f.found) for f in findings]
    return columns(("what", "state", "found, or what to do"), rows)


def _state(finding: Finding) -> str:
    if finding.problem:
        return "problem"
    return "warning" if isinstance(finding.found, Warned) else "OK"


def _finding(subject: str, check: Check, remedy: Callable[[], str | None] | None = None) -> Finding:
    """Run one check; what is wrong ends with what would help: where the data lie, or the command that gets or completes them."""
    try:
        return Finding(subject, check())
    except UserError as error:
        found = remedy() if remedy else None
        return Finding(subject, "", " ".join(str(error).split()) + (f"; {found}" if found else ""))


# -- this machine ------------------------------------------------------------------------------------------------------


PYTHONS = ((3, 11), (3, 12))
"""requires-python of pyproject.toml."""


def _python() -> str:
    if sys.version_info[:2] not in PYTHONS:
        allowed = " or ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        raise UserError(f"Python {platform.python_version()}", allowed=allowed, todo="make the environment again: docs/environment.md")
    return platform.python_version()


def _torch() -> str:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, {', '.join(gpus) or 'no GPU here'}"


def _video() -> str:
    if missing := missing_codecs(CODECS):
        raise UserError(f"PyAV does not decode {', '.join(missing)}", todo="install av from PyPI: docs/environment.md")
    return f"decord {versions()['decord']}; PyAV {versions()['av']} with {', '.join(CODECS)}"


def _disk() -> str:
    free = shutil.disk_usage(Path.cwd()).free
    if free < SPARE:
        raise UserError(f"{free / 2**30:.1f} GiB free in {Path.cwd()}", allowed=f"{SPARE >> 30} GiB or more", todo="make room")
    return f"{free / 2**30:.0f} GiB free"


def _slurm() -> str:
    missing = [command for command in SLURM if shutil.which(command) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not found", todo="log in to a node of the cluster, or leave --slurm out")
    return ", ".join(SLURM)


# -- a study -----------------------------------------------------------------------------------------------------------


def _study_checks(study: Study, config: Path | None) -> Iterator[tuple[str, Check, Callable[[], str | None] | None]]:
    yield "amounts", partial(_amounts, study), None
    if study.execution.tensorboard:
        yield "execution.tensorboard", _event_files, None
    for name, video in study.videos.items():
        yield f"videos.{name}", partial(_video_file, video.source), partial(_command, video.source)
    for name, images in study.images.items():
        yield f"images.{name}", partial(_image_folder, images), partial(_command, images.source)
    for name, checkpoint in study.checkpoints.items():
        yield f"checkpoints.{name}", partial(_checkpoint, name, checkpoint, config), None
    for name, run in study.runs.items():
        for path in run.settings.files() if isinstance(run, ChangedRun) else []:
            yield f"runs.{name}.settings", partial(_named_file, path), None
    for name, evaluation in study.evaluations.items():
        settings = evaluation.settings
        known = dataset_of(evaluation.protocol, settings)
        check = partial(_evaluation_data, evaluation.protocol, settings, known)
        yield f"evaluations.{name}", check, partial(_way_to, known, settings.root) if known else None


def _command(path: str) -> str | None:
    """The command that fetches a video or folder."""
    command = command_for_file(path)
    return f"command: {command}" if command else None


def _way_to(name: str, root: str) -> str:
    """Where a data set lies, if that is below the root, or the command that gets or completes it."""
    below = roots_below(name, Path(root))
    return f"root: {below[0]} has it" if below else f"command: {command_for(name, root)}"


def _amounts(study: Study) -> str:
    require_amounts(study, Path(study.results), stated_length)
    return "enough samples for each batch and warm-up, as far as the data tell"


def _event_files() -> str:
    require_tensorboard()
    return "event files are written beside each metrics.jsonl"


def _named_file(path: str) -> str:
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist", todo="put it there, or correct the run's settings")
    return f"{path}, {Path(path).stat().st_size / 2**20:.1f} MiB"


def _video_file(path: str) -> str:
    info = probe(path)
    return f"{path}: {info.codec}, {info.width}x{info.height}, {info.fps:.2f} fps, {info.duration / 60:.1f} minutes"


def _image_folder(settings: ImagesSettings) -> str:
    receipt = check_images(settings, "")
    sequences = f"{receipt.sequences} sequences, " if isinstance(receipt, SequencesReceipt) else ""
    return f"{settings.source}: {sequences}{receipt.files} images"


def _checkpoint(name: str, checkpoint: Checkpoint, config: Path | None) -> str:
    path = Path(checkpoint.file)
    require_file(path, how_to_get(name, checkpoint, config))
    if checkpoint.sha256 or receipt_path(path).exists():
        verify(path, sha256=checkpoint.sha256, url=checkpoint.url)
    statistics = None if checkpoint.mean is None or checkpoint.std is None else PixelStatistics(checkpoint.mean, checkpoint.std)
    options = {"key": checkpoint.key, "interpolation": checkpoint.interpolation, "stride": checkpoint.stride, "statistics": statistics}
    return str(load(path, checkpoint.arch, **options).report)  # type: ignore[arg-type]


def how_to_get(name: str, checkpoint: Checkpoint, config: Path | None) -> str:
    """How to get a checkpoint's file. config: the study's file, for commands."""
    wanted = checkpoint.arch if checkpoint.arch.startswith("timm/") else name
    found = public_checkpoint(wanted)
    if found is not None and checkpoint.file == found[1]["file"]:
        manual = published()[name].manual if name in published() else None
        return f"{manual}; save it as {checkpoint.file}" if manual else f"densewalk fetch {wanted}"
    return f"densewalk fetch --config {shlex.quote(str(config or 'CONFIG'))}" if checkpoint.url else "put it there or correct `file`"


def _evaluation_data(protocol: str, settings: Any, known: str | None) -> str:
    """What an evaluation's data hold, with a warning where they have a benchmark's name and are another list.

    Args:
        known: the data set of datasets.yaml, None for any other.
    """
    found = data_of(protocol, settings)
    lacks = lacks_at(known, Path(settings.root)) if known and (settings.TABLE, settings.dataset) in BENCHMARKS else ()
    if not lacks:
        return found
    told = f"{', '.join(lacks)}: not the benchmark {settings.dataset}; tables say so and show no published values"
    return Warned(f"{found}; {told}; to do: complete the data, or give `dataset` another name")


def data_of(protocol: str, settings: Any) -> str:
    """Count what an evaluation's data hold, and open a sample.

    Raises:
        UserError: the one that would stop the evaluation.
    """
    counts = ", ".join(f"{count} {what}" for what, count in evaluation_module(protocol).describe_data(settings).items())
    return f"{settings.root}: {counts}"
