"""Where the points of a rigid thing are seen in another image of its walk: through the cameras, and only if nothing hides them.

source, target = (sight_of(walk, number, walk.frame(number), identity) for number in (0, 9))
places, found, seen = follow(source, target)
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float

from densewalk.synthetic.city.items import KINDS
from densewalk.synthetic.city.raster import Camera
from densewalk.synthetic.city.walk import Frame, Walk

RAY = 0.75  # where in a pixel its labels and its depth are taken
SAME = 1e-3  # relative difference of two depths of one point: float32 and a little roughness at edges
Places = Float[np.ndarray, "points 2"]


def rigid_things(walk: Walk, frame: Frame) -> list[int]:
    """Identities of the things in an image that have a COCO category and do not turn with the camera or change their shape."""
    return [i for i, category in sorted(frame.coco.items()) if category and KINDS[walk.items[i // 2 - 1].kind].axes != "camera"]


@dataclass(frozen=True)
class Sight:
    """A thing in an image. axes: right, up, forward and place of its own coordinates in the world."""

    camera: Camera
    axes: Float[np.ndarray, "3 4"]
    mask: Bool[np.ndarray, "height width"]
    depth: Float[np.ndarray, "height width"]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """x0, y0, x1, y1 of what is seen of it; all 0 if nothing is."""
        x, y, width, height = cv2.boundingRect(self.mask.view(np.uint8))
        return x, y, x + width, y + height

    def inner_rays(self) -> tuple[Places, Float[np.ndarray, " points"]]:
        """Places x, y of the rays that meet it, as their eight neighbors do, and their depths."""
        inner = cv2.erode(self.mask.view(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
        rows, columns = np.nonzero(inner)
        return np.stack([columns, rows], axis=1) + RAY, self.depth[rows, columns]

    def lift(self, places: Places, depth: Float[np.ndarray, " points"]) -> Float[np.ndarray, "points 3"]:
        """The thing's own coordinates of points: place P with depth z is z K^-1 (P, 1) in camera axes."""
        center = np.array([self.camera.width, self.camera.height]) / 2
        local = depth[:, None] * np.concatenate([(places - center) / self.camera.focal_pixels, np.ones((len(places), 1))], axis=1)
        return (local @ self.camera.turn + self.camera.place - self.axes[:, 3]) @ self.axes[:, :3]

    def project(self, own: Float[np.ndarray, "points 3"]) -> tuple[Places, Float[np.ndarray, " points"]]:
        """Places and depths of points in its own coordinates; NaN behind the camera."""
        local = (own @ self.axes[:, :3].T + self.axes[:, 3] - self.camera.place) @ self.camera.turn.T
        depth = np.where(local[:, 2] > 0, local[:, 2], np.nan)
        center = np.array([self.camera.width, self.camera.height]) / 2
        return self.camera.focal_pixels * local[:, :2] / depth[:, None] + center, depth

    def shows(self, places: Places, depth: Float[np.ndarray, " points"]) -> Bool[np.ndarray, " points"]:
        """True where the surface of the thing has this depth.

        Along a plane the inverse depth is linear in the image, so that it is interpolated between the four rays around a place without
        error; all four must meet the thing. Another depth means that the thing itself hides the point.
        """
        height, width = self.mask.shape
        x, y = np.nan_to_num(places - RAY, nan=-1.0).T
        inside = (x >= 0) & (y >= 0) & (x < width - 1) & (y < height - 1)
        columns, rows = (np.where(inside, np.floor(values), 0).astype(int) for values in (x, y))
        a, b = y - rows, x - columns
        met, inverse = inside.copy(), np.zeros(len(places))
        for down, weight_y in ((0, 1 - a), (1, a)):
            for right, weight_x in ((0, 1 - b), (1, b)):
                ray = rows + down, columns + right
                met &= self.mask[ray]
                inverse += weight_y * weight_x / np.where(self.mask[ray], self.depth[ray], 1.0)
        return met & (np.abs(inverse * np.nan_to_num(depth) - 1) < SAME)


def sight_of(walk: Walk, number: int, frame: Frame, identity: int) -> Sight:
    """The thing with this identity in image `number`."""
    camera, axes = walk.camera_and_axes(number, identity // 2)
    return Sight(camera, axes, frame.instances == identity, frame.depth.astype(np.float64))


def follow(source: Sight, target: Sight) -> tuple[Places, Places, Bool[np.ndarray, " points"]]:
    """All inner points of a thing, where they are in the other image, and whether they are seen there."""
    places, depth = source.inner_rays()
    found, expected = target.project(source.lift(places, depth))
    return places, found, target.shows(found, expected)


def viewpoint(source: Sight, target: Sight) -> float:
    """Degrees between the directions from which the thing is seen."""
    directions = [(sight.camera.place - sight.axes[:, 3]) @ sight.axes[:, :3] for sight in (source, target)]
    a, b = (direction / np.linalg.norm(direction) for direction in directions)
    return float(np.degrees(np.arccos(np.clip(a @ b, -1, 1))))
