"""DAVIS's and Pascal VOC's palette."""

import numpy as np
from jaxtyping import UInt8


def palette(size: int = 256) -> UInt8[np.ndarray, "{size} 3"]:
    """Colors of labels: the bits go in turn to red, green and blue, highest bit first.

    for label in range(size):
        for position in range(8):
            for channel in range(3):
                colors[label, channel] |= (label >> (3 * position + channel) & 1) << (7 - position)
    """
    labels = np.arange(size)[:, None, None]
    bit = labels >> (3 * np.arange(8)[:, None] + np.arange(3)) & 1
    return (bit << (7 - np.arange(8)[:, None])).sum(axis=1).astype(np.uint8)
