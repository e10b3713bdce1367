"""Colors of labels over a photo, chosen so that each can be told from what is below it and from the others."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from numpy.typing import NDArray

from densewalk.data.palette import palette

# Okabe and Ito's colors (https://jfly.uni-koeln.de/color), which the color-blind can tell apart, the clearest on a photo first
CLEAR = ((213, 94, 0), (86, 180, 233), (240, 228, 66), (0, 158, 115), (204, 121, 167), (230, 159, 0), (0, 114, 178))
PIXELS = 1024  # of a label, from which its color is chosen
APART = 2  # times as far as from what is below it, a color is from another label's
LOW = 0.1  # quantile of a color's distances from these pixels that counts
TO_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)

Image = UInt8[np.ndarray, "height width 3"]


def overlay_colors(frames: Sequence[Image], labels: Sequence[UInt8[np.ndarray, "height width"]]) -> UInt8[np.ndarray, "256 3"]:
    """Choose the colors of all labels over these frames; the same frames and labels give the same colors.

        for label in (those that occur, then the others):
            below = the label's pixels (all pixels of a label that does not occur)
            color = argmax over those that are left of min(10 % quantile of |color - below|, min over chosen |color - other| / 2)

    Distances are Euclidean in Oklab (https://bottosson.github.io/posts/oklab). Labels are told apart by color alone, a label and the photo
    by its outline, too: two labels have to be twice as far apart. The seven clear colors are given first, then the palette's.

    Args:
        labels: of each frame, 0 where there is none: the true ones, so that all predictions for these frames have the same colors.
    """
    colors = palette()
    candidates = np.concatenate([np.array(CLEAR, np.uint8), colors[1:]])
    places = oklab(candidates)
    pixels, numbers = np.concatenate([f.reshape(-1, 3) for f in frames]), np.concatenate([m.ravel() for m in labels])
    everywhere = _low_distances(pixels, places)
    occurring = [int(label) for label in np.unique(numbers) if label > 0]
    nearest = np.full(len(candidates), np.inf)  # distance to the chosen colors
    free = np.ones(len(candidates), dtype=bool)
    for label in [*occurring, *(label for label in range(1, 256) if label not in occurring)]:
        below = _low_distances(pixels[numbers == label], places) if label in occurring else everywhere
        pool = free & (np.arange(len(candidates)) < len(CLEAR)) if free[: len(CLEAR)].any() else free
        best = int(np.argmax(np.where(pool, np.minimum(below, nearest), -np.inf)))
        colors[label] = candidates[best]
        free[best] = False
        nearest = np.minimum(nearest, np.linalg.norm(places - places[best], axis=1) / APART)
    return colors


def _low_distances(pixels: UInt8[np.ndarray, "pixels 3"], places: Float[np.ndarray, "colors 3"]) -> Float[np.ndarray, " colors"]:
    """The low quantile of each color's distances from some of the pixels, evenly spaced."""
    some = oklab(pixels[:: -(-len(pixels) // PIXELS)])
    found: NDArray[np.float64] = np.quantile(np.linalg.norm(places[:, None] - some, axis=2), LOW, axis=1)
    return found


def oklab(colors: UInt8[np.ndarray, "colors 3"]) -> NDArray[np.float64]:
    """Oklab coordinates of sRGB colors: lightness 0 to 1, then green to red and blue to yellow."""
    parts = colors / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    found: NDArray[np.float64] = np.cbrt(linear @ TO_CONES.T) @ TO_LAB.T
    return found
