"""Times of day, and the sky."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from numpy.random import Generator

from densewalk.synthetic.city.sketch import Color, fractal


class Light(NamedTuple):
    """One time of day: direction to the sun, brightness of what it meets and of the shade, colors of sky and haze, exposure."""

    sun: Float[np.ndarray, "3"]
    ambient: float
    direct: float
    zenith: Color
    haze: Float[np.ndarray, "3"]
    clouds: float
    gain: Float[np.ndarray, "3"]
    haze_meters: float

    @classmethod
    def random(cls, rng: Generator) -> "Light":
        """Noon, a veiled sky, an overcast one or evening, never twice the same."""
        ambient, direct, zenith, haze, clouds, gain = DAYTIMES[rng.integers(len(DAYTIMES))]
        azimuth, elevation = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, 1.0)
        sun = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
        exposure = np.array(gain) * rng.uniform(0.92, 1.1) * rng.uniform(0.98, 1.02, 3)
        return cls(sun, ambient, direct, zenith, np.array(haze, np.float32), clouds, exposure.astype(np.float32), rng.uniform(110, 260))

    @property
    def ground(self) -> float:
        """Brightness of horizontal surfaces."""
        return self.ambient + self.direct * float(self.sun[1])

    def shades(self, planes: Float[np.ndarray, "quads 3 3"], lit: list[bool]) -> Float[np.ndarray, " quads"]:
        """Brightness of quads: Lambert's law for the lit ones, the same for all others, which turn with the camera."""
        normals = np.cross(planes[:, :, 0], planes[:, :, 1])
        normals /= np.linalg.norm(normals, axis=1, keepdims=True)
        return self.ambient + self.direct * np.where(lit, np.maximum(normals @ self.sun, 0), 0.5)

    @property
    def shadow(self) -> float:
        """How much darker it is where the sun does not reach, 0 to 1."""
        return 0.2 + 0.5 * self.direct


DAYTIMES: list[tuple[float, float, Color, Color, float, Color]] = [
    (0.72, 0.50, (70, 125, 205), (198, 216, 236), 0.35, (1.00, 1.00, 1.00)),
    (0.80, 0.32, (120, 160, 210), (214, 222, 230), 0.60, (1.00, 1.00, 1.01)),
    (0.92, 0.10, (165, 172, 182), (208, 211, 214), 0.95, (0.96, 0.98, 1.02)),
    (0.66, 0.55, (92, 118, 180), (244, 208, 168), 0.45, (1.07, 0.99, 0.88)),
]


def sky_texture(rng: Generator, light: Light) -> UInt8[np.ndarray, "height width 3"]:
    """A panorama, azimuth from left to right, elevation from 0 at the bottom to 45 degrees at the top."""
    height, width = 192, 1024
    up = np.linspace(1, 0, height)[:, None, None] ** 0.7
    image = light.haze * (1 - up) + np.array(light.zenith) * up
    tile = fractal(rng, 256, (4, 8)) + 0.6 * fractal(rng, 256, (16, 32)) + 0.25 * fractal(rng, 256, (64,))
    # clouds lie flat: rows are taken closer together towards the horizon
    rows = (np.linspace(1, 0, height) ** 0.5 * 255).astype(np.int64)
    density = np.tile(tile, (1, width // 256))[rows]
    cover = np.clip((density + 2.2 * light.clouds - 1.1) * 0.8, 0, 1) * np.clip(5 * np.linspace(1, 0, height)[:, None], 0.15, 1)
    white = np.clip(244 - 22 * np.clip(density, 0, 2), 0, 255)[..., None] * (0.6 + 0.4 * light.haze / light.haze.max())
    return np.clip(image * (1 - 0.85 * cover[..., None]) + white * 0.85 * cover[..., None], 0, 255).astype(np.uint8)
