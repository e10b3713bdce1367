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

import numpy as np
from jaxtyping import Integer
from PIL import Image, UnidentifiedImageError

from densewalk.errors import UserError
from densewalk.video import ClipReader

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# modes in which a pixel is one number
MASK_MODES = ("P", "L", "1", "I", "I;16")


@dataclass(frozen=True)
class Example:
    """One labelled image: an image file, or frame number `frame` of a video."""

    image: Path
    mask: Path
    frame: int | None = None

    def __str__(self) -> str:
        return str(self.image) if self.frame is None else f"frame {self.frame} of {self.image}"


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
    image, mask = read_image(example), read_mask(example.mask)
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
    if layout == "voc":
        return VOC_NAMES
    table = _descend(Path(root), "ADEChallengeData2016") / "objectInfo150.txt"
    if layout == "ade20k" and table.is_file():
        rows = [line.split("\t") for line in table.read_text().splitlines()[1:]]
        return ["other", *(row[-1].split(",")[0].strip() for row in rows)]
    return [f"class {i}" for i in range(label_values)]


VOC_NAMES = [
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
]


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
