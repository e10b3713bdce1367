"""A study to begin with: a user's video or frames, a random start, DINO and DoRA with three seeds, and their own masks."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.label_maps import list_folders, list_video, read_labels
from densewalk.data.benchmarks.label_rules import identity_rule
from densewalk.jobs.examine_video import Findings, count_clips, too_short
from densewalk.methods.dino.settings import DinoSettings
from densewalk.methods.dora.settings import DoraSettings
from densewalk.study.config import parse_study

SMALL_MINUTES = 30.0  # less usable video than this is begun with `preset: small_video`
SEEDS = [0, 1, 2]  # no interval without several
# what docs/small_video.md measured with
SMALL_COPY = {"short_side": 192, "crf": 12, "gop": 1}
SMALL_INCONTEXT = {"input_size": 160, "augmentation_epochs": 0}
IGNORE = 255  # the usual label of pixels that count for nothing
LARGEST_LABEL = 2**16 - 1
LEAST_MASKS = 7  # memory is masks 0, 4, 8, ..., and the first query is mask 6


@dataclass(frozen=True)
class Masks:
    """Masks that lie on frames. num_classes, ignore: as an evaluation's settings have them."""

    folder: Path
    files: int
    num_classes: int
    ignore: int | None


def find_masks(findings: Findings, folder: Path, ignore: int | None) -> Masks:
    """Read a folder of masks: each lies on a frame, and which labels they hold.

    Args:
        ignore: the label of pixels that count for nothing; by default 255 where it occurs.

    Raises:
        UserError: no mask, one without its frame or of another size, too few of them, or one label only.
    """
    source, info, any_label = Path(findings.info.path), findings.info, identity_rule(LARGEST_LABEL + 1, None)
    if source.is_dir() and (source.resolve() in (other := folder.resolve(), *other.parents) or other in source.resolve().parents):
        raise UserError(f"frames {source} and masks {folder} lie one inside the other", todo="give each a folder of its own")
    examples = (list_folders if source.is_dir() else list_video)(source, folder, any_label)
    values: set[int] = set()
    for example in examples:
        labels = read_labels(example.mask, any_label, example.still)
        if labels.shape != (info.height, info.width):
            found = f"{example.mask} is {labels.shape[1]}x{labels.shape[0]}, but {source} is {info.width}x{info.height}"
            raise UserError(found, todo="make the masks of the frames' size")
        values |= set(np.unique(labels).tolist())
    if len(examples) < LEAST_MASKS:
        found = f"{folder} has {len(examples)} masks"
        raise UserError(found, allowed=f"{LEAST_MASKS} or more: every fourth is memory, and every eighth from the seventh on a query")
    if ignore is None and IGNORE in values:
        ignore = IGNORE
    scored = values - {ignore}
    if len(scored) < 2:
        raise UserError(f"the masks in {folder} hold the labels {sorted(values)}", allowed="two that count, or more")
    return Masks(folder, len(examples), max(scored) + 1, ignore)


def format_study(findings: Findings, folder: Path, masks: Masks | None = None) -> str:
    """Return a study as YAML: the video or frames, a random start, DINO and DoRA with recipes of its size, and an evaluation on masks.

    Args:
        folder: of the study; paths inside it are written relative to it, others absolute.

    Raises:
        UserError: there is no clip even of two frames.
    """
    source = Path(findings.info.path)
    study = make_study(findings, path_in(folder, source), name_video(source.resolve()))
    notes = ["no evaluation yet: with masks of some frames, `add-video --masks FOLDER` adds one (docs/own_masks.md)"]
    if masks is not None:
        study["evaluations"] = {"incontext": masks_evaluation(findings, folder, masks, study["study"])}
        unscored = "every label counts; if one means unlabeled, give --ignore" if masks.ignore is None else f"{masks.ignore} is not scored"
        notes = [f"masks       {masks.files} in {masks.folder}: labels 0 to {masks.num_classes - 1}; {unscored}"]
    parse_study(study, f"the study on {source}")
    comments = [f"# {line}" for line in [*findings.report().splitlines(), "", *notes]]
    return "\n".join(line.rstrip() for line in comments) + "\n" + _as_yaml(study)


def _as_yaml(study: dict[str, Any]) -> str:
    """The study with its innermost mappings and lists in one line each."""
    dumper = type("Dumper", (yaml.SafeDumper,), {"ignore_aliases": lambda *_: True})
    return yaml.dump(study, Dumper=dumper, sort_keys=False, allow_unicode=True, default_flow_style=None, width=130)


def path_in(folder: Path, path: Path) -> str:
    """The path as a study in `folder` has it."""
    inside = path.resolve().is_relative_to(folder.resolve())
    return str(path.resolve().relative_to(folder.resolve()) if inside else path.resolve())


def make_study(findings: Findings, source: str, name: str) -> dict[str, Any]:
    """Return the study as a mapping, without what is default."""
    small, of_folder = is_small(findings), Path(findings.info.path).is_dir()
    arch = "vit_micro_patch16" if small else "vit_small_patch16"
    if of_folder:
        data = {"images": {name: {"source": source, "layout": "sequences", "fps": float(f"{findings.info.fps:g}")}}}
    else:
        broken = {"skip_broken": True} if findings.decoded < findings.tried else {}
        data = {"videos": {name: {"source": source, **(SMALL_COPY if small else {}), **broken}}}
    recipe: dict[str, Any] = {"preset": "small_video"} if small else {"epochs": 100}
    start = {"init": "random", "arch": arch, "seeds": SEEDS}
    return {
        "study": name.replace("_", " "),
        **data,
        "runs": {
            "random_start": {"method": "none", **start},
            f"dino_{name}": {"method": "dino", **start, "data": [name], "settings": fit_batch(findings, recipe)},
            f"dora_{name}": {"method": "dora", **start, "data": [name], "settings": fit_settings(findings, recipe)},
        },
    }


def is_small(findings: Findings) -> bool:
    """Whether it is begun with `preset: small_video`."""
    return findings.usable_seconds < 60 * SMALL_MINUTES


def masks_evaluation(findings: Findings, folder: Path, masks: Masks, dataset: str) -> dict[str, Any]:
    """In-context segmentation: labeled patches of some frames vote on those of others."""
    frames, labels = Path(findings.info.path).resolve(), masks.folder.resolve()
    root = Path(os.path.commonpath([frames.parent, labels.parent]))
    settings = {
        "root": path_in(folder, root),
        "dataset": dataset,
        "layout": "masks" if frames.is_dir() else "video",
        "images": str(frames.relative_to(root)),
        "masks": str(labels.relative_to(root)),
        "num_classes": masks.num_classes,
        **({} if masks.ignore is None else {"ignore": masks.ignore}),
        **(SMALL_INCONTEXT if is_small(findings) else {}),
    }
    return {"protocol": "incontext", "settings": settings}


def fit_batch(findings: Findings, settings: dict[str, Any]) -> dict[str, Any]:
    """Return DINO's settings, with a batch that the video has frames for."""
    frames = max(1, int(findings.usable_seconds * findings.info.fps + 1e-6))
    smaller = frames < DinoSettings.model_validate(settings).batch_size
    return {**settings, "batch_size": frames} if smaller else dict(settings)


def fit_settings(findings: Findings, settings: dict[str, Any]) -> dict[str, Any]:
    """Return DoRA's settings, with frames, spacing and batch that the video has room for."""
    recipe = DoraSettings.model_validate(settings)
    step = 1 / findings.info.fps
    room = findings.longest - step  # from a part's first frame to its last
    if room < step:
        raise too_short(findings)
    spacing = max(step, min(recipe.spacing_seconds, room))
    frames = min(recipe.frames, 1 + int(room / spacing + 1e-6))
    clips = max(1, count_clips(findings, (frames - 1) * spacing)[0])
    fitted = {"spacing_seconds": spacing, "frames": frames, "batch_size": min(clips, recipe.batch_size)}
    changed = {key: value for key, value in fitted.items() if value != getattr(recipe, key)}
    if "spacing_seconds" in changed:
        changed["spacing_seconds"] = round(spacing, 4)
    return {**settings, **changed}


def name_video(source: str | Path) -> str:
    """Make a key for the study from the file's name: lower-case letters, digits, underscores."""
    name = re.sub(r"[^a-z0-9]+", "_", Path(source).stem.lower()).strip("_")
    return name if re.match("[a-z]", name) else f"video_{name}".rstrip("_")
