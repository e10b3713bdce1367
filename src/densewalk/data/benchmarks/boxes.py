"""Bounding boxes, and data sets of images or frames with boxes: Pascal VOC, COCO, GOT-10k.

    VOCdevkit/VOC2007/{JPEGImages,Annotations,ImageSets/Main}                  voc("data/VOCdevkit", 2007, "trainval")
    COCO/train2014/*.jpg, COCO/annotations/instances_train2014.json           coco("data/coco", "train2014", annotations, ids)
    GOT-10k/val/list.txt, GOT-10k/val/{sequence}/{*.jpg,groundtruth.txt}      got10k("data/GOT-10k", "val")

A box is x0, y0, x1, y1 in pixels from the picture's upper left corner; x1 and y1 lie outside, so that x1 - x0 is the width.
"""

import json
import re
from collections.abc import Sequence as Several
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool, Float

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.paths import descend, existing_file, existing_folder, text_of
from densewalk.data.images import picture_header

Boxes = Float[np.ndarray, "boxes 4"]


def iou(one: Float[np.ndarray, "*one 4"], other: Float[np.ndarray, "*other 4"]) -> Float[np.ndarray, "..."]:
    """Intersection over union of boxes that broadcast against each other; 0 where both are empty.

    intersection = max(0, min(x1, x1') - max(x0, x0')) * max(0, min(y1, y1') - max(y0, y0'))
    """
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    intersection = sides.clip(min=0).prod(axis=-1)
    union = np.asarray(_area(one) + _area(other) - intersection)
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def _area(boxes: Float[np.ndarray, "*batch 4"]) -> Float[np.ndarray, "*batch"]:
    return np.asarray((boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(axis=-1))


def clip(boxes: Float[np.ndarray, "*batch 4"], width: int, height: int) -> Float[np.ndarray, "*batch 4"]:
    """The boxes' parts inside a picture."""
    return np.clip(boxes, 0, [width, height, width, height])


# -- images ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Boxed:
    """An image file and the boxes of its objects."""

    image: Path
    boxes: Boxes


def voc(root: str | Path, year: int, split: str = "trainval") -> list[Boxed]:
    """The images of ImageSets/Main/`split`.txt with the boxes of all their objects, difficult and truncated ones included.

    The files count pixels from 1, and the last pixel belongs to the box: x0 and y0 lose one, x1 and y1 stay.
    `root` is VOC`year`, VOCdevkit, or the folder above it.

    Raises:
        UserError: a list, an image or an annotation is missing, or an annotation cannot be read.
    """
    root = descend(descend(Path(root), "VOCdevkit"), f"VOC{year}")
    if root.name != f"VOC{year}":
        raise UserError(
            f"{root} is not Pascal VOC's folder VOC{year} and holds none", todo="correct `root` or `year`, or download the data"
        )
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt")))
        raise UserError(f"list {path} does not exist", allowed=there, todo="correct `root`, `year` or `split`")
    stems = text_of(path).split()
    if not stems:
        raise UserError(f"list {path} is empty")
    return [
        Boxed(existing_file(root / "JPEGImages" / f"{stem}.jpg"), _voc_boxes(existing_file(root / "Annotations" / f"{stem}.xml")))
        for stem in stems
    ]


def _voc_boxes(path: Path) -> Boxes:
    try:
        text = path.read_text(encoding="utf-8")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:  # what billion-laughs files need, and VOC's never have
            raise UserError(f"{path} declares a document type, which annotations do not", todo="download it again")
        objects = ElementTree.fromstring(text).findall("object")
        rows = [[float(o.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")] for o in objects]
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path} is no annotation of Pascal VOC: {error}", todo="download it again") from error
    boxes = np.array(rows, dtype=np.float64).reshape(-1, 4) - (1, 1, 0, 0)
    _require_boxes(boxes, path)
    return boxes


def coco(root: str | Path, images: str, annotations: str, ids: str | None = None) -> list[Boxed]:
    """Images of a COCO file with the boxes of their objects, rounded to whole pixels; crowds are left out.

    Args:
        images: folder, and annotations: file, both below `root`.
        ids: file below `root` with the chosen images, one on each line, by id or by file name (COCO20k); all by default.

    Raises:
        UserError: a file is missing or not what COCO's are, or `ids` names an image that the annotations do not know.
    """
    root = existing_folder(Path(root), "COCO's folder")
    path = existing_file(root / annotations)
    content = _coco_content(path)
    names = {int(image["id"]): str(image["file_name"]) for image in content["images"]}
    chosen = sorted(names) if ids is None else _listed(root / ids, names, path)
    rows: dict[int, list[list[float]]] = {number: [] for number in chosen}
    for annotation in content["annotations"]:
        if annotation["image_id"] in rows and not annotation.get("iscrowd", 0):
            x, y, width, height = annotation["bbox"]
            rows[annotation["image_id"]].append([x, y, x + width, y + height])
    found = []
    for number, boxes in rows.items():
        rounded = np.array(boxes, dtype=np.float64).reshape(-1, 4).round()
        _require_boxes(rounded, path, f", image {number}")
        found.append(Boxed(existing_file(root / images / names[number]), rounded))
    return found


def _coco_content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        for part, keys in (("images", ("id", "file_name")), ("annotations", ("image_id", "bbox"))):
            for entry in content[part]:
                if missing := [key for key in keys if key not in entry]:
                    raise UserError(f"{path}: an entry of {part} has no {missing[0]}")
        if not content["images"]:
            raise UserError(f"{path} lists no image")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no annotation file of COCO: {error!r}", todo="download it again") from error
    return content


def _listed(path: Path, names: dict[int, str], annotations: Path) -> list[int]:
    """Ids of the listed images: each line is an id or a file name that ends in it."""
    lines = text_of(existing_file(path)).split()
    ids = []
    for line in lines:
        digits = re.search(r"(\d+)(\.\w+)?$", line)
        if digits is None or int(digits[1]) not in names:
            raise UserError(f"{path} lists {line}, which {annotations} does not know", allowed="ids or file names of its images")
        ids.append(int(digits[1]))
    if not ids:
        raise UserError(f"list {path} is empty")
    return list(dict.fromkeys(ids))


# -- videos ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Track:
    """A video with the box of one object in every frame.

    visible: frames in which some of the object is seen. size: width and height of the frames.
    """

    name: str
    frames: list[Path]
    boxes: Boxes
    visible: Bool[np.ndarray, " frames"]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.frames)


def got10k(root: str | Path, split: str = "val", only: Several[str] | None = None) -> list[Track]:
    """The sequences of `root`/`split`/list.txt (all folders where there is no list).

    `groundtruth.txt` holds x, y, width, height of each frame, `cover.label` from 0 (hidden) to 8 (whole), `absence.label`
    1 where the object is out of sight; a sequence without labels is taken to be visible throughout.

    Args:
        only: names to choose from the list.

    Raises:
        UserError: a file is missing or malformed, or has not one line for each frame.
    """
    folder = existing_folder(Path(root) / split, "GOT-10k's folder")
    listing = folder / "list.txt"
    names = text_of(listing).split() if listing.is_file() else sorted(p.name for p in folder.iterdir() if p.is_dir())
    where = listing if listing.is_file() else folder
    unknown = [name for name in only or [] if name not in names]
    if unknown or not names:
        raise UserError(f"{where} does not list {unknown[0]}" if unknown else f"{where} lists no sequence", allowed=", ".join(names[:8]))
    return [_track(existing_folder(folder / name)) for name in names if only is None or name in only]


def _track(folder: Path) -> Track:
    frames = sorted(folder.glob("*.jpg"))
    if len(frames) < 2:
        raise UserError(f"{folder} has {len(frames)} frames (*.jpg), but the first one is not scored")
    boxes = _rows(folder / "groundtruth.txt", len(frames), columns=4)
    boxes[:, 2:] += boxes[:, :2]
    visible = np.ones(len(frames), dtype=bool)
    for name in ("cover.label", "absence.label"):
        if (folder / name).is_file():
            values = _rows(folder / name, len(frames), columns=1)[:, 0]
            visible &= values > 0 if name == "cover.label" else values == 0
    _require_boxes(boxes[visible], folder / "groundtruth.txt")
    size, _ = picture_header(frames[0])
    for frame in frames:
        if (other := picture_header(frame)[0]) != size:
            raise UserError(f"{frame} is {other[0]}x{other[1]}, but {frames[0]} is {size[0]}x{size[1]}")
    return Track(folder.name, frames, boxes, visible, size)


def _rows(path: Path, frames: int, *, columns: int) -> Float[np.ndarray, "frames columns"]:
    """The numbers of a file with one line per frame, separated by commas or blanks."""
    lines = [line for line in text_of(existing_file(path)).splitlines() if line.strip()]
    if len(lines) != frames:
        raise UserError(f"{path} has {len(lines)} lines for {frames} frames", todo="download the sequence again")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = [float(part) for part in re.split(r"[,\s]+", line.strip())]
        except ValueError:
            row = []
        if len(row) != columns or not np.isfinite(row).all():
            raise UserError(f"{path}, line {number}: '{line.strip()}'", allowed=f"{columns} number{'s' if columns > 1 else ''}")
        rows.append(row)
    return np.array(rows, dtype=np.float64)


# -- checks ------------------------------------------------------------------------------------------------------------


def _require_boxes(boxes: Boxes, path: Path, where: str = "") -> None:
    bad = ~(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] >= boxes[:, :2]).all(axis=1))
    if bad.any():
        x0, y0, x1, y1 = boxes[bad][0]
        raise UserError(f"{path}{where} has the box {x0:g}, {y0:g}, {x1:g}, {y1:g}", allowed="x0 <= x1 and y0 <= y1")
