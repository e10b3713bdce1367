"""Rows of frames with their labels."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from scipy.ndimage import maximum_filter, minimum_filter

from densewalk.core.files import atomic_write
from densewalk.data.benchmarks.video_objects import LabelledVideo, Mask, Masks
from densewalk.visualization.label_colors import overlay_colors

OUTLINE = 120  # pixels of a frame's shorter side for each pixel of an outline's width
Frame = UInt8[np.ndarray, "height width 3"]


def write_strip(path: Path, sequence: LabelledVideo, rows: Sequence[Masks], *, shown: int = 4, width: int = 320) -> None:
    """A few frames, evenly spaced, once for each of the label maps, with the objects tinted and outlined. rows: the true labels first."""
    numbers = np.linspace(0, len(sequence) - 1, shown).round().astype(int).tolist()
    frames = [sequence.image(n) for n in numbers]
    write_rows(path, [(frames, labels[numbers]) for labels in rows], width)


def write_rows(path: Path, rows: Sequence[tuple[Sequence[Frame], Sequence[Mask]]], width: int = 320) -> None:
    """Each row's frames side by side, at most `width` wide, with their labels; colors are chosen by the first row, of the true labels."""
    frames, labels = rows[0]
    colors = overlay_colors(list(frames), list(labels))
    lines = [np.concatenate([draw_labels(*pair, colors) for pair in zip(*row, strict=True)], axis=1) for row in rows]
    image = Image.fromarray(np.concatenate(lines))
    image.thumbnail((len(frames) * width, image.height))
    with atomic_write(path) as temporary:
        image.save(temporary)


def draw_labels(image: Frame, labels: Mask, colors: UInt8[np.ndarray, "256 3"]) -> Frame:
    """The image, inside of each label four tenths its color, outlined by the color itself, and around that by black.

    for pixel: 0.6 image + 0.4 color           where there is a label
               color                           where another label, or none, is at most `width` pixels away
               black                           where there is no label, but one at most (width + 1) // 2 pixels away
    """
    width = max(1, round(min(labels.shape) / OUTLINE))
    own = colors[labels]
    found = np.where(labels[..., None] > 0, np.round(0.6 * image + 0.4 * own).astype(np.uint8), image)
    near = 2 * width + 1
    border = minimum_filter(labels, near, mode="nearest") != maximum_filter(labels, near, mode="nearest")
    found[border & (labels > 0)] = own[border & (labels > 0)]
    around = maximum_filter(labels, 2 * ((width + 1) // 2) + 1, mode="nearest") > 0
    found[around & (labels == 0)] = 0
    return found
