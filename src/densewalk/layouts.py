"""COCO-Stuff as mmsegmentation's users keep it, and masks as classes by a label rule.

    examples = coco_stuff("data/coco", "val2017")
    classes = read_classes(examples[0].mask, RULES["coco_stuff"])

More layouts are in `labelled`, the rules in `settings.layouts`.
"""

from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from densewalk.errors import UserError
from densewalk.images import read_labels
from densewalk.labelled import Example, read_image
from densewalk.paths import existing_folder
from densewalk.settings.layouts import LabelRule

IGNORE = 255  # the class of pixels that are not scored
_NEITHER = 254  # of pixel values that are neither a class nor ignored


def coco_stuff(root: str | Path, split: str) -> list[Example]:
    """Images in `split` or images/`split`; masks in stuffthingmaps/`split` or annotations/`split`, as released (labels 0 to 181, 255).

    Files beside them that mmsegmentation's converter wrote (NAME_labelTrainIds.png) are passed over: their labels are others.
    """
    root = Path(root)
    images = _first(root / "images" / split, root / split)
    maps = _first(root / "stuffthingmaps" / split, root / "annotations" / split)
    examples = [Example(image, maps / f"{image.stem}.png") for image in _listed(images, "*.jpg")]
    for example in examples:
        if not example.mask.is_file():  # leaving it out would change the benchmark
            raise UserError(f"image {example.image} has no mask {example.mask}", todo="download stuffthingmaps_trainval2017.zip")
    return examples


def _first(one: Path, other: Path) -> Path:
    return one if one.is_dir() else other


def _listed(folder: Path, pattern: str) -> list[Path]:
    found = sorted(existing_folder(folder).glob(pattern))
    if not found:
        raise UserError(f"{folder} has no image {pattern}")
    return found


# -- classes ---------------------------------------------------------------------------------------------------------


def check(example: Example, rule: LabelRule) -> None:
    """Refuse an image or a mask that cannot be read, masks of another size than their image, and unknown labels."""
    classes, image = read_classes(example.mask, rule), read_image(example)
    if classes.shape != (image.height, image.width):
        raise UserError(f"{example.mask} is {classes.shape[1]}x{classes.shape[0]}, but {example} is {image.width}x{image.height}")


def read_classes(path: Path, rule: LabelRule) -> UInt8[np.ndarray, "height width"]:
    """A mask's classes, from 0 on; IGNORE where nothing is scored.

    for k, value in enumerate(rule.values):
        classes[labels == value] = k
    classes[labels == rule.ignored] = IGNORE

    Raises:
        UserError: unreadable, a colour image, or a pixel value that the rule does not know.
    """
    labels, table = read_labels(path), _table(rule)
    classes = table[labels if labels.dtype.kind == "u" else np.clip(labels, 0, len(table) - 1)]
    if (classes == _NEITHER).any():
        besides = "" if rule.ignored is None else f", and {rule.ignored} for pixels that are not scored"
        raise UserError(
            f"mask {path} holds label {labels[classes == _NEITHER][0]}",
            allowed=f"the {len(rule.values)} classes from {rule.values[0]} to {rule.values[-1]}{besides}",
            todo="correct the number of classes, or look whether the masks are those of this layout",
        )
    return classes


@lru_cache(maxsize=4)
def _table(rule: LabelRule) -> UInt8[np.ndarray, "65536"]:
    """The class of every pixel value of up to 16 bits; PNGs have no more."""
    table = np.full(1 << 16, _NEITHER, np.uint8)
    table[list(rule.values)] = np.arange(len(rule.values))
    if rule.ignored is not None:
        table[rule.ignored] = IGNORE
    return table
