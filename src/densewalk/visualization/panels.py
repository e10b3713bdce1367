"""Images of one size side by side, with titles, as one PNG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from densewalk.core.files import atomic_write


@dataclass(frozen=True)
class Panel:
    """An image and what is above it; `color` frames it."""

    image: UInt8[np.ndarray, "height width 3"]
    title: str = ""
    color: str | None = None


def write_panels(
    path: str | Path, rows: Sequence[Sequence[Panel]], legend: Mapping[str, Any] | None = None, *, width: float = 3.0, note: str = ""
) -> None:
    """Write images in rows and columns of one size; a row may be short.

    Args:
        legend: text -> color, below the images. width: of a column in inches. note: a line at the foot.
    """
    columns = max(len(row) for row in rows)
    aspect = max(panel.image.shape[0] / panel.image.shape[1] for row in rows for panel in row)
    lines = -(-len(legend) // 6) if legend else 0
    figure = Figure(figsize=(width * columns, (width * aspect + 0.3) * len(rows) + 0.25 * lines + 0.1), layout="constrained")
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
    if legend:
        handles = [Patch(facecolor=color, edgecolor="0.6", label=text) for text, color in legend.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})
