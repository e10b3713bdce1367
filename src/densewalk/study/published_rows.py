"""Runs whose labels name a published row must be that row: architecture, method, initial backbone, data and settings. Free of torch.

Labels that published.csv does not know claim nothing and are free.
"""

import re
from collections.abc import Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from densewalk.data.download.catalog import dataset_at, datasets
from densewalk.data.settings import ImagesSettings, VideoSettings
from densewalk.models.catalog import Labels, published
from densewalk.results.published import is_published
from densewalk.study.registry import methods
from densewalk.study.runs import BaseRun, ChangedRun, TrainedRun

if TYPE_CHECKING:
    from densewalk.study.config import Study

TODO = "to do: correct one of the two, or give labels that no published row has"
SIZES = {"tiny": "Ti", "small": "S", "small12": "S", "base": "B", "large": "L", "huge": "H", "huge20": "H", "giant": "g"}
# what the published initial backbones had been trained on, by column `init`
INIT_DATA = {
    "DINO": "ImageNet-1k",
    "iBOT": "ImageNet-1k",
    "DINOv2": "LVD-142M",
    "DINOv2R": "LVD-142M",
    "TimeT": "YouTube-VOS (post-training)",
}
# first word of column `pretraining_data` -> data sets of datasets.yaml, and how their images are laid out
IMAGES = {
    "COCO": (("coco", "coco_stuff"), "pictures"),
    "YouTube-VOS": (("youtube_vos",), "sequences"),
    "ImageNet-1k": (("imagenet",), "pictures"),
}
TOURS = "walking_tours"
TOUR_FPS = 60  # frames a second of all ten


def check_published_rows(study: "Study") -> None:
    """Require that no labels claim a published row that the study itself contradicts.

    Raises:
        ValueError: the first contradiction, with the published value and the study's.
    """
    for name, checkpoint in study.checkpoints.items():
        known = next((entry.labels for entry in published().values() if entry.url and entry.url == checkpoint.url), checkpoint.labels)
        _require(f"checkpoints.{name}", checkpoint.labels, {"labels": (known, checkpoint.labels)}, checkpoint.arch)
    for name, run in study.runs.items():
        labels = study.labels_of(name)
        if labels is not None and is_published(labels):
            found = dict(_facts_of_training(study, run, labels) if isinstance(run, ChangedRun) else _facts_of_baseline(study, run, labels))
            _require(f"runs.{name}", labels, found, study.arch_of(name))


def _require(where: str, labels: Labels | None, facts: dict[str, tuple[Any, Any]], arch: str) -> None:
    """Compare what the published row had with what the study has."""
    if labels is None or not is_published(labels):
        return
    for what, (expected, here) in {"arch": _architectures(labels.arch, arch), **facts}.items():
        if expected != here:
            row = ", ".join(text for text in labels.model_dump().values() if text)
            raise ValueError(f"{where}.labels: the published row {row} has {what} {_text(expected)}, the study {_text(here)}; {TODO}")


def _text(value: Any) -> str:
    return str(value.model_dump()) if isinstance(value, Labels) else "none" if value in ("", None) else str(value)


def _architectures(label: str, arch: str) -> tuple[str, str]:
    """Size and patch by the label and by the architecture, e.g. ViT-S/16; equal where one of them does not tell."""
    named, is_ours = re.fullmatch(r"ViT-([A-Za-z]+)\+?/(\d+)", label), re.match(r"vit_([a-z]+\d*)_patch(\d+)", arch)
    if named is None or is_ours is None or is_ours[1] not in SIZES:
        return label, label
    return f"ViT-{named[1]}/{named[2]}", f"ViT-{SIZES[is_ours[1]]}/{is_ours[2]}"


def _facts_of_baseline(study: "Study", run: BaseRun, labels: Labels) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """A backbone as it is has the names of its file, or of the run that made it."""
    if run.init == "random":
        yield "method", (labels.method, "Random")
    elif (own := _labels_of_init(study, run.init)) is not None:
        yield "labels", (labels, own)


def _facts_of_training(study: "Study", run: ChangedRun, labels: Labels) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """(Published, the study's) method, initial backbone, data, and each setting of which the published value is known."""
    recipe = type(run.settings).published_settings(labels)
    if recipe is None:
        others = [name for name, settings in methods().items() if settings.published_settings(labels) is not None]
        yield "method", (" or ".join(others) or f"{labels.method}, which is none of densewalk's", run.method)
        return
    if run.init in study.runs or run.init == "random" or study.checkpoints[run.init].labels:
        own = _labels_of_init(study, run.init)
        unnamed = "" if run.init == "random" else f"{run.init}, a run without labels"
        yield "init", (labels.init, unnamed if own is None else own.method)
        if own is not None and labels.init in INIT_DATA:
            yield "init's data", (INIT_DATA[labels.init], own.pretraining_data)
    yield "data", _data(study, run.data if isinstance(run, TrainedRun) else [], labels.pretraining_data)
    here = run.settings.resolved()
    for name, allowed in recipe.items():
        value = getattr(here, name)
        expected = value if value in allowed else " or ".join(_text(other) for other in allowed)
        yield name, (expected, value)


def _labels_of_init(study: "Study", init: str) -> Labels | None:
    if init == "random":
        return None
    return study.checkpoints[init].labels if init in study.checkpoints else study.labels_of(init)


def _data(study: "Study", names: list[str], label: str) -> tuple[str, str]:
    """The data that the label names, and the study's as far as settings tell; equal where they may be the same."""
    sources = [study.videos.get(name) or study.images.get(name) or study.curations[name] for name in names]
    if label.startswith("WT_"):
        tours = datasets()[TOURS].videos
        city = label.removeprefix("WT_").split(" ")[0].lower()
        wanted = list(tours) if city == "all" else [city]
        here = [_tour(name, source, wanted, tours) for name, source in zip(names, sources, strict=True)]
        as_many = here + ["nothing"] * (len(wanted) - len(here))
        return ", ".join(wanted), ", ".join(wanted if set(here) <= set(wanted) and len(names) == len(wanted) else as_many)
    expected = IMAGES.get(label.split(" ")[0])
    if expected is None:
        return "", ""
    sets, layout = expected
    strange = [name for name, source in zip(names, sources, strict=True) if not _may_be(source, sets, layout)]
    return f"{label.split(' ')[0]} as layout {layout}", ", ".join(strange) or f"{label.split(' ')[0]} as layout {layout}"


def _tour(name: str, source: Any, wanted: list[str], tours: dict[str, str]) -> str:
    """The walking tour that a video is by its file's name or its own; a video that neither tells may be the wanted one."""
    if not isinstance(source, VideoSettings):
        return f"{name}, which is no video"
    if source.usable_seconds is not None or (source.fps is not None and source.fps < TOUR_FPS):
        return f"a part of {name}"
    known = [candidate for candidate in (PurePath(source.source).stem.lower(), name) if candidate in tours]
    return known[0] if known else wanted[0] if len(wanted) == 1 else name


def _may_be(source: Any, sets: tuple[str, ...], layout: str) -> bool:
    """Whether images have this layout and do not lie in the usual folder of another data set."""
    return isinstance(source, ImagesSettings) and source.layout == layout and dataset_at(source.source) in (None, *sets)
