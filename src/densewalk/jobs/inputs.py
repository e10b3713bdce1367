"""Receipts and checkpoints as objects: what several jobs read."""

import os
from pathlib import Path
from typing import Any

from densewalk.core.errors import UserError
from densewalk.core.hashing import file_sha256
from densewalk.core.progress import log
from densewalk.data.receipts import CuratedReceipt, read_receipt
from densewalk.data.sources import Source
from densewalk.models.backbone import Backbone
from densewalk.models.feature_cache import FeatureCache
from densewalk.models.loading import create, load
from densewalk.training.execution import Execution


def initial_backbone(spec: dict[str, Any], init: Path | None) -> Backbone:
    """Random weights of the run's seed, or the given file's."""
    if spec["init"]["kind"] == "random":
        return create(spec["arch"], seed=spec["seed"])
    assert init is not None
    return read_backbone(spec["init"], spec["arch"], init)


def read_backbone(described: dict[str, Any], arch: str, file: Path) -> Backbone:
    """A checkpoint's or a run's backbone.

    Raises:
        UserError: the file is missing, has another checksum, or does not fit the architecture.
    """
    if not file.is_file():
        url = described.get("url")
        todo = f"`densewalk fetch` where there is a network, or download {url}" if url else "put it there or correct `file`"
        raise UserError(f"checkpoint {file} does not exist", todo=todo)
    expected = described.get("sha256")
    if expected and (found := file_sha256(file)) != expected:
        raise UserError(f"{file} has sha256 {found}, expected {expected}", todo="download it again")
    # a run's own export knows its architecture, which NeCo may have changed by dropping the registers
    own = None if described["kind"] == "run" else arch
    backbone = load(file, own, key=described.get("key"), interpolation=described.get("interpolation"))
    log.info("%s", backbone.report)
    return backbone


def read_sources(path: Path, name: str) -> list[Source]:
    """Read the receipt of prepared data; of a curation, what is kept of each source that it chose from."""
    receipt = read_receipt(path)
    if isinstance(receipt, CuratedReceipt):
        return [Source(n, source) for n, source in receipt.sources.items() if source.kept]
    return [Source(name, receipt)]


def feature_cache(execution: Execution) -> FeatureCache:
    """The folder of features that jobs share."""
    return FeatureCache(Path(os.environ.get("DENSEWALK_CACHE", "results/cache")), int(execution.cache_gib * 2**30))
