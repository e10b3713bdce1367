"""NAVI's layout: toys of the city's vehicles and benches, each seen from many sides before pictures of the street.

    navi_v1/{object}/wild_set/{annotations.json,images/%03d.jpg,depth/%03d.png,masks/%03d.png}

Poses and depths are exact. An image has the raster's own size, twice the camera's: its pixels' middles are the rays that were drawn, as
NAVI's convention has it. The longest side of every toy is 20 cm, because 16 bits hold only near depths finely.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8, UInt16
from numpy.random import Generator, default_rng

from densewalk.core.files import write_json
from densewalk.synthetic.city.items import Item
from densewalk.synthetic.city.light import Light
from densewalk.synthetic.city.raster import SUPERSAMPLE, Camera, Quad, Raster, Rgb, rotation
from densewalk.synthetic.city.walk import MODELS, Walk
from densewalk.synthetic.image_writer import write_image

KINDS = ("car", "bus", "truck", "bench")  # those that have sides all round
LONGEST = 200.0  # millimeters
FULL = 655_350.0  # millimeters that the stored depth 1 stands for
SEVERAL = 4  # every so many images the camera is turned upright


class ObjectLayout:
    """Toys, numbered; the first four are of different kinds."""

    def __init__(self, root: Path, seed: tuple[int, ...], size: tuple[int, int]) -> None:
        """Start a folder. size: height and width of the images, even; of some, width and height."""
        self.base, self.seed, self.size = root / "navi_v1", seed, size
        self.counts: dict[str, int] = {}

    def add(self, walk: Walk, views: int, backgrounds: Sequence[Rgb]) -> None:
        """Write one more toy, seen by so many cameras. walk: its street, which the models ask for."""
        number = len(self.counts)
        kind = KINDS[number % len(KINDS)]
        name, rng = f"{kind}_{number:02d}", default_rng((*self.seed, number))
        quads = MODELS[kind](default_rng((*self.seed, number, 0)), Item(kind, 0.0, 0.0, 0.0, 1.0, number), 0, walk.street)
        planes = np.stack([quad.plane for quad in quads])
        corners = planes @ np.array([[0.0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1]])
        low, high = corners.min(axis=(0, 2)), corners.max(axis=(0, 2))
        planes[:, :, 2] -= (low + high) / 2
        scale = LONGEST / float((high - low).max())
        entries: list[dict[str, Any]] = []
        for view in range(views):
            height, width = self.size if view % SEVERAL else self.size[::-1]
            camera = _camera(rng, float(np.linalg.norm(high - low)), height // SUPERSAMPLE, width // SUPERSAMPLE)
            rgb, shown, depth = _draw(camera, planes, quads, Light.random(rng), backgrounds[int(rng.integers(len(backgrounds)))])
            folder, stem = self.base / name / "wild_set", f"{view:03d}"
            write_image(folder / f"images/{stem}.jpg", rgb)
            write_image(folder / f"depth/{stem}.png", stored_depth(scale * depth))
            write_image(folder / f"masks/{stem}.png", np.where(shown, np.uint8(255), np.uint8(0)))
            entries.append({"object_id": name, "filename": f"{stem}.jpg", "image_size": [height, width], "scene_name": "wild_set"})
            entries[-1] |= {"camera": camera_entry(camera, scale), "split": "val", "occluded": False}
        write_json(self.base / name / "wild_set/annotations.json", entries)
        self.counts[name] = views

    def finish(self) -> dict[str, Any]:
        """Views by object."""
        return self.counts


def camera_entry(camera: Camera, scale: float) -> dict[str, Any]:
    """A camera as NAVI writes it. scale: millimeters of the toy for each meter of the thing.

    The world's axes right, up, forward are left-handed; those of the toy are right, down, forward, which a rotation can turn.
    """
    turn = camera.turn * (1, -1, 1)
    return {
        "q": quaternion(turn).tolist(),
        "t": (-scale * camera.turn @ camera.place).tolist(),
        "focal_length": float(camera.focal),
        "camera_model": "pinhole",
    }


def quaternion(turn: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "4"]:
    """The quaternion w, x, y, z of a rotation, w not negative: the eigenvector of Bar-Itzhack's matrix with the largest eigenvalue."""
    (a, b, c), (d, e, f), (g, h, i) = turn
    matrix = np.array([[a + e + i, h - f, c - g, d - b], [0, a - e - i, d + b, c + g], [0, 0, e - a - i, h + f], [0, 0, 0, i - a - e]]) / 3
    q = np.linalg.eigh(matrix, UPLO="U")[1][:, -1]
    return q if q[0] >= 0 else -q


def stored_depth(millimeters: Float[np.ndarray, "height width"]) -> UInt16[np.ndarray, "height width"]:
    """655,350 / mm, rounded; 0 where there is none."""
    known = millimeters > 0
    return np.round(np.divide(FULL, millimeters, out=np.zeros(millimeters.shape), where=known)).astype(np.uint16)


def _camera(rng: Generator, size: float, height: int, width: int) -> Camera:
    """A camera anywhere around and above the thing, which fills a good part of the image. size: its diagonal."""
    focal = rng.uniform(1.1, 1.4) * max(height, width)
    yaw, pitch, roll = rng.uniform(0, 2 * np.pi), -rng.uniform(0.15, 0.9), rng.uniform(-0.2, 0.2)
    turn = rotation(yaw, pitch, roll)
    distance = rng.uniform(1.05, 1.4) * size * focal / min(height, width)
    aside = distance * rng.uniform(-0.06, 0.06, 2)  # the thing is not in the middle
    return Camera(-turn.T @ np.array([*aside, distance]), turn, focal, width, height, 0.0)


def _draw(
    camera: Camera,
    planes: Float[np.ndarray, "quads 3 3"],
    quads: Sequence[Quad],
    light: Light,
    background: UInt8[np.ndarray, "rows columns 3"],
) -> tuple[Rgb, Bool[np.ndarray, "height width"], Float[np.ndarray, "height width"]]:
    """The image, where it shows the thing, and its depth in meters, 0 elsewhere; all of the raster's size."""
    raster = Raster(camera)
    raster.draw(planes, [quad.texture for quad in quads], light.shades(planes, [quad.lit for quad in quads]), [0] * len(quads))
    shown = raster.code > 0
    behind = cv2.resize(background, raster.shape[::-1], interpolation=cv2.INTER_LINEAR)
    toned = np.clip(np.where(shown[..., None], raster.color, behind) * light.gain + 0.5, 0, 255).astype(np.uint8)
    return toned, shown, np.where(shown, 1 / raster.inverse_depth.astype(np.float64), 0.0)
