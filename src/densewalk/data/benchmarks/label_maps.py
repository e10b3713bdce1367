"""Images with label maps, in the layouts of the public benchmarks.

    examples = list_ade20k("data/ade", "training", identity_rule(151, 0))
    image, labels = read_example(examples[0])

Listing checks that every image has its mask and every mask its image, of one size, by the files' headers; their content is checked
when they are read. Every error names the file. Masks are indexed or grayscale PNGs whose pixel values are the labels: a palette is
never taken for colors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Integer
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.coco import check_pictures
from densewalk.data.benchmarks.coco_panoptic import read_panoptic
from densewalk.data.benchmarks.label_rules import CITYSCAPES_IDS, IGNORE, NAMES, LabelRule
from densewalk.data.benchmarks.paths import descend, existing_folder, read_list, read_text
from densewalk.data.file_lists import by_key, find_files, frames_in_order, pair_keys
from densewalk.data.image_files import EXTENSIONS, read_color_numbers, read_mask, require_fit
from densewalk.data.image_files import read_image as read_image_file
from densewalk.data.storage.places import is_file, is_folder, resolve
from densewalk.data.video.clips import ClipReader

MASKS = (".png",)
UNKNOWN = -1  # in a table of labels, a pixel value that the rule does not know


@dataclass(frozen=True)
class Example:
    """One labelled image: an image file, or frame number `frame` of a video."""

    image: Path
    mask: Path
    rule: LabelRule
    frame: int | None = None

    @property
    def still(self) -> Path | None:
        """The image file that the mask lies on; None for a frame of a video."""
        return self.image if self.frame is None else None

    def __str__(self) -> str:
        return str(self.image) if self.frame is None else f"frame {self.frame} of {self.image}"


# -- layouts ---------------------------------------------------------------------------------------------------------


def list_ade20k(root: str | Path, split: str, rule: LabelRule) -> list[Example]:
    """List ADEChallengeData2016/{images,annotations}/`split`, below `root` or `root` itself."""
    base = existing_folder(descend(root, "ADEChallengeData2016"), "ADE20K's folder ADEChallengeData2016")
    return list_folders(base / "images" / split, base / "annotations" / split, rule)


def list_voc(root: str | Path, name: str, masks: str, rule: LabelRule) -> list[Example]:
    """List VOC2012/{JPEGImages,`masks`} by ImageSets/Segmentation/`name`.txt.

    `root` is VOC2012, VOCdevkit or the folder above it.
    """
    base = existing_folder(descend(root, "VOCdevkit", "VOC2012"), "Pascal VOC's folder VOC2012")
    path = base / "ImageSets" / "Segmentation" / f"{name}.txt"
    stems = read_list(path, todo="download it or name another list")
    images, labels = resolve(base / "JPEGImages"), resolve(base / masks)
    examples = [Example(images / f"{stem}.jpg", labels / f"{stem}.png", rule) for stem in stems]
    for file in (file for example in examples for file in (example.image, example.mask)):
        if not is_file(file):
            found = f"{path} lists {file.stem}, but {file} does not exist"
            raise UserError(found, todo="the masks of `trainaug` are a download of their own")
    return _checked(examples, path)


def list_cityscapes(root: str | Path, split: str, train_ids: LabelRule | None = None) -> list[Example]:
    """List {leftImg8bit,gtFine}/`split`/CITY/*_{leftImg8bit,gtFine_labelIds}.png.

    The labels are the 19 training ids.

    Args:
        train_ids: the rule for the masks *_gtFine_labelTrainIds.png, which are read instead: not what is downloaded, but what
            mmsegmentation's users make of it.
    """
    images, truth = existing_folder(Path(root) / "leftImg8bit" / split), existing_folder(Path(root) / "gtFine" / split)
    end = "_gtFine_labelTrainIds" if train_ids else "_gtFine_labelIds"
    todo = f"make the masks *{end}.png with cityscapesscripts' csCreateTrainIdLabelImgs, or download gtFine and leftImg8bit again"
    return _list_pairs(images, truth, train_ids or CITYSCAPES_IDS, ends=("_leftImg8bit", end), todo=todo)


def list_coco_panoptic(root: str | Path, name: str, layout: Literal["coco_things_12", "coco_stuff_15"]) -> list[Example]:
    """List `name`/*.jpg and annotations/panoptic_`name`{.json,/*.png}, by supercategories."""
    path = Path(root) / "annotations" / f"panoptic_{name}.json"
    found, categories = read_panoptic(path)
    numbers = {name: label for label, name in enumerate(NAMES[layout])}
    wanted = {number: category for number, category in categories.items() if category.thing == (layout == "coco_things_12")}
    if unknown := [category.supercategory for category in wanted.values() if category.supercategory not in numbers]:
        raise UserError(f"{path} has the supercategory {unknown[0]}", allowed=", ".join(numbers), todo="download it again")
    labels = {number: numbers[category.supercategory] for number, category in wanted.items()}
    images, masks = existing_folder(Path(root) / name), existing_folder(path.with_suffix(""))
    check_pictures([segments.image for segments in found], images, path)
    examples = []
    for segments in found:
        pairs = tuple((number, labels.get(category, IGNORE)) for number, category in segments.pairs)
        # a segment that the file does not name is an error: the PNG is another image's, or another version's
        examples.append(Example(images / segments.image.name, masks / segments.mask, LabelRule(((0, IGNORE), *pairs), 0, colors=True)))
        if not is_file(examples[-1].mask):
            raise UserError(f"{path} names {examples[-1].mask}, which does not exist", todo="download it")
    return _checked(sorted(examples, key=lambda e: e.image), path)


def list_coco_stuff(root: str | Path, split: str, rule: LabelRule) -> list[Example]:
    """List `split` or images/`split` and {stuffthingmaps,annotations}/`split`, as released.

    Files beside them that mmsegmentation's converter wrote (NAME_labelTrainIds.png) are passed over: their labels are others.
    """
    images = descend(root, "images") / split
    images = existing_folder(images if is_folder(images) else Path(root) / split)
    masks = Path(root) / "stuffthingmaps" / split
    masks = masks if is_folder(masks) else Path(root) / "annotations" / split
    return _list_pairs(images, existing_folder(masks), rule, passed_over="_labelTrainIds", todo="download stuffthingmaps_trainval2017.zip")


def list_folders(images: str | Path, masks: str | Path, rule: LabelRule) -> list[Example]:
    """List files with equal paths but for the suffix; every image has a mask, and every mask an image."""
    return _list_pairs(existing_folder(Path(images)), existing_folder(Path(masks)), rule)


def list_video(path: str | Path, masks: str | Path, rule: LabelRule) -> list[Example]:
    """List the frames of a video that have a mask, in their order; masks are PNGs named by frame number."""
    path, masks = Path(path), existing_folder(Path(masks))
    if not path.is_file():
        raise UserError(f"video {path} does not exist", todo="correct the path")
    total = len(_reader(path))
    examples = []
    for name in frames_in_order(find_files(masks, MASKS, below=False), masks):
        mask = masks / name
        if not mask.stem.isdecimal():
            raise UserError(f"mask {mask} is not named by a frame number", allowed="00000.png, 00001.png, ...")
        if int(mask.stem) >= total:
            raise UserError(f"mask {mask}: {path} has only {total} frames", allowed=f"0 to {total - 1}")
        examples.append(Example(path, mask, rule, int(mask.stem)))
    return _checked(examples, masks)


def _list_pairs(
    images: Path, masks: Path, rule: LabelRule, *, ends: tuple[str, str] = ("", ""), passed_over: str = "", todo: str = ""
) -> list[Example]:
    """List images and masks with equal paths but for the suffix, sorted.

    Args:
        ends: what names of images and of masks end with; other files are passed over. passed_over: masks that end with this, too.
        todo: about images without a mask.
    """
    image_names = by_key(images, find_files(images, EXTENSIONS), end=ends[0])
    mask_names = by_key(masks, find_files(masks, MASKS), end=ends[1])
    if passed_over:
        mask_names = {key: name for key, name in mask_names.items() if not key.endswith(passed_over)}
    keys = sorted(pair_keys(image_names, mask_names, (images, masks), ends=ends, todo=todo), key=lambda key: mask_names[key].split("/"))
    return _checked([Example(images / image_names[key], masks / mask_names[key], rule) for key in keys], images)


def _checked(examples: list[Example], where: Path) -> list[Example]:
    """Return the examples if there are any, and each mask lies on its image."""
    if not examples:
        raise UserError(f"{where} names no labelled image")
    for example in examples:
        if example.still is not None:
            require_fit(example.mask, example.image)
    return examples


def load_class_names(root: str | Path, layout: str, label_values: int, given: Sequence[str] | None = None) -> list[str]:
    """Return the given names of the labels, the layout's, those beside ADE20K, or numbers."""
    if given is not None:
        return list(given)
    if layout in NAMES:
        return list(NAMES[layout])
    table = descend(root, "ADEChallengeData2016") / "objectInfo150.txt"
    if layout == "ade20k" and is_file(table):
        rows = [line.split("\t") for line in read_text(table).splitlines()[1:]]
        return ["other", *(row[-1].split(",")[0].strip() for row in rows)]
    return [f"class {i}" for i in range(label_values)]


def names_beside_masks(masks: str | Path, label_values: int) -> list[str] | None:
    """Return the lines of classes.txt in a folder of masks, which are its labels' names; None if there is none of so many lines."""
    table = resolve(Path(masks) / "classes.txt")
    names = [line.strip() for line in read_text(table).splitlines() if line.strip()] if is_file(table) else []
    return names if len(set(names)) == len(names) == label_values else None


# -- reading ---------------------------------------------------------------------------------------------------------


def read_example(example: Example) -> tuple[Image.Image, Integer[np.ndarray, "height width"]]:
    """Read the upright RGB image and its labels; it is an error if their sizes differ."""
    image, labels = read_image(example), read_labels(example.mask, example.rule, example.still)
    if labels.shape != (image.height, image.width):
        raise UserError(f"{example.mask} is {labels.shape[1]}x{labels.shape[0]}, but {example} is {image.width}x{image.height}")
    return image, labels


def read_image(example: Example) -> Image.Image:
    """Read the image, upright RGB."""
    if example.frame is not None:
        frame = _reader(example.image).read([example.frame])[0]
        return Image.fromarray(frame.permute(1, 2, 0).numpy())
    return read_image_file(example.image)


@lru_cache(maxsize=4)
def _reader(path: Path) -> ClipReader:
    """One open video per file and process."""
    return ClipReader(path)


def read_labels(path: Path, rule: LabelRule, image: Path | None = None) -> Integer[np.ndarray, "height width"]:
    """Read a mask's labels as they lie on its upright image, uint8 or, if there are larger ones, int32.

    for value, label in rule.pairs:
        labels[values == value] = label        # rule.others in all other pixels

    Args:
        image: the image that the mask belongs to; None for a frame of a video.

    Raises:
        UserError: unreadable, another kind of file than the rule is for, or a pixel value that the rule does not know.
    """
    stored = read_color_numbers(path, image) if rule.colors else read_mask(path, image)
    known, meant = np.array(rule.pairs, dtype=np.int64).reshape(-1, 2).T
    last = known.max(initial=0) + 1
    values = stored
    if stored.dtype.itemsize <= 2:  # a table of all 8 or 16 bit values
        last = max(last, np.iinfo(stored.dtype).max)
    else:  # the last entry is for all that lies outside: value -1 leads there, too
        values = stored.clip(-1, last)
    table = np.full(last + 1, UNKNOWN if rule.others is None else rule.others, np.int32)
    table[known] = meant
    labels = table[values]
    if (labels == UNKNOWN).any() and rule.colors:
        found = f"mask {path} holds the segment {stored[labels == UNKNOWN][0]}, which its annotation does not name"
        raise UserError(found, todo="look whether PNGs and annotation file belong together")
    if (labels == UNKNOWN).any():
        scored = rule.values
        besides = "" if rule.ignored is None else f", and {rule.ignored} for pixels that are not scored"
        raise UserError(
            f"mask {path} holds label {stored[labels == UNKNOWN][0]}",
            allowed=f"{scored[0]} to {scored[-1]} ({len(scored)} classes){besides}",
            todo="correct the number of classes or `ignore`, or look whether the masks are those of this layout",
        )
    return labels.astype(np.uint8) if table.max() < 256 else labels
