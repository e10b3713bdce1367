"""Rows of frames with their labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from densewalk.core.files import atomic_write
from densewalk.data.benchmarks.video_objects import LabelledVideo, Mask, Masks
from densewalk.visualization.overlays import overlay_colors


def write_strip(path: Path, sequence: LabelledVideo, rows: Sequence[Masks], *, shown: int = 4, width: int = 320) -> None:
    """A few frames, evenly spaced, once for each of the label maps, with the objects tinted."""
    numbers = np.linspace(0, len(sequence) - 1, shown).round().astype(int).tolist()
    frames = [sequence.image(n) for n in numbers]
    write_rows(path, [(frames, labels[numbers]) for labels in rows], width)


def write_rows(path: Path, rows: Sequence[tuple[Sequence[UInt8[np.ndarray, "height width 3"]], Sequence[Mask]]], width: int = 320) -> None:
    """Each row's frames side by side, at most `width` wide, tinted by their labels."""
    lines = [np.concatenate([tint_labels(*pair) for pair in zip(*row, strict=True)], axis=1) for row in rows]
    image = Image.fromarray(np.concatenate(lines))
    image.thumbnail((len(rows[0][0]) * width, image.height))
    with atomic_write(path) as temporary:
        image.save(temporary)


def tint_labels(image: UInt8[np.ndarray, "height width 3"], labels: Mask) -> UInt8[np.ndarray, "height width 3"]:
    """The image, half replaced by the label's color where there is an object."""
    mixed = (image.astype(np.uint16) + overlay_colors()[labels]) // 2
    return np.where(labels[..., None] > 0, mixed, image).astype(np.uint8)
