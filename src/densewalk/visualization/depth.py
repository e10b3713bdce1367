"""Depth maps in colors, beside their images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8

from densewalk.visualization.panels import Panel, write_panels

COLORS = "magma_r"  # near is bright


@dataclass(frozen=True)
class DepthRow:
    """An image, its true depth (0: no value) and the predicted one, in meters."""

    title: str
    image: UInt8[np.ndarray, "_ _ 3"]
    true: Float[np.ndarray, "height width"]
    predicted: Float[np.ndarray, "height width"]


def write_depth_strip(path: str | Path, rows: Sequence[DepthRow]) -> None:
    """Write image, true and predicted depth side by side; a row has one scale, from 0 to its largest true depth."""
    grid = []
    for row in rows:
        far = float(row.true.max()) or 1.0
        panels = [Panel(row.image, row.title), Panel(color_depth(row.true, far), f"true depth, to {far:.1f} m")]
        grid.append([*panels, Panel(color_depth(row.predicted, far), "predicted depth")])
    write_panels(path, grid)


def color_depth(depth: Float[np.ndarray, "height width"], far: float) -> UInt8[np.ndarray, "height width 3"]:
    """Colors from 0 to `far` meters; white where there is no value."""
    colors = matplotlib.colormaps[COLORS](np.clip(depth / far, 0, 1))[..., :3]
    image = np.round(255 * colors).astype(np.uint8)
    image[depth <= 0] = 255
    return image
