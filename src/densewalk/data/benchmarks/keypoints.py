"""Pairs of images with corresponding keypoints, in SPair-71k's layout.

    SPair-71k/Layout/{large,small}/{trn,val,test}.txt              lines {number}-{source}-{target}:{category}
    SPair-71k/PairAnnotation/{split}/{line}.json                   read_pairs("data/SPair-71k", "test")
    SPair-71k/JPEGImages/{category}/{source,target}.jpg

ImageAnnotation and Segmentation are not needed: a pair names the keypoints that both of its images show, in the same order.
Listing reads every annotation and every image's header; a file that is missing or not what it should be is a UserError that names it.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.paths import descend, existing_file, read_list, read_text
from densewalk.data.image_files import Header, leaves_image, read_header, require_upright_labels

LINE = re.compile(r"(?P<number>[^-]+)-(?P<source>.+)-(?P<target>[^-]+):(?P<category>[^:/]+)")
Point = Annotated[list[float], Field(min_length=2, max_length=2)]
Size = Annotated[list[int], Field(min_length=2, max_length=3)]  # width, height, channels
Corners = Annotated[list[float], Field(min_length=4, max_length=4)]


class PairAnnotation(BaseModel):
    """The fields of a pair's file that are read."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    src_imname: str
    trg_imname: str
    src_imsize: Size
    trg_imsize: Size
    src_kps: list[Point] = Field(min_length=1)
    trg_kps: list[Point] = Field(min_length=1)
    src_bndbox: Corners
    trg_bndbox: Corners
    category: str
    viewpoint_variation: int | None = None


@dataclass(frozen=True)
class KeypointPair:
    """Two images of objects of one category.

    points: x and y in pixels, those of one row belong together. box: x0, y0, x1, y1 of the target's object. sizes: width, height.
    viewpoint: how much it differs, 0 to 2; None where it is not stated.
    """

    name: str
    category: str
    source: Path
    target: Path
    source_points: Float[np.ndarray, "points 2"]
    target_points: Float[np.ndarray, "points 2"]
    box: Float[np.ndarray, "4"]
    source_size: tuple[int, int]
    target_size: tuple[int, int]
    viewpoint: int | None


def read_pairs(root: str | Path, split: str, layout: str = "large") -> list[KeypointPair]:
    """Read the pairs of Layout/`layout`/`split`.txt, in its order. `root` is SPair-71k or the folder above it."""
    base = descend(root, "SPair-71k")
    path = base / "Layout" / layout / f"{split}.txt"
    headers: dict[Path, Header] = {}
    lines = read_list(path, todo="correct `root`, `split` or `layout`, or download SPair-71k")
    return [_read_pair(base, split, line, f"{path}, line {number}", headers) for number, line in enumerate(lines, start=1)]


def _read_pair(base: Path, split: str, line: str, where: str, headers: dict[Path, Header]) -> KeypointPair:
    parts = LINE.fullmatch(line)
    if parts is None:
        raise UserError(f"{where}: '{line}' names no pair", allowed="number-source-target:category")
    path = existing_file(base / "PairAnnotation" / split / f"{line}.json")
    try:
        found = PairAnnotation.model_validate(json.loads(read_text(path)))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path} is no annotation of a pair: {key}: {first['msg']}", todo="download it again") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}", todo="download it again") from error
    stated = f"{Path(found.src_imname).stem}-{Path(found.trg_imname).stem}:{found.category}"
    if line != f"{parts['number']}-{stated}":
        raise UserError(f"{path} is of the pair {stated}, but {where} says {line}", todo="download both again")
    if len(found.src_kps) != len(found.trg_kps):
        raise UserError(f"{path} has {len(found.src_kps)} keypoints src_kps and {len(found.trg_kps)} trg_kps", todo="download it again")
    folder = base / "JPEGImages" / found.category
    source, target = (_read_side(found, side, folder, path, headers) for side in ("src", "trg"))
    return KeypointPair(
        line,
        found.category,
        source.image,
        target.image,
        source.points,
        target.points,
        target.box,
        source.size,
        target.size,
        found.viewpoint_variation,
    )


@dataclass(frozen=True)
class _Side:
    """One of a pair's two images, its keypoints, its object's box and its width and height."""

    image: Path
    points: Float[np.ndarray, "points 2"]
    box: Float[np.ndarray, "4"]
    size: tuple[int, int]


def _read_side(found: PairAnnotation, side: str, folder: Path, path: Path, headers: dict[Path, Header]) -> _Side:
    image = existing_file(folder / getattr(found, f"{side}_imname"))
    width, height = getattr(found, f"{side}_imsize")[:2]
    if image not in headers:
        headers[image] = read_header(image)
    require_upright_labels(image, headers[image], (width, height), f"{path}, {side}_imsize")
    points = _inside(np.array(getattr(found, f"{side}_kps")), (width, height), f"{path}, {side}_kps")
    box = _box(np.array(getattr(found, f"{side}_bndbox")), (width, height), f"{path}, {side}_bndbox")
    return _Side(image, points, box, (width, height))


def _inside(points: Float[np.ndarray, "points 2"], size: tuple[int, int], where: str) -> Float[np.ndarray, "points 2"]:
    """Return the keypoints if all of them lie in the image; the released ones reach its last edge."""
    outside = ((points < 0) | (points > np.array(size))).any(axis=1)
    if outside.any():
        number = int(outside.argmax())
        x, y = points[number]
        found = f"{where}[{number}]: the keypoint {x:g}, {y:g} lies outside the image of {size[0]}x{size[1]}"
        raise UserError(found, allowed="x, then y, in pixels", todo="correct the annotation")
    return points.astype(np.float64)


def _box(corners: Float[np.ndarray, "4"], size: tuple[int, int], where: str) -> Float[np.ndarray, "4"]:
    """Return the box if it lies in the image: PCK's threshold is a share of its longer side."""
    box = ", ".join(f"{c:g}" for c in corners)
    if (corners[2:] <= corners[:2]).any():
        raise UserError(f"{where}: {box}", allowed="x0 < x1 and y0 < y1", todo="correct the annotation")
    if leaves_image(corners.tolist(), size):
        found = f"{where}: the box {box} leaves the image of {size[0]}x{size[1]}"
        raise UserError(found, allowed="x0, y0, x1, y1 in pixels", todo="correct the annotation")
    return corners.astype(np.float64)
