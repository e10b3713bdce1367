"""Whether a box leaves its image: one rule for all boxes of annotations. Free of torch."""

from collections.abc import Sequence


def leaves_image(corners: Sequence[int | float], size: tuple[int, int], slack: float | None = None) -> bool:
    """Say whether x0, y0, x1, y1 leave an image by more than `slack` pixels; None: two pixels and a fiftieth of its side.

    Boxes of public annotations count from 0 or 1, are rounded, and are drawn a little over the border.

    Args:
        size: width and height.
    """
    wide, high = (2 + side / 50 if slack is None else slack for side in size)
    return min(corners[0] + wide, corners[1] + high) < 0 or corners[2] > size[0] + wide or corners[3] > size[1] + high
