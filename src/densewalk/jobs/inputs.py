"""Receipts, checkpoints and specifications as objects: what several jobs read."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from densewalk.core.errors import UserError
from densewalk.core.hashing import file_sha256
from densewalk.core.imagenet import IMAGENET
from densewalk.core.progress import log
from densewalk.data.receipts import CuratedReceipt, read_receipt
from densewalk.data.sources import Source
from densewalk.models.backbone import Backbone
from densewalk.models.blocks import CompiledBlocks
from densewalk.models.feature_cache import FeatureCache
from densewalk.models.interface import Network
from densewalk.models.layouts.content import require_file
from densewalk.models.loading import create, load
from densewalk.models.origin import CheckpointFile, RandomWeights, RunBackbone
from densewalk.study.registry import method_class
from densewalk.study.specs import RunSpec, code_of
from densewalk.training.execution import Execution
from densewalk.training.method import Method
from densewalk.training.settings import TrainingSettings


def initial_backbone(spec: RunSpec, init: Path | None) -> Network:
    """Random weights of the run's seed, or the given file's.

    Raises:
        UserError: see `read_backbone`; or no file is given.
    """
    if isinstance(spec.init, RandomWeights):
        require_code(spec.arch, spec.code)
        return create(spec.arch, seed=spec.seed)
    if init is None:
        raise UserError(f"--init is missing: {spec.run} starts from {spec.init.name}", todo="give that backbone's file")
    return read_backbone(spec.init, spec.arch, init, spec.code)


def read_teachers(spec: RunSpec, files: Sequence[Path]) -> list[Network]:
    """The networks that a run learns from, in the specification's order, in evaluation mode and without gradients.

    Raises:
        UserError: see `read_backbone`; or there are more or fewer files than teachers.
    """
    wanted = spec.teachers or []
    if len(files) != len(wanted):
        names = ", ".join(teacher.backbone.name for teacher in wanted)
        raise UserError(f"--teacher is given {len(files)} times", allowed=f"once for each of {names or 'no teachers'}")
    pairs = zip(wanted, files, strict=True)
    return [read_backbone(teacher.backbone, teacher.arch, file, teacher.code).eval().requires_grad_(False) for teacher, file in pairs]


def require_code(arch: str, planned: str | None) -> None:
    """UserError if the file of the user's own network is another one than the specification was made with."""
    if (found := code_of(arch)) != planned:
        raise UserError(f"the file of {arch} has changed (sha256 {found}, planned {planned})", todo="start snakemake again")


def read_backbone(origin: CheckpointFile | RunBackbone, arch: str, file: Path, code: str | None = None) -> Network:
    """The backbone of a checkpoint or of a run.

    Args:
        code: sha256 of the file of the user's own network, if it is one.

    Raises:
        UserError: the file is missing, has another checksum, or does not fit the architecture.
    """
    require_code(arch, code)
    checkpoint = origin if isinstance(origin, CheckpointFile) else None
    url = checkpoint.url if checkpoint else None
    todo = f"`densewalk fetch` where there is a network, or download {url}" if url else "put it there or correct `file`"
    require_file(file, todo)
    if checkpoint and checkpoint.sha256 and (found := file_sha256(file)) != checkpoint.sha256:
        raise UserError(f"{file} has sha256 {found}, expected {checkpoint.sha256}", todo="download it again")
    # the export of a run knows its architecture, which NeCo may have changed by dropping the registers
    if checkpoint is None:
        backbone = load(file)
    else:
        given = {"stride": checkpoint.stride, "statistics": checkpoint.statistics}
        backbone = load(file, arch, key=checkpoint.key, interpolation=checkpoint.interpolation, **given)  # type: ignore[arg-type]
    log.info("%s", backbone.report)
    return backbone


def make_method(
    spec: RunSpec, settings: TrainingSettings, backbone: Backbone, samples: int, execution: Execution, teachers: Sequence[Network] = ()
) -> Method:
    """The method of a run before its first step, from the run's seed, set up for how it is executed.

    Args:
        settings: those of the specification, or the same of another length. samples: of the data set.
    """
    torch.manual_seed(spec.seed)
    taught = {"teachers": teachers} if teachers else {}
    method: Method = method_class(spec.method)(settings, backbone, *settings.total_steps(samples), spec.seed, **taught)
    compiled = CompiledBlocks() if execution.compile else None
    for part in method.modules():
        if isinstance(part, Backbone):
            part.gradient_checkpointing = execution.gradient_checkpointing
            part.run_blocks = compiled or part.run_blocks
    return method


def require_trainable(network: Network, method: str) -> Backbone:
    """The network as the methods train it; UserError if it is of another family, or takes images with other statistics."""
    if not isinstance(network, Backbone) or not network.arch.trainable:
        found = "is no plain vision transformer with a CLS token"
        if isinstance(network, Backbone) and network.statistics != IMAGENET:
            found = f"takes images with mean {network.statistics.mean} and std {network.statistics.std}"
        elif isinstance(network, Backbone) and network.arch.without_position:
            found = "has position taken out of its map, which a training would not see"
        raise UserError(
            f"{method} cannot train {network.arch.name}, which {found}",
            allowed="plain vision transformers for images with ImageNet's mean and std",
            todo="choose another `init`, or `method: none` to evaluate it as it is",
        )
    return network


def read_data(receipts: Sequence[Path], names: Iterable[str]) -> list[Source]:
    """The prepared data of a specification, by receipts in its order.

    Raises:
        UserError: there are more or fewer receipts than data.
    """
    names = list(names)
    if len(receipts) != len(names):
        raise UserError(
            f"--data has {len(receipts)} receipts, not {len(names)}", allowed=f"one for each of {', '.join(names) or 'no data'}"
        )
    return [source for path, name in zip(receipts, names, strict=True) for source in read_sources(path, name)]


def read_sources(path: Path, name: str) -> list[Source]:
    """Read the receipt of prepared data; of a curation, what is kept of each source that it chose from."""
    receipt = read_receipt(path)
    if isinstance(receipt, CuratedReceipt):
        return [Source(n, source) for n, source in receipt.sources.items() if source.kept]
    return [Source(name, receipt)]


def feature_cache(execution: Execution) -> FeatureCache:
    """The folder of features that jobs share."""
    return FeatureCache(Path(os.environ.get("DENSEWALK_CACHE", "results/cache")), int(execution.cache_gib * 2**30))
