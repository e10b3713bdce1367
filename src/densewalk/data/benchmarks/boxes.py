"""Bounding boxes, and data sets of images or videos with boxes: Pascal VOC, COCO, GOT-10k.

    VOCdevkit/VOC2007/{JPEGImages,Annotations,ImageSets/Main}                  read_voc_boxes("data/VOCdevkit", 2007, "trainval")
    COCO/train2014/*.jpg, COCO/annotations/instances_train2014.json           read_coco_boxes("data/coco", "train2014", annotations, ids)
    GOT-10k/val/list.txt, GOT-10k/val/{sequence}/{*.jpg,groundtruth.txt}      read_tracks("data/GOT-10k", "val")

A box is x0, y0, x1, y1 in pixels from the image's upper left corner; x1 and y1 lie outside, so that x1 - x0 is the width.
A file that is missing or not what it should be is a UserError that names it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from jaxtyping import Bool, Float

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.coco import Instances, check_pictures, read_instances
from densewalk.data.benchmarks.paths import choose_names, descend, existing_file, existing_folder, read_list, read_text, subfolders
from densewalk.data.file_lists import find_files, frames_in_order
from densewalk.data.image_files import EXTENSIONS, leaves_image, read_header, require_upright_labels
from densewalk.data.storage.places import is_file

Boxes = Float[np.ndarray, "boxes 4"]


def iou(one: Float[np.ndarray, "*one 4"], other: Float[np.ndarray, "*other 4"]) -> Float[np.ndarray, "..."]:
    """Intersection over union of boxes that broadcast; 0 where both are empty.

    intersection = max(0, min(x1, x1') - max(x0, x0')) * max(0, min(y1, y1') - max(y0, y0'))
    """
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    intersection = sides.clip(min=0).prod(axis=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(axis=-1) for boxes in (one, other)]
    union = np.asarray(areas[0] + areas[1] - intersection)
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def clip(boxes: Float[np.ndarray, "*batch 4"], width: int, height: int) -> Float[np.ndarray, "*batch 4"]:
    """Return the boxes' parts inside an image."""
    return np.clip(boxes, 0, [width, height, width, height])


# -- images ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BoxedImage:
    """An image file, the boxes of its objects, and the file of their masks, if it was asked for."""

    image: Path
    boxes: Boxes
    mask: Path | None = None


def read_voc_boxes(
    root: str | Path, year: int, split: str = "trainval", image_sets: str = "Main", masks: str | None = None
) -> list[BoxedImage]:
    """Read the boxes of all objects in the images of ImageSets/`image_sets`/`split`.txt, and list their masks in the folder `masks`.

    Difficult and truncated ones are included. The files count pixels from 1, and the last pixel belongs to the box: x0 and y0 lose
    one, x1 and y1 stay. `root` is VOC`year`, VOCdevkit, or the folder above it.
    """
    base = descend(root, "VOCdevkit", f"VOC{year}")
    if base.name != f"VOC{year}":
        found = f"{base} is not Pascal VOC's folder VOC{year} and holds none"
        raise UserError(found, todo="correct `root` or `year`, or download the data")
    stems = read_list(base / "ImageSets" / image_sets / f"{split}.txt", todo="correct `root`, `year` or `split`")
    files = [(existing_file(base / "JPEGImages" / f"{s}.jpg"), existing_file(base / "Annotations" / f"{s}.xml")) for s in stems]
    of_objects = [existing_file(base / masks / f"{stem}.png") if masks else None for stem in stems]
    return [BoxedImage(image, _voc_boxes(xml, image), mask) for (image, xml), mask in zip(files, of_objects, strict=True)]


def _voc_boxes(path: Path, image: Path) -> Boxes:
    """Read one XML file; its boxes lie in the image, whose size it states."""
    text = read_text(path)
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # what billion-laughs files need, and VOC's never have
        raise UserError(f"{path} declares a document type, which annotations do not", todo="download it again")
    try:
        tree = ElementTree.fromstring(text)
        if tree.tag != "annotation":
            raise ValueError(f"its root is <{tree.tag}>, not <annotation>")
        rows = [[_number(o.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")] for o in tree.findall("object")]
        stated = [tree.findtext(f"size/{side}") for side in ("width", "height")]
        size = None if None in stated else (int(stated[0] or ""), int(stated[1] or ""))
    except (ElementTree.ParseError, ValueError) as error:
        raise UserError(f"{path} is no annotation of Pascal VOC: {error}", todo="download it again") from error
    if not rows:
        return np.zeros((0, 4))
    header = read_header(image)
    require_upright_labels(image, header, size, str(path))
    boxes = _checked(np.array(rows, dtype=np.float64) - (1, 1, 0, 0), path)
    return _inside(boxes, header.shown, path)


def read_coco_boxes(root: str | Path, images: str, annotations: str, ids: str | None = None) -> list[BoxedImage]:
    """Read the boxes of a COCO file, rounded to whole pixels; crowds are left out.

    Args:
        images: folder, and annotations: file, both below `root`.
        ids: file below `root` with the chosen images, one on each line, by id or by file name (COCO20k); all by default.
    """
    root = existing_folder(Path(root), "COCO's folder")
    folder = existing_folder(root / images)
    content = read_instances(existing_file(root / annotations), folder if ids is None else None, masks=False)
    chosen = sorted(content.images) if ids is None else _chosen_ids(existing_file(root / ids), content)
    rows: dict[int, list[list[float]]] = {number: [] for number in chosen}
    for found in content.objects:
        if found.image in rows and not found.crowd:
            x, y, width, height = found.box
            rows[found.image].append([x, y, x + width, y + height])
    if ids is not None:
        check_pictures([content.images[number] for number in chosen], folder, content.path)
    return [
        BoxedImage(folder / content.images[number].name, np.array(boxes, dtype=np.float64).reshape(-1, 4).round())
        for number, boxes in rows.items()
    ]


def _chosen_ids(path: Path, content: Instances) -> list[int]:
    """Ids of the listed images: each line is an id or a file name that ends in it."""
    ids: dict[int, str] = {}
    for line in read_list(path, todo="correct `ids`"):
        digits = re.search(r"(\d+)(\.\w+)?$", line)
        number = int(digits[1]) if digits else -1
        if number not in content.images:
            raise UserError(f"{path} lists {line}, which {content.path} does not know", allowed="ids or file names of its images")
        if number in ids:
            raise UserError(f"{path} lists {ids[number]} and {line}, which are one image", todo="remove one")
        ids[number] = line
    return list(ids)


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


def read_tracks(root: str | Path, split: str = "val", only: Sequence[str] | None = None) -> list[Track]:
    """Read GOT-10k's sequences of `root`/`split`/list.txt (all folders where there is no list).

    `groundtruth.txt` holds x, y, width, height of each frame, `cover.label` from 0 (hidden) to 8 (whole), `absence.label`
    1 where the object is out of sight; a sequence without labels is taken to be visible throughout.

    Args:
        only: names to choose from the list.
    """
    folder = existing_folder(Path(root) / split, "GOT-10k's folder")
    where = folder / "list.txt" if is_file(folder / "list.txt") else folder
    names = subfolders(folder) if where == folder else read_list(where, todo="download it again")
    return [_read_track(existing_folder(folder / name)) for name in choose_names(names, only, where)]


def _read_track(folder: Path) -> Track:
    frames = [folder / name for name in frames_in_order(find_files(folder, EXTENSIONS, below=False), folder)]
    if len(frames) < 2:
        raise UserError(f"{folder} has {len(frames)} frames ({' '.join(EXTENSIONS)}), but the first one is not scored")
    boxes = _read_rows(folder / "groundtruth.txt", len(frames), columns=4)
    boxes[:, 2:] += boxes[:, :2]
    visible = np.ones(len(frames), dtype=bool)
    for name in ("cover.label", "absence.label"):
        if is_file(folder / name):
            values = _read_rows(folder / name, len(frames), columns=1)[:, 0]
            visible &= values > 0 if name == "cover.label" else values == 0
            _require_label(values, folder / name, most=8 if name == "cover.label" else 1)
    _checked(boxes[visible], folder / "groundtruth.txt")
    size = read_header(frames[0]).size
    for frame in frames:
        header = read_header(frame)
        require_upright_labels(frame, header, None, str(folder / "groundtruth.txt"))
        if header.size != size:
            raise UserError(f"{frame} is {header.size[0]}x{header.size[1]}, but {frames[0]} is {size[0]}x{size[1]}")
    _require_tracked(boxes, visible, size, folder / "groundtruth.txt")
    return Track(folder.name, frames, boxes, visible, size)


def _require_label(values: Float[np.ndarray, " frames"], path: Path, most: int) -> None:
    """Require the whole numbers of a label file."""
    bad = (values < 0) | (values > most) | (values != values.round())
    if bad.any():
        raise UserError(f"{path}, line {1 + int(bad.argmax())}: {values[bad.argmax()]:g}", allowed=f"whole numbers from 0 to {most}")


def _require_tracked(boxes: Boxes, visible: Bool[np.ndarray, " frames"], size: tuple[int, int], path: Path) -> None:
    """Require that visible boxes lie in the image. Some of GOT-10k's leave it; most of them do where corners are taken for sizes."""
    leaving = visible & _leaving(boxes, size)
    gone = visible & ((boxes[:, :2] >= size).any(axis=1) | (boxes[:, 2:] <= 0).any(axis=1))
    if gone.any() or leaving.sum() > visible.sum() / 2:
        at = int(gone.argmax() if gone.any() else leaving.argmax())
        found = f"{path}, line {at + 1}: the box {_corners(boxes[at])} leaves the frame of {size[0]}x{size[1]}, but the object is visible"
        raise UserError(found, allowed="x, y, width, height in pixels (two corners?)")


def _read_rows(path: Path, frames: int, *, columns: int) -> Float[np.ndarray, "frames columns"]:
    """Read the numbers of a file with one line per frame, separated by commas or blanks."""
    lines = [line for line in read_text(existing_file(path)).splitlines() if line.strip()]
    if len(lines) != frames:
        raise UserError(f"{path} has {len(lines)} lines for {frames} frames", todo="download the sequence again")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = [_number(part) for part in re.split(r"[,\s]+", line.strip())]
        except ValueError:
            row = []
        if len(row) != columns or not np.isfinite(row).all():
            raise UserError(f"{path}, line {number}: '{line.strip()}'", allowed=f"{columns} number{'s' if columns > 1 else ''}")
        rows.append(row)
    return np.array(rows, dtype=np.float64)


def _checked(boxes: Boxes, path: Path) -> Boxes:
    """Return the boxes if their corners are numbers in the right order."""
    bad = ~(np.isfinite(boxes).all(axis=1) & (boxes[:, 2:] >= boxes[:, :2]).all(axis=1))
    if bad.any():
        raise UserError(f"{path} has the box {_corners(boxes[bad][0])}", allowed="x0 <= x1 and y0 <= y1")
    return boxes


def _inside(boxes: Boxes, size: tuple[int, int], path: Path) -> Boxes:
    """Return the boxes if none leaves the image."""
    bad = _leaving(boxes, size)
    if bad.any():
        found = f"{path} has the box {_corners(boxes[bad][0])}, which leaves the image of {size[0]}x{size[1]}"
        raise UserError(found, allowed="x0, y0, x1, y1 in pixels", todo="correct the annotation")
    return boxes


def _leaving(boxes: Boxes, size: tuple[int, int]) -> Bool[np.ndarray, " boxes"]:
    return np.array([leaves_image(box, size) for box in boxes.tolist()], dtype=bool)


def _number(text: str) -> float:
    """Read a plain decimal number; Python alone would take 1_0 and digits of other scripts, too."""
    if not re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", text, re.ASCII):
        raise ValueError(f"'{text.strip()}' is no number")
    return float(text)


def _corners(box: Float[np.ndarray, "4"]) -> str:
    return ", ".join(f"{side:g}" for side in box)
