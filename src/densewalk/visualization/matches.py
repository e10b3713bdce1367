"""Corresponding points of two images, joined by lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from densewalk.visualization.overlays import FOUND_COLOR, TRUE_COLOR
from densewalk.visualization.panels import Panel, write_panels

HEIGHT, GAP = 240, 8  # pixels


@dataclass(frozen=True)
class Matches:
    """Two images; points of the left one, where they were found in the right one and where they are (x, y in pixels), which are right."""

    title: str
    left: UInt8[np.ndarray, "_ _ 3"]
    right: UInt8[np.ndarray, "_ _ 3"]
    points: Float[np.ndarray, "points 2"]
    found: Float[np.ndarray, "points 2"]
    truth: Float[np.ndarray, "points 2"]
    correct: Bool[np.ndarray, " points"]


def write_match_strip(path: str | Path, matches: Sequence[Matches], columns: int = 2) -> None:
    """Write pairs of images in rows: a line from each point to where it was found, and a white ring where it is."""
    panels = [Panel(draw_matches(one), one.title) for one in matches]
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    legend = {"found, right": TRUE_COLOR, "found, wrong": FOUND_COLOR, "ring: where the point is": "white"}
    write_panels(path, rows, legend, width=4.5)


def draw_matches(one: Matches) -> UInt8[np.ndarray, "height width 3"]:
    """Both images at one height, side by side."""
    scales = [HEIGHT / image.shape[0] for image in (one.left, one.right)]
    sides = [
        Image.fromarray(image).resize((round(image.shape[1] * scale), HEIGHT))
        for image, scale in zip((one.left, one.right), scales, strict=True)
    ]
    start = sides[0].width + GAP
    canvas = Image.new("RGB", (start + sides[1].width, HEIGHT), "white")
    canvas.paste(sides[0], (0, 0))
    canvas.paste(sides[1], (start, 0))
    draw = ImageDraw.Draw(canvas)
    for point, found, truth, correct in zip(one.points * scales[0], one.found * scales[1], one.truth * scales[1], one.correct, strict=True):
        color = TRUE_COLOR if correct else FOUND_COLOR
        ends = (tuple(point), (start + found[0], found[1]))
        draw.line(ends, fill="black", width=4)
        draw.line(ends, fill=color, width=2)
        for x, y in ends:
            draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color, outline="black")
        x, y = start + truth[0], truth[1]
        draw.ellipse((x - 6, y - 6, x + 6, y + 6), outline="black", width=4)
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), outline="white", width=2)
    return np.array(canvas)
