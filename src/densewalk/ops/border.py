"""The side of a mask that is the object: the one that keeps away from the frame's border (contextual information separation)."""

import numpy as np
from jaxtyping import Bool

Mask = Bool[np.ndarray, "height width"]
THRESHOLD = 0.1  # above which a soft mask is one side
WIDTH, MOST = 2, 0.6  # pixels of the border; share of it from which on the other side is the object


def border_share(mask: Mask) -> float:
    """Share of the frame's border, 2 pixels wide, that a mask covers.

    The four strips are counted one by one, as in the released code: pixels of the corners count twice.
    """
    strips = [mask[:WIDTH], mask[-WIDTH:], mask[:, :WIDTH], mask[:, -WIDTH:]]
    return sum(int(strip.sum()) for strip in strips) / sum(strip.size for strip in strips)


def object_side(mask: Mask) -> Mask:
    """The mask, or what it leaves if it covers three fifths of the border or more."""
    return mask if border_share(mask) < MOST else ~mask
