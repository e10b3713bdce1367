"""Drawing textures: shapes in meters, dirt, variations of colors."""

from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
from jaxtyping import Float, Int
from numpy.random import Generator, default_rng

from densewalk.synthetic.city.raster import Number, Texture

Color = tuple[Number, Number, Number]
Points = Sequence[Sequence[Number]]
VIVID: list[Color] = [
    (176, 36, 40),
    (24, 92, 60),
    (28, 62, 128),
    (210, 150, 30),
    (110, 36, 92),
    (40, 40, 44),
    (224, 120, 40),
    (20, 120, 130),
]
TILE = 256  # texels along a side of a tile


class Sketch:
    """A drawing in meters, x from the left and y from the bottom, that becomes a texture. Every shape has a color and a part."""

    def __init__(self, width: Number, height: Number, scale: Number) -> None:
        self.width, self.height, self.scale = width, height, scale
        self.canvas = np.zeros((max(2, round(height * scale)), max(2, round(width * scale)), 4), np.uint8)  # R, G, B, part

    def polygon(self, points: Points, color: Color, part: int = 1) -> None:
        """A filled polygon."""
        cv2.fillPoly(self.canvas, [self._pixels(points)], (*color, part), cv2.LINE_8, 4)

    def box(self, x0: Number, y0: Number, x1: Number, y1: Number, color: Color, part: int = 1) -> None:
        """A filled rectangle."""
        corners = self._pixel(x0, y0), self._pixel(x1, y1)
        cv2.rectangle(self.canvas, *corners, (*color, part), cv2.FILLED, cv2.LINE_8, 4)

    def line(self, points: Points, thickness: Number, color: Color, part: int = 1) -> None:
        """A line of some thickness with round ends."""
        width = max(1, round(thickness * self.scale))
        cv2.polylines(self.canvas, [self._pixels(points)], False, (*color, part), width, cv2.LINE_8, 4)

    def ellipse(self, x: Number, y: Number, rx: Number, ry: Number, color: Color, part: int = 1) -> None:
        """A filled ellipse."""
        axes = round(rx * self.scale * 16), round(ry * self.scale * 16)
        cv2.ellipse(self.canvas, self._pixel(x, y), axes, 0, 0, 360, (*color, part), cv2.FILLED, cv2.LINE_8, 4)

    def discs(self, centers: Float[np.ndarray, "discs 2"], radii: Float[np.ndarray, "discs"], colors: Float[np.ndarray, "discs 3"]) -> None:
        """Filled circles of part 1, the later over the earlier."""
        pixels = np.rint((centers * (1, -1) + (0, self.height)) * (16 * self.scale) - 8).astype(np.int64)
        sizes = np.rint(radii * (16 * self.scale)).astype(np.int64)
        rows = np.concatenate([np.minimum(colors, 255), np.ones((len(colors), 1))], axis=1)
        for center, size, color in zip(pixels.tolist(), sizes.tolist(), rows.tolist(), strict=True):
            cv2.circle(self.canvas, center, size, color, cv2.FILLED, cv2.LINE_8, 4)

    def ring(self, x: Number, y: Number, radius: Number, thickness: Number, color: Color, part: int = 1) -> None:
        """A circle's outline."""
        self.line([(x + radius * u, y + radius * v) for u, v in (*_CIRCLE, _CIRCLE[0])], thickness, color, part)

    def shade(self, left: Number, right: Number, bottom: Number, top: Number) -> None:
        """Multiply the colors by a gradient, so that a flat shape looks round."""
        rows, columns = self.canvas.shape[:2]
        self.tint(np.outer(np.linspace(top, bottom, rows), np.linspace(left, right, columns)))

    def tint(self, factor: Float[np.ndarray, "height width"]) -> None:
        """Multiply the colors."""
        factor = factor.astype(np.float32)
        cv2.multiply(self.canvas, cv2.merge([factor, factor, factor, np.ones_like(factor)]), self.canvas, dtype=cv2.CV_8U)

    def texture(self, rng: Generator) -> Texture:
        """The drawing with some dirt on it and its reduced sizes; what one sees through takes on the colors beside it."""
        rows, columns = self.canvas.shape[:2]
        y, x = rng.integers(0, TILE, 2)
        rgb = cv2.add(np.ascontiguousarray(self.canvas[..., :3]), _dirt()[y : y + rows, x : x + columns], dtype=cv2.CV_8U)
        parts = np.ascontiguousarray(self.canvas[..., 3])
        opaque, alpha = parts > 0, None
        if not opaque.all():
            rgb = np.where(opaque[..., None], rgb, cv2.dilate(rgb * opaque[..., None], np.ones((5, 5), np.uint8)))
            parts = np.where(opaque, parts, cv2.dilate(parts, np.ones((3, 3), np.uint8)))
            alpha = opaque * np.uint8(255)
        levels = [rgb]
        while min(levels[-1].shape[:2]) > 3:
            height, width = levels[-1].shape[:2]
            levels.append(cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA))
        return Texture(tuple(levels), parts, alpha)

    def _pixel(self, x: Number, y: Number) -> tuple[int, int]:
        unit = 16 * self.scale  # OpenCV's sixteenths of a pixel, whole at the centers
        return round(x * unit - 8), round((self.height - y) * unit - 8)

    def _pixels(self, points: Points) -> Int[np.ndarray, "points 2"]:
        return np.array([self._pixel(x, y) for x, y in points], np.int32)


_CIRCLE = [(float(np.cos(angle)), float(np.sin(angle))) for angle in np.arange(24) * np.pi / 12]


@lru_cache(maxsize=1)
def _dirt() -> Int[np.ndarray, "height width 3"]:
    """Grain, spots and stains, about +-12, enough of them for the largest facade from any corner of the first tile."""
    noise = 4 * fractal(default_rng(1), TILE, (256,)) + 12 * fractal(default_rng(2), TILE, (64, 16, 4))
    return np.repeat(np.tile(noise, (4, 4)).astype(np.int16)[..., None], 3, axis=2)


def fractal(rng: Generator, size: int, cells: Sequence[int]) -> Float[np.ndarray, "size size"]:
    """Tiling noise of about unit amplitude: the mean of random grids, smoothly enlarged; their numbers of cells divide `size`."""
    total = np.zeros((size, size), np.float32)
    for count in cells:
        grid = rng.normal(size=(count, count)).astype(np.float32)
        step = size // count
        wide = cv2.resize(np.pad(grid, 2, mode="wrap"), None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        total += wide[2 * step : 2 * step + size, 2 * step : 2 * step + size]
    return total / len(cells) ** 0.5


def vary(rng: Generator, color: Color, amount: Number = 12.0) -> Color:
    """A color near another."""
    brightness, shifts = rng.uniform(0.88, 1.1), rng.normal(0, amount / 2, 3).tolist()
    r, g, b = (min(255.0, max(0.0, brightness * (c + shift))) for c, shift in zip(color, shifts, strict=True))
    return r, g, b


def pick(rng: Generator, colors: Sequence[Color], amount: Number = 12.0) -> Color:
    """A color near one of several."""
    return vary(rng, colors[int(rng.integers(len(colors)))], amount)


def dim(color: Color, factor: Number) -> Color:
    """A darker or, above 1, lighter color."""
    r, g, b = (min(255.0, factor * c) for c in color)
    return r, g, b
