"""Images with label maps, in the layouts of the public benchmarks.

    examples = ade20k("data/ade", "training")
    image, mask = read(examples[0], label_values=151, ignore=0)

Listing checks that the files are there and belong together; their content is checked when they are read. Every error names
the file. Masks are indexed or greyscale PNGs whose pixel values are the labels: a palette is never taken for colours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.core.files import read_json
from densewalk.data.benchmarks import label_rules as layouts
from densewalk.data.benchmarks.label_rules import LabelRule
from densewalk.data.benchmarks.paths import descend, existing_folder, text_of
from densewalk.data.images import EXTENSIONS, open_picture, read_stored
from densewalk.data.images import read_labels as read_indexed
from densewalk.data.video.clips import ClipReader

IGNORED = 255  # what a relabelled mask holds beside its labels


@dataclass(frozen=True)
class Example:
    """One labelled image: an image file, or frame number `frame` of a video."""

    image: Path
    mask: Path
    frame: int | None = None
    relabel: "Relabel | None" = None

    def __str__(self) -> str:
        return str(self.image) if self.frame is None else f"frame {self.frame} of {self.image}"


@dataclass(frozen=True)
class Relabel:
    """Another numbering: (value in the file, label) pairs with ascending values; whatever is not among them becomes IGNORED.

    colours: the value is red + 256 green + 256^2 blue, as in panoptic PNGs.
    """

    pairs: tuple[tuple[int, int], ...]
    colours: bool = False

    def __call__(self, values: Integer[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
        """The labels."""
        if not self.pairs:
            return np.full(values.shape, IGNORED, np.uint8)
        known, labels = np.array(self.pairs, dtype=np.int64).T
        place = np.searchsorted(known, values).clip(max=len(known) - 1)
        return np.where(known[place] == values, labels[place], IGNORED).astype(np.uint8)


# -- layouts ---------------------------------------------------------------------------------------------------------


def ade20k(root: str | Path, split: str) -> list[Example]:
    """ADEChallengeData2016/{images,annotations}/{training,validation}; `root` is that folder or the one above it."""
    root = existing_folder(descend(Path(root), "ADEChallengeData2016"), "ADE20K's folder ADEChallengeData2016")
    return _pair(existing_folder(root / "images" / split), existing_folder(root / "annotations" / split))


def voc(root: str | Path, name: str, masks: str = "SegmentationClass") -> list[Example]:
    """VOC2012/{JPEGImages,`masks`} by ImageSets/Segmentation/`name`.txt; `root` is that folder, VOCdevkit, or the one above it."""
    root = existing_folder(descend(descend(Path(root), "VOCdevkit"), "VOC2012"), "Pascal VOC's folder VOC2012")
    path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    if not path.is_file():
        there = sorted(p.stem for p in path.parent.glob("*.txt"))
        raise UserError(f"list {path} does not exist", allowed=", ".join(there), todo="download it or name another list")
    stems = text_of(path).split()
    examples = [Example(root / "JPEGImages" / f"{stem}.jpg", root / masks / f"{stem}.png") for stem in stems]
    for example in examples:
        for file in (example.image, example.mask):
            if not file.is_file():
                raise UserError(
                    f"{path} lists {file.stem}, but {file} does not exist", todo="the masks of `trainaug` are a download of their own"
                )
    return _some(examples, path)


def cityscapes(root: str | Path, name: str, masks: Literal["labelIds", "labelTrainIds"] = "labelIds") -> list[Example]:
    """leftImg8bit/`name`/CITY/*_leftImg8bit.png and gtFine/`name`/CITY/*_gtFine_`masks`.png, both with the 19 training ids.

    `labelIds` are what is downloaded, `labelTrainIds` what mmsegmentation's users make of them.

    Raises:
        UserError: an image without a mask or a mask without an image: leaving them out would change the benchmark.
    """
    images, truth = existing_folder(Path(root) / "leftImg8bit" / name), existing_folder(Path(root) / "gtFine" / name)
    by_key = {str(p.relative_to(images)).removesuffix("_leftImg8bit.png"): p for p in images.glob("*/*_leftImg8bit.png")}
    ends = f"_gtFine_{masks}.png"
    masks_by_key = {str(p.relative_to(truth)).removesuffix(ends): p for p in truth.glob(f"*/*{ends}")}
    for key in sorted(by_key.keys() - masks_by_key.keys()):
        todo = "make the masks with cityscapesscripts' csCreateTrainIdLabelImgs, or download gtFine"
        raise UserError(f"image {by_key[key]} has no mask {truth / key}{ends}", todo=todo)
    for key in sorted(masks_by_key.keys() - by_key.keys()):
        raise UserError(f"mask {masks_by_key[key]} has no image {images / key}_leftImg8bit.png", todo="download leftImg8bit again")
    relabel = CITYSCAPES if masks == "labelIds" else None
    return _some([Example(by_key[key], masks_by_key[key], relabel=relabel) for key in sorted(by_key)], images)


def coco(root: str | Path, name: str, kind: Literal["things", "stuff"]) -> list[Example]:
    """`name`/*.jpg and annotations/panoptic_`name`{.json,/*.png}: one label for each supercategory of `kind`, in alphabetical order.

    Raises:
        UserError: a file is missing, or the annotations are not COCO's panoptic ones.
    """
    path = Path(root) / "annotations" / f"panoptic_{name}.json"
    content = read_json(path)
    try:
        labels = _supercategories(content["categories"], kind)
        files = {image["id"]: image["file_name"] for image in content["images"]}
        found = [(files[a["image_id"]], a["file_name"], a["segments_info"]) for a in content["annotations"]]
        tables = [tuple(sorted((s["id"], labels[s["category_id"]]) for s in info if s["category_id"] in labels)) for *_, info in found]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} lacks {error}", allowed="COCO's panoptic annotations", todo="download them again") from error
    folder, masks = existing_folder(Path(root) / name), existing_folder(path.with_suffix(""))
    examples = [
        Example(folder / image, masks / mask, relabel=Relabel(table, colours=True))
        for (image, mask, _), table in zip(found, tables, strict=True)
    ]
    for file in (file for example in examples for file in (example.image, example.mask)):
        if not file.is_file():
            raise UserError(f"{path} names {file}, which does not exist", todo="download it")
    return _some(sorted(examples, key=lambda e: e.image), path)


def _supercategories(categories: Sequence[dict[str, Any]], kind: Literal["things", "stuff"]) -> dict[int, int]:
    numbers = {name: number for number, name in enumerate(NAMES[f"coco_{kind}"])}
    return {c["id"]: numbers[c["supercategory"]] for c in categories if bool(c["isthing"]) == (kind == "things")}


def folders(images: str | Path, masks: str | Path) -> list[Example]:
    """Image and mask files with equal paths but for the suffix, sorted. Images without a mask are left out."""
    return _pair(existing_folder(Path(images)), existing_folder(Path(masks)))


def video(path: str | Path, masks: str | Path) -> list[Example]:
    """The frames of a video that have a mask; masks are PNGs named by frame number."""
    path, masks = Path(path), existing_folder(Path(masks))
    if not path.is_file():
        raise UserError(f"video {path} does not exist", todo="correct the path")
    total = len(_reader(path))
    examples = []
    for mask in sorted(masks.glob("*.png")):
        if not mask.stem.isdecimal():
            raise UserError(f"mask {mask} is not named by a frame number", allowed="00000.png, 00001.png, ...")
        if int(mask.stem) >= total:
            raise UserError(f"mask {mask}: {path} has only {total} frames", allowed=f"0 to {total - 1}")
        examples.append(Example(path, mask, int(mask.stem)))
    return _some(examples, masks)


def _some(examples: list[Example], where: Path) -> list[Example]:
    if not examples:
        raise UserError(f"{where} names no labelled image")
    return examples


def _pair(images: Path, masks: Path) -> list[Example]:
    by_key = {p.relative_to(images).with_suffix(""): p for p in sorted(images.rglob("*")) if p.suffix.lower() in EXTENSIONS}
    examples = []
    for mask in sorted(masks.rglob("*.png")):
        image = by_key.get(mask.relative_to(masks).with_suffix(""))
        if image is None:
            raise UserError(
                f"mask {mask} has no image of that name in {images}", todo="image and mask names must be equal but for the suffix"
            )
        examples.append(Example(image, mask))
    return _some(examples, masks)


# -- reading ---------------------------------------------------------------------------------------------------------


def read(example: Example, *, label_values: int, ignore: int | None) -> tuple[Image.Image, Integer[np.ndarray, "height width"]]:
    """The RGB image and its mask, uint8 or wider.

    Raises:
        UserError: a file cannot be read, the sizes differ, or a label is neither below `label_values` nor `ignore`.
    """
    image, mask = read_image(example), read_labels(example)
    if mask.shape != (image.height, image.width):
        raise UserError(f"{example.mask} is {mask.shape[1]}x{mask.shape[0]}, but {example} is {image.width}x{image.height}")
    require_labels(example.mask, mask, label_values, ignore)
    return image, mask


def read_image(example: Example) -> Image.Image:
    """The image, RGB."""
    if example.frame is not None:
        frame = _reader(example.image).read([example.frame])[0]
        return Image.fromarray(frame.permute(1, 2, 0).numpy())
    return read_stored(example.image)


def read_labels(example: Example) -> Integer[np.ndarray, "height width"]:
    """The mask, in the layout's own numbering."""
    if example.relabel is None:
        return read_indexed(example.mask)
    if not example.relabel.colours:
        return example.relabel(read_indexed(example.mask))
    picture = open_picture(example.mask)
    if picture.mode != "RGB":
        raise UserError(f"mask {example.mask} is no panoptic PNG ({picture.mode})", allowed="RGB", todo="download it again")
    return example.relabel(np.asarray(picture, dtype=np.int64) @ (1, 256, 65_536))


def require_labels(path: Path, mask: Integer[np.ndarray, "height width"], label_values: int, ignore: int | None) -> None:
    """Refuse a mask with a label beyond the classes, naming the file."""
    found = np.unique(mask)
    wrong = [int(v) for v in found if v >= label_values and v != ignore]
    if wrong:
        besides = f" and {ignore}" if ignore is not None and ignore >= label_values else ""
        raise UserError(
            f"mask {path} holds label {wrong[0]}", allowed=f"0 to {label_values - 1}{besides}", todo="correct num_classes or ignore"
        )


def class_names(root: str | Path, layout: str, label_values: int, given: Sequence[str] | None = None) -> list[str]:
    """Names of the labels: the given ones, VOC's, those of ADE20K's objectInfo150.txt, or numbers."""
    if given is not None:
        return list(given)
    if layout in NAMES:
        return NAMES[layout]
    table = descend(Path(root), "ADEChallengeData2016") / "objectInfo150.txt"
    if layout == "ade20k" and table.is_file():
        rows = [line.split("\t") for line in text_of(table).splitlines()[1:]]
        return ["other", *(row[-1].split(",")[0].strip() for row in rows)]
    return [f"class {i}" for i in range(label_values)]


VOC_NAMES = [
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]
THINGS_NAMES = [
    *("accessory", "animal", "appliance", "electronic", "food", "furniture", "indoor", "kitchen", "outdoor", "person", "sports"),
    "vehicle",
]
STUFF_NAMES = [
    *("building", "ceiling", "floor", "food-stuff", "furniture-stuff", "ground", "plant", "raw-material", "sky", "solid"),
    *("structural", "textile", "wall", "water", "window"),
]
NAMES = {"voc": VOC_NAMES, "cityscapes": [*layouts.NAMES["cityscapes"]], "coco_things": THINGS_NAMES, "coco_stuff": STUFF_NAMES}
# label ids of the 19 classes that are scored, in their order
CITYSCAPES = Relabel(tuple(zip((7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33), range(19), strict=True)))


@lru_cache(maxsize=4)
def _reader(path: Path) -> ClipReader:
    """One open video per file and process."""
    return ClipReader(path)


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
    labels, table = read_indexed(path), _table(rule)
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
