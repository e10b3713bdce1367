"""The walk itself: who walks, what is seen, frame by frame."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int
from numpy.random import Generator, default_rng

from densewalk.synthetic.city import people, things, vehicles
from densewalk.synthetic.city.ground import TEXELS_PER_METER, ground_texture
from densewalk.synthetic.city.items import ADE, KINDS, WALKING_SPEED, Item, appearance, populate
from densewalk.synthetic.city.light import Light, sky_texture
from densewalk.synthetic.city.raster import SUPERSAMPLE, Camera, Labels, Quad, Raster, Rgb, rotation
from densewalk.synthetic.city.street import AHEAD, BEHIND, MATERIALS, Street


class Frame(NamedTuple):
    """One image with its ground truth.

    semantic: ADE20K ids. instances: 0 for stuff, otherwise an identity that lasts over the whole walk.
    coco: identity -> COCO category (0: COCO has none) of everything in the image.
    depth: distance in meters along the camera's axis, 0 for the sky. Labels and depth are those of one ray a pixel, which goes through
    its place (0.75, 0.75), counted from its top left corner.
    """

    rgb: Rgb
    semantic: Labels
    instances: Int[np.ndarray, "height width"]
    coco: dict[int, int]
    depth: Float[np.ndarray, "height width"]


class Walk:
    """The walk of one seed: a street, what stands and moves in it, and the walker's camera.

    Args:
        seed: any walk of the same seed and length is the same walk.
        seconds: its length; frames may be asked for from 0 to `seconds * fps`.
    """

    def __init__(self, seed: int | tuple[int, ...], *, seconds: float, fps: float, width: int, height: int) -> None:
        self.seed = seed if isinstance(seed, tuple) else (seed,)
        self.fps, self.width, self.height = fps, width, height
        rng = default_rng(self.seed)
        self.light = Light.random(rng)
        self.street = Street.random(rng, WALKING_SPEED * seconds + BEHIND + AHEAD)
        self.side = float(rng.choice([-1, 1]))
        self.focal, self.eye, self.pitch = rng.uniform(0.8, 0.95) * width, rng.uniform(1.5, 1.75), rng.uniform(-0.03, 0.05)
        self.sway = rng.uniform(0, 2 * np.pi, 5)
        self.items = populate(rng, self.street, seconds, self.side)
        self._s, self._d, self._speed, self._size = (np.array(column) for column in list(zip(*self.items, strict=True))[1:5])
        self._kind = np.array([KINDS[item.kind].axes for item in self.items])
        self._reach = np.array([AHEAD if item.kind in ("building", "hedge", "tree") else 0.75 * AHEAD for item in self.items])
        self._strolls = np.array([item.kind == "stroller" for item in self.items])
        self._ground_texture, self._sky_texture = ground_texture(rng, self.light), sky_texture(rng, self.light)
        # bound to the parts, not to the walk: a cycle would keep a walk's textures in memory
        self._model = lru_cache(maxsize=512)(partial(_build_model, self.seed, self.items, self.street))

    def frame(self, number: int) -> Frame:
        """Image `number`, at `number / fps` seconds. It does not depend on which images were asked for before."""
        time = number / self.fps
        camera = self._camera(time)
        raster = Raster(camera)
        codes = _Codes()
        scene = self._visible(time, camera, codes)
        planes = np.concatenate(scene.planes)
        shades = self.light.shades(planes, [quad.lit for quad in scene.quads])
        raster.draw(planes, [quad.texture for quad in scene.quads], shades, scene.first)
        self._draw_ground(raster)
        raster.darken(scene.shadows, self.light.shadow)
        return self._develop(raster, codes)

    def camera_and_axes(self, number: int, item: int) -> tuple[Camera, Float[np.ndarray, "3 4"]]:
        """The camera of image `number`, and there an item's axes and place in the world: columns right, up, forward, place."""
        time, index = number / self.fps, np.array([item - 1])
        camera = self._camera(time)
        axes, _ = self._axes(index, self._s[index] + self._speed[index] * time, time, camera)
        return camera, axes[0]

    def position(self, time: float) -> float:
        """How far the walker has come, in meters of street; the pace is not quite even."""
        return WALKING_SPEED * time + 0.5 * float(np.sin(0.35 * time + self.sway[0]))

    def _camera(self, time: float) -> Camera:
        """Walking: two steps a second lift and tilt the camera; the walker looks around and towards where the street leads."""
        s, (a, b, c, e, g) = self.position(time), self.sway
        d = self.side * (self.street.walkway + 0.3 * np.sin(0.21 * time + a))
        x, z = self.street.world(s, d + 0.02 * np.sin(2 * np.pi * 0.95 * time + b))
        y = self.eye + 0.025 * np.sin(2 * np.pi * 1.9 * time + b)
        yaw = self.street.heading(s + 5.0) - 0.10 * self.side + 0.13 * np.sin(0.37 * time + c) + 0.05 * np.sin(0.9 * time + e)
        pitch = self.pitch + 0.02 * np.sin(0.6 * time + g) + 0.004 * np.sin(2 * np.pi * 1.9 * time)
        roll = 0.008 * np.sin(2 * np.pi * 0.95 * time + b)
        return Camera(np.array([x, y, z]), rotation(yaw, pitch, roll), self.focal, self.width, self.height, s)

    def _visible(self, time: float, camera: Camera, codes: "_Codes") -> "_Scene":
        s = self._s + self._speed * time
        near = np.flatnonzero((s + self._size / 2 > camera.s - BEHIND) & (s - self._size / 2 < camera.s + self._reach))
        scene = _Scene([], [], [], [])
        for index, axes, angle in zip(near.tolist(), *self._axes(near, s[near], time, camera), strict=True):
            item, ahead = self.items[index], float(s[index] - camera.s)
            model, local = self._model(index, appearance(item, time, float(angle), far=ahead > 0.3 * AHEAD))
            scene.add(model, axes[:, :3] @ local + axes[:, 3:] * (0, 0, 1), codes.add(item))
            if (size := KINDS[item.kind].shadow) and ahead < 0.35 * AHEAD:
                scene.shadows.append(_shadow(axes, *size, self.light.sun))
        return scene

    def _axes(
        self, near: Int[np.ndarray, " items"], s: Float[np.ndarray, " items"], time: float, camera: Camera
    ) -> tuple[Float[np.ndarray, "items 3 4"], Float[np.ndarray, " items"]]:
        """Columns right, up, forward and place of the items' own coordinates; and the angles from the line of sight to their headings."""
        kind, stroll = self._kind[near], self._strolls[near]
        d = self._d[near] + np.where(stroll, 1.4 * np.arcsin(np.sin(0.5 * time + near)), 0.0)
        x, z = self.street.world(s, d)
        back = np.where(kind == "lane", d < 0, self._speed[near] < 0)
        heading = self.street.heading(s) + np.pi * back
        view = np.arctan2(x - camera.place[0], z - camera.place[2])
        angle = np.where(kind == "camera", view, heading)
        sin, cos, zero, one = np.sin(angle), np.cos(angle), np.zeros(len(near)), np.ones(len(near))
        axes = np.stack([cos, zero, sin, x, zero, one, zero, zero, -sin, zero, cos, z], axis=1).reshape(-1, 3, 4)
        axes[kind == "world"] = np.eye(3, 4)
        return axes, heading + np.where(stroll, np.pi / 2 * np.sign(np.cos(0.5 * time + near)), 0.0) - view

    def _draw_ground(self, raster: Raster) -> None:
        """Fill what is nearer than the horizon and hidden by nothing with the street's surfaces."""
        x, z, depth, hit = raster.ground()
        s, d = self.street.locate(x, z, raster.camera.s)
        material = self.street.material(s, d)
        # a pixel covers depth / focal across and depth^2 / (focal * eye) along the view: take the level between the two
        footprint = TEXELS_PER_METER / raster.camera.focal * (depth**1.5 / raster.camera.place[1] ** 0.5)
        raster.paint(hit, self._ground_texture.sample(material, s, d, footprint), 1 + material, 1 / depth)

    def _develop(self, raster: Raster, codes: "_Codes") -> Frame:
        """Sky, haze, exposure; back to the final size."""
        size = (self.width, self.height)
        colors = cv2.resize(raster.color, size, interpolation=cv2.INTER_AREA).astype(np.float32)
        solid = cv2.resize((raster.code > 0).astype(np.float32), size, interpolation=cv2.INTER_AREA)[..., None]
        nearness = cv2.resize(raster.inverse_depth, size, interpolation=cv2.INTER_AREA)[..., None]
        clear = np.exp(-1 / (nearness * self.light.haze_meters))
        mixed = colors * clear + self.light.haze * (solid * (1 - clear)) + raster.sky(self._sky_texture) * (1 - solid)
        rgb = np.clip(mixed * self.light.gain + 0.5, 0, 255).astype(np.uint8)
        one = slice(1, None, SUPERSAMPLE), slice(1, None, SUPERSAMPLE)
        depth = np.where(raster.code[one] > 0, 1 / raster.inverse_depth[one], np.float32(0))
        return Frame(rgb, *codes.decode(raster.code[one]), depth)


class _Scene(NamedTuple):
    """World planes of all quads near the walker, item by item, the quads, the code before their first part, and the shadows."""

    planes: list[Float[np.ndarray, "quads 3 3"]]
    quads: list[Quad]
    first: list[int]
    shadows: list[Float[np.ndarray, "3 3"]]

    def add(self, model: list[Quad], planes: Float[np.ndarray, "quads 3 3"], before: int) -> None:
        self.planes.append(planes)
        self.quads.extend(model)
        self.first.extend([before] * len(model))


def _shadow(axes: Float[np.ndarray, "3 4"], width: float, length: float, sun: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """A patch of ground under an item, a little away from the sun."""
    right, ahead, place = axes[:, 0] * width, axes[:, 2] * length, axes[:, 3] - 0.25 * sun * width
    corner = place - right / 2 + ahead / 2
    corner[1] = 0.02
    return np.stack([right, -ahead, corner], axis=1)


def _build_model(
    seed: tuple[int, ...], items: list[Item], street: Street, index: int, variant: int
) -> tuple[list[Quad], Float[np.ndarray, "quads 3 3"]]:
    """An item's quads and their planes. Its looks depend on the walk's seed and its own number alone."""
    item = items[index]
    quads = MODELS[item.kind](default_rng((*seed, item.number)), item, variant, street)
    return quads, np.stack([quad.plane for quad in quads])


class _Codes:
    """What the numbers in a raster's code buffer mean: sky, the ground's materials, then the parts of the items."""

    def __init__(self) -> None:
        self.labels = [ADE[name] for name in ("sky", *MATERIALS.values())]
        self.identities = [0] * len(self.labels)
        self.categories: dict[int, int] = {}

    def add(self, item: Item) -> int:
        """Register an item; part p of its textures has the returned code + p."""
        kind, before = KINDS[item.kind], len(self.labels) - 1
        self.labels += [ADE[name] for name in kind.labels]
        identities = [2 * item.number + part for part in range(len(kind.coco))]
        self.identities += identities or [0] * len(kind.labels)
        self.categories |= dict(zip(identities, kind.coco, strict=True))
        return before

    def decode(self, code: Int[np.ndarray, "height width"]) -> tuple[Labels, Int[np.ndarray, "height width"], dict[int, int]]:
        """ADE20K ids, identities, and the COCO category of every identity in the image."""
        instances = np.array(self.identities, np.int32)[code]
        present = np.flatnonzero(np.bincount(instances.ravel()))
        return np.array(self.labels, np.uint8)[code], instances, {i: self.categories[i] for i in present.tolist() if i}


MODELS: dict[str, Callable[[Generator, Item, int, Street], list[Quad]]] = {
    "building": things.building,
    "hedge": things.hedge,
    "tree": things.tree,
    "person": people.person,
    "stroller": people.person,
    "cyclist": people.cyclist,
    "bicycle": people.bicycle,
    "car": vehicles.car,
    "bus": vehicles.bus,
    "truck": vehicles.truck,
    "traffic light": things.traffic_light,
    "stop sign": things.stop_sign,
    "sign": things.sign,
    "streetlight": things.streetlight,
    "ashcan": things.ashcan,
    "bench": things.bench,
    "potted plant": things.potted_plant,
}
