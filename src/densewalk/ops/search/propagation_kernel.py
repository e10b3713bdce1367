"""The inner loop of label propagation: targets take in their similarities to a block of keys."""

# numba infers the types inside
# mypy: allow-untyped-defs, no-check-untyped-defs

import math

import numpy as np

from densewalk.ops.cpu.compiled import compiled
from densewalk.ops.search.nearest_kernel import insert


@compiled()
def take_in_block(
    similarity: np.ndarray,
    targets: tuple[int, int, int, int],
    keys: tuple[int, int, int, int],
    frames: int,
    rule: tuple[int, int, int, bool],
    values: np.ndarray,
    sources: np.ndarray,
) -> None:
    """Put each target's largest similarities into its `values`, descending, of equal ones the earlier source first.

    A block is passed once, to count what is large enough; only blocks that have any are looked at again, in the window alone.

    Args:
        similarity: float32 [targets, keys], targets row by row, keys by row, frame and column; no NaN.
        targets, keys: rectangles as first row, end of rows, first column, end of columns.
        frames: of the context.
        rule: rows and columns of the grid, radius, and whether the window is a circle.
        values, sources: [patches, kept], changed in place, -inf and 0 before the first block; a source is frame * patches + patch.
    """
    height, width, radius, circle = rule
    top, bottom, left, right = keys
    target = -1
    for row in range(targets[0], targets[1]):
        for column in range(targets[2], targets[3]):
            target += 1
            x, best, at = similarity[target], values[row * width + column], sources[row * width + column]
            kept = len(best)
            if not _reaching(x, best[kept - 1]):
                continue
            for key_row in range(max(top, row - radius), min(bottom, row + radius + 1)):
                half = int(math.sqrt(radius**2 - (key_row - row) ** 2)) if circle else radius
                first, end = max(left, column - half), min(right, column + half + 1)
                for frame in range(frames):
                    start = ((key_row - top) * frames + frame) * (right - left) - left  # of the key in column 0
                    for key_column in range(first, end):
                        if x[start + key_column] >= best[kept - 1]:
                            insert(best, at, kept, x[start + key_column], (frame * height + key_row) * width + key_column)


@compiled()
def _reaching(x, low):
    """How many of `x` are `low` or more."""
    count = 0
    for j in range(len(x)):
        count += x[j] >= low
    return count
