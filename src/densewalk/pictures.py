"""Label maps and boxes as pictures."""

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
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3 * columns, 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in grid:
        axis.set_axis_off()
    for axis, (title, image, truth, found) in zip(grid, panels, strict=False):
        axis.imshow(with_boxes(with_boxes(image, truth, TRUE_COLOUR), found[None], FOUND_COLOUR))
        axis.set_title(title, fontsize=8, loc="left")
    handles = [Patch(facecolor="none", edgecolor=c, label=n) for c, n in ((TRUE_COLOUR, "ground truth"), (FOUND_COLOUR, "found"))]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
