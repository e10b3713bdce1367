"""Initial backbones: a study's files, and the public ones of checkpoints.yaml; no torch.

published()["dinov2_vits14_reg"].url
public_checkpoint("timm/vit_small_patch16_224.dino")       # any plain vision transformer of timm's, by its full name
"""

from functools import lru_cache
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import Field, ValidationError, model_validator

from densewalk.core.errors import UserError
from densewalk.core.imagenet import IMAGENET, IMAGENET_MEAN, IMAGENET_STD
from densewalk.core.progress import columns
from densewalk.core.settings import Settings, WorkflowPath, is_null
from densewalk.data.download.catalog import WheelFile
from densewalk.models.architecture import ArchitectureName
from densewalk.models.origin import Channels, Spreads

FOLDER = "checkpoints"  # where public files go, below the study's folder


class Labels(Settings):
    """How the published tables name a run. Published values are shown only where all four and the protocol agree."""

    method: str
    """Column `method` of published.csv, e.g. DoRA."""
    init: str = ""
    """Column `init`, e.g. DINO for NeCo on DINO; empty for training from scratch."""
    arch: str
    """Column `arch`, e.g. ViT-S/16."""
    pretraining_data: str = ""
    """Column `pretraining_data`, e.g. WT_Venice."""


class Checkpoint(Settings):
    """A file with a backbone's weights, in timm's layout or that of any family in checkpoints.yaml."""

    file: WorkflowPath
    """Path, relative to the study's folder."""
    arch: ArchitectureName
    """`vit_{tiny,small,base,large,huge,giant}_patch{8,14,16}[_reg4][_swiglu][_rope]`, `timm/` and a name of timm's, or
    `huggingface/` and a family ({vit,vit_mae,dinov2,dinov2_with_registers,dinov3_vit,clip,siglip})."""
    key: str | None = None
    """Which network of a training checkpoint, by a part of its name: `teacher`, `student`, `model` (the student in NeCo's and
    Leopart's), `feature_extractor` (the student in Time-Tuning's). Found by itself where there is only one."""
    interpolation: Literal["offset", "antialias", "size"] | None = None
    """How position embeddings are resampled to other image sizes, where it is not the rule of the architecture's family: `offset`
    (DINO, iBOT, DINOv2), `antialias` (DINOv2 with registers, timm), `size` (MAE, MoCo-v3)."""
    stride: int | None = Field(default=None, ge=1, exclude_if=is_null)
    """Of a convolutional or hierarchical network: the stage whose map is the dense one, by its pixels per position (8, 16 or 32 for most);
    the last stage if not given."""
    mean: Channels | None = Field(default=None, exclude_if=is_null)
    """Mean of red, green and blue (0..1) that images are normalized with, where it is not that of the architecture; with `std`."""
    std: Spreads | None = Field(default=None, exclude_if=is_null)
    """Their standard deviations."""
    url: str | None = None
    """Where the file comes from, or the page that says how to get it; `densewalk fetch` downloads it."""
    sha256: str | None = None
    """Checksum of the file; a file with another one is refused."""
    labels: Labels | None = None
    """Names in the published tables."""

    @model_validator(mode="after")
    def whole_statistics(self) -> Self:
        """Require mean and std together."""
        if (self.mean is None) != (self.std is None):
            raise ValueError("give mean and std together, or neither")
        return self


class Published(Settings):
    """One entry of checkpoints.yaml."""

    arch: str
    url: str | None = None
    manual: str | None = None
    wheel: WheelFile | None = None
    stride: int | None = None
    key: str | None = None
    interpolation: Literal["offset", "antialias", "size"] | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    bytes: int | None = Field(default=None, gt=0)
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    labels: Labels
    licence: str
    layout: str
    source: str

    @model_validator(mode="after")
    def one_way(self) -> Self:
        """Require an address, a package, or instructions for a download by hand."""
        if [self.url, self.manual, self.wheel].count(None) != 2:
            raise ValueError("give one of url, wheel and manual")
        if self.wheel is not None and self.sha256 is None:
            raise ValueError("sha256: give that of the file in the wheel")
        return self

    def file(self, name: str) -> str:
        """The file's path below the study's folder."""
        inside = self.wheel.member if self.wheel else urlsplit(self.url or "").path
        suffix = PurePosixPath(inside).suffix or ".pth"
        return f"{FOLDER}/{name}{suffix}"

    def checkpoint(self, name: str) -> dict[str, Any]:
        """The description of this file in a study."""
        shared = self.model_dump(include={"arch", "key", "interpolation", "stride", "sha256", "labels"}, exclude_none=True)
        known = (self.mean, self.std) == IMAGENET and not self.arch.startswith("timm/")  # timm has statistics of its own for each
        statistics = {} if known else {"mean": self.mean, "std": self.std}
        return {"file": self.file(name), "url": self.url or self.source, **statistics, **shared}


@lru_cache
def published() -> dict[str, Published]:
    """All public checkpoints by name."""
    content = yaml.safe_load(files("densewalk.models").joinpath("checkpoints.yaml").read_text())
    return {name: Published.model_validate(entry) for name, entry in content.items()}


def listing() -> str:
    """The table that `densewalk checkpoints` prints."""
    heads = ("name", "architecture", "method", "pretraining data", "sha256", "license", "how to get it")
    rows = []
    for name, entry in published().items():
        method = f"{entry.labels.method} on {entry.labels.init}" if entry.labels.init else entry.labels.method
        known = entry.sha256[:12] if entry.sha256 else "-"
        way = "by hand" if entry.manual else f"densewalk fetch {name}"
        rows.append((name, entry.arch, method, entry.labels.pretraining_data or "-", known, entry.licence, way))
    return columns(heads, rows)


def public_checkpoint(name: str) -> tuple[str, dict[str, Any]] | None:
    """Name and description of a public checkpoint in a study; None if it is none."""
    if name.startswith("timm/"):
        key = "timm_" + "".join(c if c.isalnum() else "_" for c in name.removeprefix("timm/").lower())
        url = f"https://huggingface.co/{name}/resolve/main/model.safetensors"
        return key, {"file": f"{FOLDER}/{name}.safetensors", "url": url, "arch": name}
    entry = published().get(name)
    return None if entry is None else (name, entry.checkpoint(name))


def known_checkpoint(name: str) -> tuple[str, Checkpoint] | None:
    """`public_checkpoint`, checked; UserError if timm has no such network."""
    try:
        found = public_checkpoint(name)
        return None if found is None else (found[0], Checkpoint.model_validate(found[1]))
    except ValidationError as error:
        raise UserError("; ".join(e["msg"].removeprefix("Value error, ") for e in error.errors())) from error
    except ValueError as error:
        raise UserError(str(error)) from error
