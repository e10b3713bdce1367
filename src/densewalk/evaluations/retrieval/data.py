"""Revisited Oxford and Paris: images, queries, and what each query should find.

    ROOT/{roxford5k,rparis6k}/gnd_{roxford5k,rparis6k}.pkl      imlist, qimlist: names without .jpg; gnd: of each query
    ROOT/{roxford5k,rparis6k}/jpg/*.jpg                         easy, hard, junk: numbers in imlist; bbx: the query's landmark

The pickle is read without executing anything (data/storage/plain_pickle.py). Source: https://arxiv.org/abs/1803.11285.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.paths import existing_file, existing_folder, require_inside
from densewalk.data.image_files import leaves_image, read_header, require_upright_labels
from densewalk.data.storage.plain_pickle import Array, read_plain_pickle

KINDS = ("easy", "hard", "junk")
AGAIN = "download it again"
Numbers = Int[np.ndarray, " _"]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Query:
    """easy, hard, junk: numbers of the images that show the query's landmark well, badly, or hardly. box: x1, y1, x2, y2."""

    path: Path
    easy: Numbers
    hard: Numbers
    junk: Numbers
    box: Box | None


@dataclass(frozen=True)
class Landmarks:
    """sha256: of the ground truth as JSON, so that it is the same however its pickle is written."""

    images: list[Path]
    queries: list[Query]
    ground_truth: dict[str, Any]
    sha256: str


def read_landmarks(root: str | Path, layout: str, *, crop: bool = False) -> Landmarks:
    """Read the ground truth, and look for every image.

    Args:
        crop: queries will be cut to their boxes, so each needs one that lies in its image.

    Raises:
        UserError: the pickle is not what it should be, an image is missing, or a box does not fit; the message names the file.
    """
    folder = existing_folder(Path(root) / layout, allowed=f"ROOT/{layout}/gnd_{layout}.pkl and ROOT/{layout}/jpg/*.jpg")
    path = existing_file(folder / f"gnd_{layout}.pkl")
    truth = checked(read_plain_pickle(path), path)
    pictures = existing_folder(folder / "jpg")
    images, queries = ([existing_file(pictures / f"{name}.jpg") for name in truth[key]] for key in ("imlist", "qimlist"))
    found = []
    for image, entry in zip(queries, truth["gnd"], strict=True):
        easy, hard, junk = (np.array(entry[kind], dtype=np.int64) for kind in KINDS)
        box = entry["bbx"]
        found.append(Query(image, easy, hard, junk, None if box is None else (box[0], box[1], box[2], box[3])))
    if crop:
        for i, query in enumerate(found):
            require_box(query, f"{path}: gnd[{i}] ({truth['qimlist'][i]}): bbx")
    return Landmarks(images, found, truth, sha256(json.dumps(truth, sort_keys=True).encode()).hexdigest())


def require_box(query: Query, where: str) -> None:
    """Check by the header alone that a query can be cut to its box.

    Raises:
        UserError: it has no box, its image has an EXIF orientation, or the box leaves the image by more than a pixel.
    """
    if query.box is None:
        raise UserError(f"{where} is missing", allowed="a box for every query", todo="leave out `crop_query`")
    header = read_header(query.path)
    require_upright_labels(query.path, header, None, where)
    left, top, right, bottom = pixels_of(query.box, header.size)
    leaves = leaves_image(query.box, header.size, slack=1.0)
    if leaves or left >= right or top >= bottom:
        box, (width, height) = ", ".join(f"{side:g}" for side in query.box), header.size
        said = f"{where}: the box {box} {'leaves' if leaves else 'holds no pixel of'} the image of {width}x{height}, {query.path}"
        raise UserError(said, allowed="left, top, right, bottom in pixels, at most one beyond the border", todo="download both again")


def pixels_of(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the box in whole pixels, cut at the border of an image of this width and height."""
    left, top, right, bottom = map(round, box)
    return max(left, 0), max(top, 0), min(right, size[0]), min(bottom, size[1])


def checked(found: Any, path: Path) -> dict[str, Any]:
    """The ground truth in plain lists, every part of it checked."""
    if not isinstance(found, dict) or not all(isinstance(found.get(key), list | tuple) for key in ("imlist", "qimlist", "gnd")):
        raise UserError(f"{path} is no ground truth of retrieval", allowed="a dict with the lists imlist, qimlist and gnd", todo=AGAIN)
    names = {key: checked_names(found[key], f"{path}: {key}") for key in ("imlist", "qimlist")}
    if len(found["gnd"]) != len(names["qimlist"]):
        raise UserError(f"{path} has {len(names['qimlist'])} queries in qimlist, but {len(found['gnd'])} in gnd", todo=AGAIN)
    number = {name: i for i, name in enumerate(names["imlist"])}
    entries = []
    for i, (name, entry) in enumerate(zip(names["qimlist"], found["gnd"], strict=True)):
        where = f"{path}: gnd[{i}] ({name})"
        if not isinstance(entry, dict):
            raise UserError(f"{where} is no dict", allowed=f"a dict with {', '.join(KINDS)} and bbx", todo=AGAIN)
        lists = {kind: checked_numbers(entry.get(kind), len(number), f"{where}: {kind}") for kind in KINDS}
        everything = [n for kind in KINDS for n in lists[kind]]
        if len(set(everything)) < len(everything):
            raise UserError(f"{where} names an image twice", allowed="each image once, in one of easy, hard and junk", todo=AGAIN)
        if name in number and number[name] not in lists["junk"]:
            raise UserError(f"{where} is in imlist, too: it would find itself", allowed="queries that are not in imlist", todo=AGAIN)
        entries.append({**lists, "bbx": checked_box(entry.get("bbx"), f"{where}: bbx")})
    if not any(entry["easy"] or entry["hard"] for entry in entries):
        raise UserError(f"{path}: no query has an image to find", todo=AGAIN)
    return {**names, "gnd": entries}


def checked_names(found: Sequence[Any], where: str) -> list[str]:
    """Names of files, each once."""
    if not found:
        raise UserError(f"{where} is empty", todo=AGAIN)
    for i, name in enumerate(found):
        if not isinstance(name, str):
            raise UserError(f"{where}[{i}] is no name but {type(name).__name__}", todo=AGAIN)
        require_inside(name, f"{where}[{i}]")
    if len(set(found)) < len(found):
        twice = next(name for i, name in enumerate(found) if name in found[:i])
        raise UserError(f"{where} names {twice} twice", todo=AGAIN)
    return list(found)


def checked_numbers(found: Any, images: int, where: str) -> list[int]:
    """Numbers of images, as a list or an array."""
    values = plain(found)
    if not isinstance(values, list) or len(values) > images or not all(type(value) is int for value in values):
        raise UserError(f"{where} is no list of at most {images} numbers of images", todo=AGAIN)
    if outside := [value for value in values if not 0 <= value < images]:
        raise UserError(f"{where} holds {outside[0]}", allowed=f"0 to {images - 1}, numbers in imlist", todo=AGAIN)
    return values


def checked_box(found: Any, where: str) -> list[float] | None:
    """Left, top, right and bottom; None where the file has none."""
    if found is None:
        return None
    values = plain(found)
    if not isinstance(values, list) or len(values) != 4 or not all(type(v) in (int, float) and abs(v) < 1e6 for v in values):
        raise UserError(f"{where} is no box", allowed="four numbers: left, top, right, bottom", todo=AGAIN)
    left, top, right, bottom = map(float, values)
    if not (left < right and top < bottom):
        raise UserError(f"{where} {values} is empty", allowed="left < right and top < bottom", todo=AGAIN)
    return [left, top, right, bottom]


def plain(found: Any) -> Any:
    """A list or one-dimensional array as a list."""
    if isinstance(found, Array):
        return found.values.tolist() if found.values is not None and found.values.ndim == 1 else None
    return list(found) if isinstance(found, list | tuple) else None
