"""Label maps, tracked objects and boxes drawn on images."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer, UInt8
from PIL import Image, ImageDraw

from densewalk.data.palette import palette
from densewalk.visualization.label_colors import CLEAR
from densewalk.visualization.panels import Panel, write_panels

NOT_SCORED_TEXT = "not scored"
NOT_SCORED = (224, 224, 192)  # VOC's border color; gray is a class
TRUE_COLOR, FOUND_COLOR = "#56b4e9", "#d55e00"  # sky blue, vermilion


@dataclass(frozen=True)
class Row:
    """One line of a strip: an image, its ground truth and the prediction, all of one size."""

    title: str
    image: UInt8[np.ndarray, "height width 3"]
    target: Integer[np.ndarray, "height width"]
    prediction: Integer[np.ndarray, "height width"]


NAMED = 24  # most labels of a legend that names every one


def write_segmentation_strip(path: str | Path, rows: Sequence[Row], names: Sequence[str], ignore: int | None = None) -> None:
    """Write image, ground truth and prediction side by side, with a legend of the labels that occur; ignored pixels are cream."""
    colors = palette(max(256, len(names)))
    grid = [
        [
            Panel(row.image, row.title),
            Panel(_color_labels(row.target, colors, ignore), "ground truth"),
            Panel(_color_labels(row.prediction, colors, None), "prediction"),
        ]
        for row in rows
    ]
    write_panels(path, grid, _legend(rows, names, colors, ignore))


def _color_labels(
    labels: Integer[np.ndarray, "height width"], colors: UInt8[np.ndarray, "labels 3"], ignore: int | None
) -> UInt8[np.ndarray, "height width 3"]:
    image = colors[np.minimum(labels, len(colors) - 1)]
    if ignore is not None:
        image[labels == ignore] = NOT_SCORED
    return image


def _legend(rows: Sequence[Row], names: Sequence[str], colors: UInt8[np.ndarray, "labels 3"], ignore: int | None) -> dict[str, str]:
    """The labels that occur, in order; of more than `NAMED`, those on at least one percent of some map, to leave room for the images."""
    maps = [m for row in rows for m in (row.target, row.prediction)]
    shares = np.max([np.bincount(m.ravel(), minlength=256)[:256] / m.size for m in maps], axis=0)
    least = 0.01 if (shares > 0).sum() > NAMED else 0
    kept = [int(i) for i in np.flatnonzero((shares > 0) & (shares >= least)) if i < len(names) and i != ignore]
    legend = {names[i]: _hexadecimal(colors[i]) for i in kept}
    return legend | ({NOT_SCORED_TEXT: _hexadecimal(NOT_SCORED)} if ignore is not None else {})


def _hexadecimal(color: Sequence[int] | UInt8[np.ndarray, "3"]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


@dataclass(frozen=True)
class TrackedClip:
    """One line of a strip: the frames of a clip, and how much of each of its patches belongs to each object, from 0 to 1."""

    title: str
    frames: UInt8[np.ndarray, "frames height width 3"]
    masks: Float[np.ndarray, "objects frames rows columns"]


def write_tracking_strip(path: str | Path, clips: Sequence[TrackedClip]) -> None:
    """Write each clip as a row of its frames with every object in a color of its own, the same in all of them."""
    colors = object_colors(len(clips[0].masks))
    grid = [
        [
            Panel(tint_objects(frame, clip.masks[:, i], colors), "" if i else clip.title)  # type: ignore[arg-type]
            for i, frame in enumerate(clip.frames)
        ]
        for clip in clips
    ]
    write_panels(path, grid, {f"object {i + 1}": color for i, color in enumerate(colors)}, width=1.6)


def object_colors(number: int) -> Float[np.ndarray, "{number} 3"]:
    """Colors in 0..1 that are easy to tell apart; beyond the first few, evenly spaced hues."""
    if number <= len(CLEAR):
        return np.array(CLEAR[:number]) / 255
    return np.array([colorsys.hsv_to_rgb(i / number, 1.0, 1.0) for i in range(number)])


def tint_objects(
    frame: UInt8[np.ndarray, "height width 3"], masks: Float[np.ndarray, "objects rows columns"], colors: Float[np.ndarray, "objects 3"]
) -> UInt8[np.ndarray, "height width 3"]:
    """The frame in gray, each patch tinted by the objects that hold it: where they overlap, by their mixture.

    for patch: strength = 0.7 max_i mask_i,  tint = sum_i mask_i color_i / sum_i mask_i,  pixel = (1 - strength) gray + strength tint

    Raises:
        ValueError: the frame is not made of whole patches.
    """
    _, rows, columns = masks.shape
    height, width = frame.shape[:2]
    if height % rows or width % columns:
        raise ValueError(f"a frame of {height} x {width} px is not made of {rows} x {columns} equal patches")
    weights = masks.repeat(height // rows, axis=1).repeat(width // columns, axis=2)
    total = weights.sum(axis=0)[..., None]
    tint = np.einsum("ohw,oc->hwc", weights, colors) / np.where(total > 0, total, 1)
    strength = 0.7 * weights.max(axis=0)[..., None]
    gray = frame @ np.array([0.299, 0.587, 0.114]) / 255
    return np.round(255 * ((1 - strength) * gray[..., None] + strength * tint)).astype(np.uint8)


def with_boxes(
    image: UInt8[np.ndarray, "height width 3"], boxes: Float[np.ndarray, "boxes 4"], color: str
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with outlines of the boxes x0, y0, x1, y1, thicker on a larger image.

    Each outline has a black line on either side, so that it is seen on whatever is below it.
    """
    drawn = Image.fromarray(image)
    thickness = max(2, round(min(drawn.size) / 120))
    for x0, y0, x1, y1 in boxes.tolist():
        if x1 > x0 and y1 > y0:
            right, bottom = max(x0, x1 - 1), max(y0, y1 - 1)
            ImageDraw.Draw(drawn).rectangle((x0 - 1, y0 - 1, right + 1, bottom + 1), outline="black", width=thickness + 2)
            ImageDraw.Draw(drawn).rectangle((x0, y0, right, bottom), outline=color, width=thickness)
    return np.array(drawn)


def write_box_strip(
    path: str | Path,
    panels: Sequence[tuple[str, UInt8[np.ndarray, "_ _ 3"], Float[np.ndarray, "_ 4"], Float[np.ndarray, "4"]]],
    columns: int = 4,
) -> None:
    """Write images with their titles; the true boxes are blue, the found one is orange."""
    shown = [
        Panel(with_boxes(with_boxes(image, truth, TRUE_COLOR), found[None], FOUND_COLOR), title) for title, image, truth, found in panels
    ]
    rows = [shown[i : i + columns] for i in range(0, len(shown), columns)]
    write_panels(path, rows, {"ground truth": TRUE_COLOR, "found": FOUND_COLOR})


def contact_sheet(path: str | Path, panels: Sequence[Panel], columns: int, note: str = "") -> None:
    """Write images in rows, each below its title; `note` is at the foot."""
    write_panels(path, [panels[i : i + columns] for i in range(0, len(panels), columns)], note=note)
