"""Images of one size side by side, with titles, as one PNG."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from densewalk.core.files import atomic_write

KEY = "densewalk legend"  # of the PNG's text
PAPER, MARGIN = 255, 6  # white; pixels that a legend's top leaves below the images


@dataclass(frozen=True)
class Panel:
    """An image and what is above it; `color` frames it."""

    image: UInt8[np.ndarray, "height width 3"]
    title: str = ""
    color: str | None = None


@dataclass(frozen=True)
class Legend:
    """Of an image: text -> color, and the row of pixels from which on there is nothing else."""

    top: int
    colors: dict[str, str]


def write_panels(
    path: str | Path, rows: Sequence[Sequence[Panel]], legend: Mapping[str, Any] | None = None, *, width: float = 3.0, note: str = ""
) -> None:
    """Write images in rows and columns of one size; a row may be short.

    Args:
        legend: text -> color, below the images; the file also says it as text, for `read_legend`. width: of a column in inches.
        note: a line at the foot.
    """
    columns = max(len(row) for row in rows)
    aspect = max(panel.image.shape[0] / panel.image.shape[1] for row in rows for panel in row)
    lines = -(-len(legend) // 6) if legend else 0
    figure = Figure(dpi=110, figsize=(width * columns, (width * aspect + 0.3) * len(rows) + 0.25 * lines + 0.1), layout="constrained")
    for axes, row in zip(figure.subplots(len(rows), columns, squeeze=False), rows, strict=True):
        for axis in axes:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        for axis, panel in zip(axes, row, strict=False):  # a shorter row leaves axes empty
            axis.imshow(panel.image, interpolation="nearest")
            axis.set_title(panel.title, fontsize=8, loc="left", color=panel.color or "black")
            if panel.color:
                axis.spines[:].set(color=panel.color, linewidth=3, visible=True)
    if note:
        figure.supxlabel(note, fontsize=8)
    drawn = None
    if legend:
        handles = [Patch(facecolor=color, edgecolor="0.6", label=text) for text, color in legend.items()]
        drawn = figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image, facts = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]), PngInfo()
    if legend and drawn:
        top = image.height - math.ceil(drawn.get_window_extent().y1)
        used = np.flatnonzero((np.asarray(image)[:top] != PAPER).any(axis=(1, 2)))
        top = min(top, int(used[-1]) + MARGIN) if len(used) else top
        facts.add_text(KEY, json.dumps({"top": top, "colors": {text: to_hex(color) for text, color in legend.items()}}))
    with atomic_write(path) as temporary:
        image.save(temporary, "PNG", pnginfo=facts)


def read_legend(path: Path) -> Legend | None:
    """The legend of an image that `write_panels` has written; None of any other."""
    with Image.open(path) as image:
        text = image.info.get(KEY)
    return Legend(**json.loads(text)) if text else None
