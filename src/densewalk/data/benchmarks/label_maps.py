"""Images with label maps, in the layouts of the public benchmarks.

    examples = list_ade20k("data/ade", "training", identity_rule(151, 0))
    image, labels = read_example(examples[0])

Listing checks that the files are there and belong together; their content is checked when they are read. Every error names
the file. Masks are indexed or grayscale PNGs whose pixel values are the labels: a palette is never taken for colors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int64, Integer
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.core.files import read_json
from densewalk.data.benchmarks.label_rules import CITYSCAPES_IDS, IGNORE, NAMES, LabelRule
from densewalk.data.benchmarks.paths import descend, existing_folder, read_list, read_text
from densewalk.data.images import EXTENSIONS, open_image, read_mask, read_stored
from densewalk.data.video.clips import ClipReader

UNKNOWN = -1  # in a table of labels, a pixel value that the rule does not know


@dataclass(frozen=True)
class Example:
    """One labelled image: an image file, or frame number `frame` of a video."""

    image: Path
    mask: Path
    rule: LabelRule
    frame: int | None = None

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
    examples = [Example(base / "JPEGImages" / f"{stem}.jpg", base / masks / f"{stem}.png", rule) for stem in stems]
    for file in (file for example in examples for file in (example.image, example.mask)):
        if not file.is_file():
            found = f"{path} lists {file.stem}, but {file} does not exist"
            raise UserError(found, todo="the masks of `trainaug` are a download of their own")
    return examples


def list_cityscapes(root: str | Path, split: str, train_ids: LabelRule | None = None) -> list[Example]:
    """List {leftImg8bit,gtFine}/`split`/CITY/*_{leftImg8bit,gtFine_labelIds}.png.

    The labels are the 19 training ids.

    Args:
        train_ids: the rule for the masks *_gtFine_labelTrainIds.png, which are read instead: not what is downloaded, but what
            mmsegmentation's users make of it.
    """
    images, truth = existing_folder(Path(root) / "leftImg8bit" / split), existing_folder(Path(root) / "gtFine" / split)
    by_key = {str(p.relative_to(images)).removesuffix("_leftImg8bit.png"): p for p in images.glob("*/*_leftImg8bit.png")}
    end = "_gtFine_labelTrainIds.png" if train_ids else "_gtFine_labelIds.png"
    masks_by_key = {str(p.relative_to(truth)).removesuffix(end): p for p in truth.glob(f"*/*{end}")}
    # leaving out an image without a mask, or a mask without an image, would change the benchmark
    for key in sorted(by_key.keys() - masks_by_key.keys()):
        todo = "make the masks with cityscapesscripts' csCreateTrainIdLabelImgs, or download gtFine"
        raise UserError(f"image {by_key[key]} has no mask {truth / key}{end}", todo=todo)
    for key in sorted(masks_by_key.keys() - by_key.keys()):
        raise UserError(f"mask {masks_by_key[key]} has no image {images / key}_leftImg8bit.png", todo="download leftImg8bit again")
    return _require_some([Example(by_key[key], masks_by_key[key], train_ids or CITYSCAPES_IDS) for key in sorted(by_key)], images)


def list_coco_panoptic(root: str | Path, name: str, layout: Literal["coco_things_12", "coco_stuff_15"]) -> list[Example]:
    """List `name`/*.jpg and annotations/panoptic_`name`{.json,/*.png}, by supercategories."""
    path = Path(root) / "annotations" / f"panoptic_{name}.json"
    content, numbers = read_json(path), {name: label for label, name in enumerate(NAMES[layout])}
    try:
        wanted = [c for c in content["categories"] if bool(c["isthing"]) == (layout == "coco_things_12")]
        labels = {c["id"]: numbers[c["supercategory"]] for c in wanted}
        files = {image["id"]: image["file_name"] for image in content["images"]}
        found = [(files[a["image_id"]], a["file_name"], _panoptic_rule(a["segments_info"], labels)) for a in content["annotations"]]
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} lacks {error}", allowed="COCO's panoptic annotations", todo="download them again") from error
    images, masks = existing_folder(Path(root) / name), existing_folder(path.with_suffix(""))
    examples = [Example(images / image, masks / mask, rule) for image, mask, rule in found]
    for file in (file for example in examples for file in (example.image, example.mask)):
        if not file.is_file():
            raise UserError(f"{path} names {file}, which does not exist", todo="download it")
    return _require_some(sorted(examples, key=lambda e: e.image), path)


def _panoptic_rule(segments: Sequence[dict[str, Any]], labels: dict[int, int]) -> LabelRule:
    pairs = tuple((s["id"], labels[s["category_id"]]) for s in segments if s["category_id"] in labels)
    return LabelRule(pairs, others=IGNORE, colors=True)


def list_coco_stuff(root: str | Path, split: str, rule: LabelRule) -> list[Example]:
    """List `split` or images/`split` and {stuffthingmaps,annotations}/`split`, as released.

    Files beside them that mmsegmentation's converter wrote (NAME_labelTrainIds.png) are passed over: their labels are others.
    """
    images = descend(root, "images") / split
    images = existing_folder(images if images.is_dir() else Path(root) / split)
    masks = Path(root) / "stuffthingmaps" / split
    masks = masks if masks.is_dir() else Path(root) / "annotations" / split
    examples = [Example(image, masks / f"{image.stem}.png", rule) for image in sorted(images.glob("*.jpg"))]
    if not examples:
        raise UserError(f"{images} has no image *.jpg")
    for example in examples:
        if not example.mask.is_file():  # leaving it out would change the benchmark
            raise UserError(f"image {example.image} has no mask {example.mask}", todo="download stuffthingmaps_trainval2017.zip")
    return examples


def list_folders(images: str | Path, masks: str | Path, rule: LabelRule) -> list[Example]:
    """List files with equal paths but for the suffix; images without a mask are left out."""
    images, masks = existing_folder(Path(images)), existing_folder(Path(masks))
    by_key = {p.relative_to(images).with_suffix(""): p for p in sorted(images.rglob("*")) if p.suffix.lower() in EXTENSIONS}
    examples = []
    for mask in sorted(masks.rglob("*.png")):
        image = by_key.get(mask.relative_to(masks).with_suffix(""))
        if image is None:
            found = f"mask {mask} has no image of that name in {images}"
            raise UserError(found, todo="image and mask names must be equal but for the suffix")
        examples.append(Example(image, mask, rule))
    return _require_some(examples, masks)


def list_video(path: str | Path, masks: str | Path, rule: LabelRule) -> list[Example]:
    """List the frames of a video that have a mask; masks are PNGs named by frame number."""
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
        examples.append(Example(path, mask, rule, int(mask.stem)))
    return _require_some(examples, masks)


def _require_some(examples: list[Example], where: Path) -> list[Example]:
    if not examples:
        raise UserError(f"{where} names no labelled image")
    return examples


def load_class_names(root: str | Path, layout: str, label_values: int, given: Sequence[str] | None = None) -> list[str]:
    """Return the given names of the labels, the layout's, those beside ADE20K, or numbers."""
    if given is not None:
        return list(given)
    if layout in NAMES:
        return list(NAMES[layout])
    table = descend(root, "ADEChallengeData2016") / "objectInfo150.txt"
    if layout == "ade20k" and table.is_file():
        rows = [line.split("\t") for line in read_text(table).splitlines()[1:]]
        return ["other", *(row[-1].split(",")[0].strip() for row in rows)]
    return [f"class {i}" for i in range(label_values)]


# -- reading ---------------------------------------------------------------------------------------------------------


def read_example(example: Example) -> tuple[Image.Image, Integer[np.ndarray, "height width"]]:
    """Read the RGB image and its labels; it is an error if their sizes differ."""
    image, labels = read_image(example), read_labels(example.mask, example.rule)
    if labels.shape != (image.height, image.width):
        raise UserError(f"{example.mask} is {labels.shape[1]}x{labels.shape[0]}, but {example} is {image.width}x{image.height}")
    return image, labels


def read_image(example: Example) -> Image.Image:
    """Read the image, RGB."""
    if example.frame is not None:
        frame = _reader(example.image).read([example.frame])[0]
        return Image.fromarray(frame.permute(1, 2, 0).numpy())
    return read_stored(example.image)


@lru_cache(maxsize=4)
def _reader(path: Path) -> ClipReader:
    """One open video per file and process."""
    return ClipReader(path)


def read_labels(path: Path, rule: LabelRule) -> Integer[np.ndarray, "height width"]:
    """Read a mask's labels, uint8 or, if there are larger ones, int32.

    for value, label in rule.pairs:
        labels[values == value] = label        # rule.others in all other pixels

    Raises:
        UserError: unreadable, another kind of file than the rule is for, or a pixel value that the rule does not know.
    """
    values = _read_color_numbers(path) if rule.colors else read_mask(path)
    known, meant = np.array(rule.pairs, dtype=np.int64).reshape(-1, 2).T
    last = known.max(initial=0) + 1
    if values.dtype.itemsize <= 2:  # a table of all 8 or 16 bit values
        last = max(last, np.iinfo(values.dtype).max)
    else:  # the last entry is for all that lies outside: value -1 leads there, too
        values = values.clip(-1, last)
    table = np.full(last + 1, UNKNOWN if rule.others is None else rule.others, np.int32)
    table[known] = meant
    labels = table[values]
    if (labels == UNKNOWN).any():
        scored = rule.values
        besides = "" if rule.ignored is None else f", and {rule.ignored} for pixels that are not scored"
        raise UserError(
            f"mask {path} holds label {values[labels == UNKNOWN][0]}",
            allowed=f"{scored[0]} to {scored[-1]} ({len(scored)} classes){besides}",
            todo="correct the number of classes or `ignore`, or look whether the masks are those of this layout",
        )
    return labels.astype(np.uint8) if table.max() < 256 else labels


def _read_color_numbers(path: Path) -> Int64[np.ndarray, "height width"]:
    """Red + 256 green + 256^2 blue of a panoptic PNG."""
    image = open_image(path)
    if image.mode != "RGB":
        raise UserError(f"mask {path} is no panoptic PNG ({image.mode})", allowed="RGB", todo="download it again")
    return np.asarray(image, dtype=np.int64) @ (1, 256, 65_536)
