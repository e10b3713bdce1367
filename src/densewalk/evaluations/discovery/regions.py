"""Connected regions of patches, and their boxes."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from densewalk.data.benchmarks.boxes import clip


def component_of(mask: Bool[np.ndarray, "rows columns"], seed: int) -> Bool[np.ndarray, "rows columns"]:
    """The 4-connected component with the seed; the seed alone where it lies outside the mask (a patch similar to none)."""
    labels, _ = ndimage.label(mask)
    row, column = np.unravel_index(seed, mask.shape)
    if labels[row, column] == 0:
        labels[row, column] = -1
    return labels == labels[row, column]


def largest_component(
    mask: Bool[np.ndarray, "rows columns"], search: Literal["all", "released"] = "all"
) -> Bool[np.ndarray, "rows columns"]:
    """The 4-connected component with the most patches, the first of several; all patches where the mask is empty.

    search: `released` never looks at the last component in reading order; of one component alone it takes the rest of the image
    (all, where nothing is left).
    """
    labels, count = ndimage.label(mask)
    seen = count if search == "all" else count - 1
    if seen > 0:
        return labels == 1 + np.bincount(labels.ravel(), minlength=2)[1 : seen + 1].argmax()
    return ~mask if search == "released" and count and not mask.all() else np.ones_like(mask)


def bounding_box(component: Bool[np.ndarray, "rows columns"], patch: int, width: int, height: int) -> Float[np.ndarray, "4"]:
    """x0, y0, x1, y1 in pixels, clipped to the image."""
    rows, columns = np.flatnonzero(component.any(1)), np.flatnonzero(component.any(0))
    box = patch * np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
    return clip(box, width, height)
