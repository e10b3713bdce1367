"""Writing of generated images: JPEG, or PNG of 8 or 16 bits."""

from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Shaped

from densewalk.core.files import atomic_write

JPEG_QUALITY = 92


def write_image(path: Path, image: Shaped[np.ndarray, "..."]) -> None:
    """Write RGB, or one channel; atomically."""
    options = [] if path.suffix == ".png" else [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    _, encoded = cv2.imencode(path.suffix, image[..., ::-1] if image.ndim == 3 else image, options)
    with atomic_write(path) as temporary:
        temporary.write_bytes(encoded.tobytes())
