"""Label maps, tracked objects and boxes as pictures."""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Integer, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image, ImageDraw

from densewalk.checkpoint import atomic_write

NOT_SCORED = (224, 224, 192)  # VOC's border colour; grey is a class


def palette(size: int = 256) -> UInt8[np.ndarray, "{size} 3"]:
    """The colours of Pascal VOC and DAVIS: the bits of a label, dealt in turn to red, green and blue from the highest bit down.

    for label in range(size):
        for position in range(8):
            for channel in range(3):
                colours[label, channel] |= (label >> (3 * position + channel) & 1) << (7 - position)
    """
    labels = np.arange(size)[:, None, None]
    bit = labels >> (3 * np.arange(8)[:, None] + np.arange(3)) & 1
    return (bit << (7 - np.arange(8)[:, None])).sum(axis=1).astype(np.uint8)


@dataclass(frozen=True)
class Row:
    """One line of a strip: an image, its ground truth and the prediction, all of one size."""

    title: str
    image: UInt8[np.ndarray, "height width 3"]
    target: Integer[np.ndarray, "height width"]
    prediction: Integer[np.ndarray, "height width"]


def segmentation_strip(path: str | Path, rows: Sequence[Row], names: Sequence[str], ignore: int | None = None) -> None:
    """Write image, ground truth and prediction side by side, with a legend of the labels that occur; ignored pixels are cream."""
    figure = Figure(figsize=(9, 2.6 * len(rows) + 0.9), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False)
    colours = palette(max(256, len(names)))
    for axes, row in zip(grid, rows, strict=True):
        for axis, picture in zip(
            axes, (row.image, _painted(row.target, colours, ignore), _painted(row.prediction, colours, None)), strict=True
        ):
            axis.imshow(picture, interpolation="nearest")
            axis.set_axis_off()
        axes[0].set_title(row.title, fontsize=8, loc="left")
    for axis, title in zip(grid[0, 1:], ("ground truth", "prediction"), strict=True):
        axis.set_title(title, fontsize=8, loc="left")
    figure.legend(handles=_legend(rows, names, colours, ignore), loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})


def _painted(
    labels: Integer[np.ndarray, "height width"], colours: UInt8[np.ndarray, "labels 3"], ignore: int | None
) -> UInt8[np.ndarray, "height width 3"]:
    known = np.minimum(labels, len(colours) - 1)
    picture = colours[known]
    if ignore is not None:
        picture[labels == ignore] = NOT_SCORED
    return picture


def _legend(rows: Sequence[Row], names: Sequence[str], colours: UInt8[np.ndarray, "labels 3"], ignore: int | None) -> list[Patch]:
    """The labels on at least one percent of some picture, in order: a hundred names would bury the pictures."""
    maps = [m for row in rows for m in (row.target, row.prediction)]
    shares = np.max([np.bincount(m.ravel(), minlength=256)[:256] / m.size for m in maps], axis=0)
    kept = [i for i in np.flatnonzero(shares >= 0.01) if i < len(names) and i != ignore]
    handles = [Patch(facecolor=colours[i] / 255, edgecolor="0.6", label=names[int(i)]) for i in kept]
    if ignore is not None:
        handles.append(Patch(facecolor="#{:02x}{:02x}{:02x}".format(*NOT_SCORED), edgecolor="0.6", label="not scored"))
    return handles


@dataclass(frozen=True)
class TrackedClip:
    """One line of a strip: the frames of a clip, and how much of each of its patches belongs to each object, from 0 to 1."""

    title: str
    frames: UInt8[np.ndarray, "frames height width 3"]
    masks: Float[np.ndarray, "objects frames rows columns"]


def tracking_strip(path: str | Path, clips: Sequence[TrackedClip]) -> None:
    """Write each clip as a row of its frames with every object in a colour of its own, the same in all of them."""
    columns = max(len(clip.frames) for clip in clips)
    height = max(clip.frames.shape[1] / clip.frames.shape[2] for clip in clips)
    figure = Figure(figsize=(1.6 * columns, (1.6 * height + 0.25) * len(clips) + 0.3), layout="constrained")
    grid = figure.subplots(len(clips), columns, squeeze=False)
    colours = object_colours(len(clips[0].masks))
    for axes, clip in zip(grid, clips, strict=True):
        for axis in axes:
            axis.set_axis_off()
        for i, (axis, frame) in enumerate(zip(axes, clip.frames, strict=False)):  # a shorter clip leaves axes empty
            axis.imshow(tinted(frame, clip.masks[:, i], colours), interpolation="nearest")
        axes[0].set_title(clip.title, fontsize=8, loc="left")
    handles = [Patch(facecolor=colour, label=f"object {i + 1}") for i, colour in enumerate(colours)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=7, frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})


def object_colours(number: int) -> Float[np.ndarray, "{number} 3"]:
    """Bright colours in 0..1, their hues evenly apart."""
    return np.array([colorsys.hsv_to_rgb(i / number, 1.0, 1.0) for i in range(number)])


def tinted(
    frame: UInt8[np.ndarray, "height width 3"], masks: Float[np.ndarray, "objects rows columns"], colours: Float[np.ndarray, "objects 3"]
) -> UInt8[np.ndarray, "height width 3"]:
    """The frame in grey, each patch tinted by the objects that hold it: where they overlap, by their mixture.

    for patch: strength = 0.7 max_i mask_i,  tint = sum_i mask_i colour_i / sum_i mask_i,  pixel = (1 - strength) grey + strength tint

    Raises:
        ValueError: the frame is not made of whole patches.
    """
    _, rows, columns = masks.shape
    height, width = frame.shape[:2]
    if height % rows or width % columns:
        raise ValueError(f"a frame of {height} x {width} px is not made of {rows} x {columns} equal patches")
    weights = masks.repeat(height // rows, axis=1).repeat(width // columns, axis=2)
    total = weights.sum(axis=0)[..., None]
    tint = np.einsum("ohw,oc->hwc", weights, colours) / np.where(total > 0, total, 1)
    strength = 0.7 * weights.max(axis=0)[..., None]
    grey = frame @ np.array([0.299, 0.587, 0.114]) / 255
    return np.round(255 * ((1 - strength) * grey[..., None] + strength * tint)).astype(np.uint8)


# -- boxes -------------------------------------------------------------------------------------------------------------

TRUE_COLOUR, FOUND_COLOUR = "limegreen", "red"


def with_boxes(
    image: UInt8[np.ndarray, "height width 3"], boxes: Float[np.ndarray, "boxes 4"], colour: str
) -> UInt8[np.ndarray, "height width 3"]:
    """The image with outlines of the boxes x0, y0, x1, y1, as thick as its size asks for."""
    picture = Image.fromarray(image)
    thickness = max(2, round(min(picture.size) / 120))
    for x0, y0, x1, y1 in boxes.tolist():
        if x1 > x0 and y1 > y0:
            ImageDraw.Draw(picture).rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=thickness)
    return np.array(picture)


def boxes_strip(
    path: str | Path,
    panels: Sequence[tuple[str, UInt8[np.ndarray, "_ _ 3"], Float[np.ndarray, "_ 4"], Float[np.ndarray, "4"]]],
    columns: int = 4,
) -> None:
    """Write images with their titles; the true boxes are green, the found one is red."""
    shown = [
        Panel(title, with_boxes(with_boxes(image, truth, TRUE_COLOUR), found[None], FOUND_COLOUR)) for title, image, truth, found in panels
    ]
    figure = _grid(shown, columns, row_height=2.6)
    handles = [Patch(facecolor="none", edgecolor=c, label=n) for c, n in ((TRUE_COLOUR, "ground truth"), (FOUND_COLOUR, "found"))]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})


# -- contact sheets ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """One picture of a sheet; `colour` frames it."""

    title: str
    image: UInt8[np.ndarray, "_ _ 3"]
    colour: str | None = None


def contact_sheet(path: str | Path, panels: Sequence[Panel], columns: int, note: str = "") -> None:
    """Write pictures in rows, each below its title; `note` stands at the foot."""
    tallest = max(panel.image.shape[0] / panel.image.shape[1] for panel in panels)
    figure = _grid(panels, columns, row_height=2.9 * min(tallest, 0.9) + 0.4)
    if note:
        figure.supxlabel(note, fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})


def _grid(panels: Sequence[Panel], columns: int, row_height: float) -> Figure:
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3 * columns, row_height * rows + 0.2), layout="constrained")
    for axis, panel in zip(figure.subplots(rows, columns, squeeze=False).ravel(), _filled(panels, rows * columns), strict=True):
        axis.set(xticks=[], yticks=[])
        axis.set_visible(panel is not None)
        if panel is None:
            continue
        axis.imshow(panel.image)
        axis.set_title(panel.title, fontsize=8, loc="left", color=panel.colour or "black")
        for side in axis.spines.values():
            side.set(color=panel.colour, linewidth=3, visible=panel.colour is not None)
    return figure


def _filled(panels: Sequence[Panel], places: int) -> list[Panel | None]:
    """The last row may not be full."""
    return [*panels, *[None] * (places - len(panels))]
