"""The surfaces one walks and drives on."""

from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8
from numpy.random import Generator

from densewalk.synthetic.city.light import Light
from densewalk.synthetic.city.raster import Number
from densewalk.synthetic.city.sketch import TILE, Color, fractal, pick, vary

TEXELS_PER_METER = 64


class Tiles(NamedTuple):
    """Square tiles of all materials with their reduced sizes, one after the other, as lists of texels."""

    texels: UInt8[np.ndarray, "materials texels 3"]

    def sample(
        self,
        material: Int[np.ndarray, " points"],
        s: Float[np.ndarray, " points"],
        d: Float[np.ndarray, " points"],
        footprint: Float[np.ndarray, " points"],
    ) -> UInt8[np.ndarray, "points 3"]:
        """Colors of places in meters, from the reduced size whose texels are about `footprint` texels wide."""
        levels = TILE.bit_length()
        level = np.log2(np.clip(footprint, 1, TILE)).astype(np.int32)
        sizes = TILE >> np.arange(levels, dtype=np.int32)
        offset = np.cumsum(sizes**2, dtype=np.int32) - sizes**2
        row = (np.floor(s * TEXELS_PER_METER).astype(np.int32) & (TILE - 1)) >> level
        column = (np.floor(d * TEXELS_PER_METER).astype(np.int32) & (TILE - 1)) >> level
        return self.texels[material, offset[level] + row * sizes[level] + column]


def ground_texture(rng: Generator, light: Light) -> Tiles:
    """The street's MATERIALS for one walk in its light; rows of a tile run along the street, columns across."""
    gray = rng.uniform(-10, 14)
    painters = (_lawn, _soil, _slabs, _curb, _asphalt, _paint)
    tiles = [np.clip(painter(rng, gray) * light.ground, 0, 255).astype(np.uint8) for painter in painters]
    return Tiles(np.stack([_pyramid(tile) for tile in tiles]))


def _pyramid(tile: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "texels 3"]:
    sizes = [TILE >> level for level in range(TILE.bit_length())]
    return np.concatenate([cv2.resize(tile, (n, n), interpolation=cv2.INTER_AREA).reshape(-1, 3) for n in sizes])


def _plain(rng: Generator, color: Color, *amplitudes: tuple[Number, tuple[int, ...]]) -> Float[np.ndarray, "height width 3"]:
    noise = sum((amplitude * fractal(rng, TILE, cells) for amplitude, cells in amplitudes), np.zeros((TILE, TILE)))
    return np.array(color) + noise[..., None]


def _lawn(rng: Generator, gray: float) -> Float[np.ndarray, "height width 3"]:
    blades = cv2.blur(rng.normal(size=(TILE, TILE)).astype(np.float32), (1, 5))
    return _plain(rng, vary(rng, (82, 122, 48)), (10, (32, 8))) + 30 * blades[..., None] * np.array([0.8, 1.0, 0.5])


def _soil(rng: Generator, gray: float) -> Float[np.ndarray, "height width 3"]:
    return _plain(rng, vary(rng, (104, 78, 54)), (14, (256,)), (12, (64, 32)))


def _slabs(rng: Generator, gray: float) -> Float[np.ndarray, "height width 3"]:
    """Paving in one of three sizes, each slab in its own tone, dark joints."""
    image = _plain(rng, pick(rng, [(172, 166, 156), (158, 156, 156), (186, 168, 146)], 8), (4, (256,)), (4, (32,)))
    rows, columns = [(32, 32), (64, 32), (32, 16)][rng.integers(3)]
    tones = rng.normal(0, 7, (TILE // rows, TILE // columns))
    image += np.kron(tones, np.ones((rows, columns)))[..., None]
    image[::rows] -= 44
    image[:, ::columns] -= 44
    return image


def _curb(rng: Generator, gray: float) -> Float[np.ndarray, "height width 3"]:
    image = _plain(rng, (184 + gray, 182 + gray, 178 + gray), (8, (256,)), (5, (16,)))
    image[::64] -= 60
    return image


def _asphalt(rng: Generator, gray: float) -> Float[np.ndarray, "height width 3"]:
    """Grain, patches and a few cracks filled with tar."""
    image = _plain(rng, (84 + gray, 85 + gray, 90 + gray), (9, (256,)), (5, (64, 8))).astype(np.float32)
    for _ in range(3):
        path = np.cumsum(rng.normal(0, 9, (9, 2)), axis=0) + rng.uniform(0, TILE, 2)
        cv2.polylines(image, [path.astype(np.int32)], False, (52 + gray,) * 3, 1)
    return image


def _paint(rng: Generator, gray: float) -> Float[np.ndarray, "height width 3"]:
    worn = fractal(rng, TILE, (64, 16)) > 1.1
    return np.where(worn[..., None], 130.0, _plain(rng, (218, 217, 208), (6, (256,))))
