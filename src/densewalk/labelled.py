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
from PIL import Image, UnidentifiedImageError

from densewalk.checkpoint import read_json
from densewalk.errors import UserError
from densewalk.settings import layouts
from densewalk.settings.labelled import LabelledSettings
from densewalk.video import ClipReader

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# modes in which a pixel is one number
MASK_MODES = ("P", "L", "1", "I", "I;16")
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
    root = _folder(_descend(Path(root), "ADEChallengeData2016"), "ADE20K's folder ADEChallengeData2016")
    return _pair(_folder(root / "images" / split), _folder(root / "annotations" / split))


def voc(root: str | Path, name: str, masks: str = "SegmentationClass") -> list[Example]:
    """VOC2012/{JPEGImages,`masks`} by ImageSets/Segmentation/`name`.txt; `root` is that folder, VOCdevkit, or the one above it."""
    root = _folder(_descend(_descend(Path(root), "VOCdevkit"), "VOC2012"), "Pascal VOC's folder VOC2012")
    path = root / "ImageSets" / "Segmentation" / f"{name}.txt"
    if not path.is_file():
        there = sorted(p.stem for p in path.parent.glob("*.txt"))
        raise UserError(f"list {path} does not exist", allowed=", ".join(there), todo="download it or name another list")
    stems = path.read_text().split()
    examples = [Example(root / "JPEGImages" / f"{stem}.jpg", root / masks / f"{stem}.png") for stem in stems]
    for example in examples:
        for file in (example.image, example.mask):
            if not file.is_file():
                raise UserError(
                    f"{path} lists {file.stem}, but {file} does not exist", todo="the masks of `trainaug` are a download of their own"
                )
    return _some(examples, path)


def cityscapes(root: str | Path, name: str) -> list[Example]:
    """leftImg8bit/`name`/CITY/*_leftImg8bit.png and gtFine/`name`/CITY/*_gtFine_labelIds.png, with the 19 training ids."""
    masks, images = _folder(Path(root) / "gtFine" / name), _folder(Path(root) / "leftImg8bit" / name)
    examples = []
    for mask in sorted(masks.rglob("*_gtFine_labelIds.png")):
        image = images / mask.parent.name / mask.name.replace("_gtFine_labelIds", "_leftImg8bit")
        if not image.is_file():
            raise UserError(f"mask {mask} has no image {image}", todo="download leftImg8bit again")
        examples.append(Example(image, mask, relabel=CITYSCAPES))
    return _some(examples, masks)


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
    folder, masks = _folder(Path(root) / name), _folder(path.with_suffix(""))
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
    return _pair(_folder(Path(images)), _folder(Path(masks)))


def video(path: str | Path, masks: str | Path) -> list[Example]:
    """The frames of a video that have a mask; masks are PNGs named by frame number."""
    path, masks = Path(path), _folder(Path(masks))
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


def split(settings: LabelledSettings, name: Literal["training", "validation"], list_name: str, every: int, first: int = 0) -> list[Example]:
    """The labelled images of one side. Layout `voc`: those of `list_name`; `masks` and `video`: every n-th from `first` on.

    Raises:
        UserError: a file is missing, or the images leave none for this side.
    """
    root, short = Path(settings.root), {"training": "train", "validation": "val"}[name]
    match settings.layout:
        case "ade20k":
            return ade20k(root, name)
        case "voc":
            return voc(root, list_name, settings.masks or "SegmentationClass")
        case "cityscapes":
            return cityscapes(root, short)
        case "coco_things":
            return coco(root, f"{short}2017", "things")
        case "coco_stuff":
            return coco(root, f"{short}2017", "stuff")
    assert settings.images is not None
    assert settings.masks is not None
    open_layout = video if settings.layout == "video" else folders
    examples = open_layout(root / settings.images, root / settings.masks)
    for example in examples:
        require_labels(example.mask, read_mask(example.mask), settings.label_values, settings.ignored)
    if first >= len(examples):
        raise UserError(f"{len(examples)} labelled images in {root} leave none for {name}", todo=f"lower the offset {first}")
    return examples[first::every]


def _descend(root: Path, name: str) -> Path:
    return root / name if (root / name).is_dir() else root


def _folder(path: Path, what: str = "folder") -> Path:
    if not path.is_dir():
        raise UserError(f"{what} {path} does not exist", todo="correct `root` or download the data")
    return path


def _some(examples: list[Example], where: Path) -> list[Example]:
    if not examples:
        raise UserError(f"{where} names no labelled image")
    return examples


def _pair(images: Path, masks: Path) -> list[Example]:
    by_key = {p.relative_to(images).with_suffix(""): p for p in sorted(images.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES}
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
    return _open(example.image).convert("RGB")


def read_labels(example: Example) -> Integer[np.ndarray, "height width"]:
    """The mask, in the layout's own numbering."""
    if example.relabel is None:
        return read_mask(example.mask)
    if not example.relabel.colours:
        return example.relabel(read_mask(example.mask))
    picture = _open(example.mask)
    if picture.mode != "RGB":
        raise UserError(f"mask {example.mask} is no panoptic PNG ({picture.mode})", allowed="RGB", todo="download it again")
    return example.relabel(np.asarray(picture, dtype=np.int64) @ (1, 256, 65_536))


def read_mask(path: Path) -> Integer[np.ndarray, "height width"]:
    """The labels of an indexed or greyscale PNG.

    Raises:
        UserError: unreadable, or a colour image.
    """
    mask = _open(path)
    if mask.mode not in MASK_MODES:
        raise UserError(
            f"mask {path} is a colour image ({mask.mode})", allowed="indexed or greyscale PNG whose pixel values are the labels"
        )
    labels = np.asarray(mask)
    return labels.astype(np.uint8) if labels.dtype == bool else labels


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
    table = _descend(Path(root), "ADEChallengeData2016") / "objectInfo150.txt"
    if layout == "ade20k" and table.is_file():
        rows = [line.split("\t") for line in table.read_text().splitlines()[1:]]
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


def _open(path: Path) -> Image.Image:
    """The decoded file; a truncated one is an error here and not later."""
    try:
        image = Image.open(path)
        image.load()
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise UserError(f"{path} cannot be read: {error}", todo="download it again") from error
    return image


@lru_cache(maxsize=4)
def _reader(path: Path) -> ClipReader:
    """One open video per file and process."""
    return ClipReader(path)
