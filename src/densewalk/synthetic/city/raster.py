"""Drawing textured parallelograms with a pinhole camera into a depth buffer, at twice the image's size.

World axes are x east, y up, z north; camera axes right, down, forward.
"""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

Number = int | float
Rgb = UInt8[np.ndarray, "height width 3"]
Labels = UInt8[np.ndarray, "height width"]
Plane = Float[np.ndarray, "rows columns"]
Mask = UInt8[np.ndarray, "rows columns"]
SUPERSAMPLE = 2
NEAR, FAR = 0.25, 400.0


class Texture(NamedTuple):
    """RGB in halving sizes; at full size the part each texel belongs to; and where one sees through (0) or not (255), if anywhere."""

    levels: tuple[Rgb, ...]
    parts: Labels
    alpha: Labels | None

    def part(self, a: Plane, b: Plane) -> Mask:
        """The parts at texture coordinates in [0, 1), nearest texel; 0 outside and, with a smooth outline, where one sees through."""
        texels = _texels(a, b, self.parts)
        part = cv2.remap(self.parts, *texels, cv2.INTER_NEAREST, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        if self.alpha is None:
            return part
        alpha = cv2.remap(self.alpha, *texels, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return part * (alpha > 127)

    def mirrored(self) -> "Texture":
        """Left and right exchanged."""
        levels = tuple(np.ascontiguousarray(level[:, ::-1]) for level in self.levels)
        alpha = None if self.alpha is None else np.ascontiguousarray(self.alpha[:, ::-1])
        return Texture(levels, np.ascontiguousarray(self.parts[:, ::-1]), alpha)

    def color(self, a: Plane, b: Plane, share: float) -> UInt8[np.ndarray, "rows columns 3"]:
        """The colors at texture coordinates in [0, 1), bilinear, from the level where a pixel covers about a texel.

        share: the part of the texture that a pixel covers.
        """
        level = int(0.5 * np.log2(max(1.0, share * self.parts.size)) + 0.3)
        image = self.levels[min(level, len(self.levels) - 1)]
        return cv2.remap(image, *_texels(a, b, image), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def _texels(a: Plane, b: Plane, image: np.ndarray) -> tuple[Plane, Plane]:
    height, width = image.shape[:2]
    return a * np.float32(width) - np.float32(0.5), b * np.float32(height) - np.float32(0.5)


class Quad(NamedTuple):
    """A textured parallelogram; columns of `plane`: edge along the texture's rows, edge down its columns, top left corner."""

    plane: Float[np.ndarray, "3 3"]
    texture: Texture
    lit: bool = True


def upright(texture: Texture, width: Number, height: Number, x: Number = 0.0) -> Quad:
    """A sheet that stands on the ground across the view, its foot's middle at `x`."""
    return Quad(np.array([[width, 0, x - width / 2], [0, -height, height], [0.0, 0, 0]]), texture, lit=False)


def wall(ends: Sequence[Sequence[Number]], low: Number, high: Number, texture: Texture) -> Quad:
    """An upright rectangle above the ground line from the first to the second point, as seen from its front."""
    (x0, z0), (x1, z1) = ends
    return Quad(np.array([[x1 - x0, 0, x0], [0, low - high, high], [z1 - z0, 0, z0]]), texture)


class Camera(NamedTuple):
    """A pinhole: `turn` maps world directions to right, down, forward; `s` is its place along the street."""

    place: Float[np.ndarray, "3"]
    turn: Float[np.ndarray, "3 3"]
    focal_pixels: float
    width: int
    height: int
    s: float

    @property
    def focal(self) -> float:
        """Focal length in pixels of the raster."""
        return self.focal_pixels * SUPERSAMPLE

    @property
    def matrix(self) -> Float[np.ndarray, "3 3"]:
        """Camera coordinates to homogeneous pixels of the raster; pixel centers are whole numbers."""
        x, y = SUPERSAMPLE * self.width / 2 - 0.5, SUPERSAMPLE * self.height / 2 - 0.5
        return np.array([[self.focal, 0, x], [0, self.focal, y], [0, 0, 1]])


def rotation(yaw: float, pitch: float, roll: float) -> Float[np.ndarray, "3 3"]:
    """World to camera axes: heading `yaw` clockwise from north, `pitch` upwards, `roll` clockwise, all in radians."""
    (cy, cp, cr), (sy, sp, sr) = np.cos([yaw, pitch, roll]), np.sin([yaw, pitch, roll])
    level = np.array([[cy, 0, -sy], [0, -1, 0], [sy, 0, cy]])
    nod = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    tilt = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
    return tilt @ nod @ level


class Raster:
    """Color, inverse depth and code of every pixel, at `SUPERSAMPLE` times the image's size; code 0 is nothing."""

    def __init__(self, camera: Camera) -> None:
        self.camera = camera
        self.shape = (camera.height * SUPERSAMPLE, camera.width * SUPERSAMPLE)
        self.color = np.zeros((*self.shape, 3), np.uint8)
        self.inverse_depth = np.full(self.shape, 1 / FAR, np.float32)
        self.code = np.zeros(self.shape, np.int32)

    def draw(
        self, planes: Float[np.ndarray, "quads 3 3"], textures: list[Texture], shades: Float[np.ndarray, " quads"], first: list[int]
    ) -> None:
        """Draw quads that face the camera, `shades` times as bright as their textures; part p of quad i is written as code first[i] + p."""
        indices, inverses, boxes = self._project(planes)
        # a pixel at some depth covers det((K M)^-1) * depth^3 of a quad
        shares = np.linalg.det(inverses).tolist()
        for index, inverse, share, box in zip(indices, inverses, shares, boxes, strict=True):
            self._draw_quad(inverse, share, box, textures[index], float(shades[index]), first[index])

    def _project(
        self, planes: Float[np.ndarray, "quads 3 3"]
    ) -> tuple[Int[np.ndarray, " seen"], Float[np.ndarray, "seen 3 3"], Int[np.ndarray, "seen 4"]]:
        """Front-facing quads in the image, nearest first: index, pixels -> (a, b, 1) / depth, and pixel box x0, y0, x1, y1.

        A point of the quad is u a + v b + o. With the matrix K and M = [u v o] in camera axes, depth * pixel = K M (a, b, 1), so
        (K M)^-1 pixel = (a, b, 1) / depth: three affine functions of the pixel give texture coordinates and inverse depth.
        """
        local = planes.copy()
        local[:, :, 2] -= self.camera.place
        local = self.camera.turn @ local
        corners = local @ np.array([[0.0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 1, 1]])
        boxes = self._boxes(corners)
        seen = (np.linalg.det(local) > 1e-6) & ((boxes[:, 2:] - boxes[:, :2]).min(axis=1) > 0)
        indices = np.flatnonzero(seen)
        indices = indices[np.argsort(corners[indices, 2].mean(axis=1), kind="stable")]
        return indices, np.linalg.inv(self.camera.matrix @ local[indices]), boxes[indices]

    def _boxes(self, corners: Float[np.ndarray, "quads 3 4"]) -> Int[np.ndarray, "quads 4"]:
        """Pixel boxes of quads in camera axes, clipped to the image and to what lies beyond the near plane."""
        following = np.roll(corners, -1, axis=2)
        step = following - corners
        with np.errstate(divide="ignore", invalid="ignore"):
            crossing = corners + step * ((NEAR - corners[:, 2:]) / step[:, 2:])
        beyond = corners[:, 2] >= NEAR
        valid = np.concatenate([beyond, beyond != (following[:, 2] >= NEAR)], axis=1)[:, None]
        points = self.camera.matrix @ np.concatenate([corners, np.where(valid[:, :, 4:], crossing, 1.0)], axis=2)
        pixels = points[:, :2] / np.where(valid, points[:, 2:], 1.0)
        limit = np.array(self.shape[::-1])
        low = np.clip(np.floor(np.where(valid, pixels, np.inf).min(axis=2)), 0, limit)
        high = np.clip(np.ceil(np.where(valid, pixels, -np.inf).max(axis=2)) + 1, 0, limit)
        return np.concatenate([low, high], axis=1).astype(np.int64)

    def _draw_quad(
        self,
        inverse: Float[np.ndarray, "3 3"],
        share: float,
        box: Int[np.ndarray, "4"],
        texture: Texture,
        shade: float,
        first: int,
    ) -> None:
        window, a, b, nearness, hit = self._hit(inverse, box)
        if not hit.size:
            return
        part = texture.part(a, b) & hit
        mask = (part > 0).view(np.uint8)
        if not mask.any():
            return
        color = texture.color(a, b, share / cv2.mean(nearness, mask)[0] ** 3)
        cv2.copyTo(cv2.convertScaleAbs(color, alpha=shade), mask, self.color[window])
        cv2.copyTo(np.add(part, np.int32(first), dtype=np.int32), mask, self.code[window])
        cv2.copyTo(nearness, mask, self.inverse_depth[window])

    def _hit(self, inverse: Float[np.ndarray, "3 3"], box: Int[np.ndarray, "4"]) -> tuple[tuple[slice, slice], Plane, Plane, Plane, Mask]:
        """Where the plane of a quad is nearer than what is there: the smallest window with all such pixels in the box, the texture
        coordinates and the inverse depth in this window, and 255 at the pixels.
        """
        x0, y0, x1, y1 = box
        window = slice(y0, y1), slice(x0, x1)
        (ax, ay, a1), (bx, by, b1), (qx, qy, q1) = inverse.astype(np.float32)
        x, y = np.arange(x0, x1, dtype=np.float32), np.arange(y0, y1, dtype=np.float32)[:, None]
        nearness = qx * x + (qy * y + q1)
        hit = cv2.compare(nearness, self.inverse_depth[window], cv2.CMP_GT)
        left, top, width, height = cv2.boundingRect(hit)
        part = slice(top, top + height), slice(left, left + width)
        nearness, x, y = nearness[part], x[part[1]], y[part[0]]
        depth = 1 / np.maximum(nearness, np.float32(1 / FAR))
        a, b = (ax * x + (ay * y + a1)) * depth, (bx * x + (by * y + b1)) * depth
        return (slice(y0 + top, y0 + top + height), slice(x0 + left, x0 + left + width)), a, b, nearness, hit[part]

    def ground(
        self,
    ) -> tuple[Float[np.ndarray, " pixels"], Float[np.ndarray, " pixels"], Float[np.ndarray, " pixels"], Bool[np.ndarray, "height width"]]:
        """World x and z and the depth of every pixel that shows the plane y = 0, and which pixels these are."""
        floor = np.array([[1.0, 0, 0], [0, 0, 0], [0, 1, 0]])
        floor[:, 2] -= self.camera.place
        inverse = np.linalg.inv(self.camera.matrix @ self.camera.turn @ floor)
        x, y = np.arange(self.shape[1]), np.arange(self.shape[0])[:, None]
        nearness = inverse[2, 0] * x + (inverse[2, 1] * y + inverse[2, 2])
        hit = nearness > self.inverse_depth
        rows, columns = np.nonzero(hit)
        depth = (1 / nearness[hit]).astype(np.float32)
        x, z = ((inverse[i, 0] * columns + inverse[i, 1] * rows + inverse[i, 2]) * depth for i in (0, 1))
        return x, z, depth, hit

    def paint(
        self,
        hit: Bool[np.ndarray, "height width"],
        color: UInt8[np.ndarray, "pixels 3"],
        code: Int[np.ndarray, " pixels"],
        nearness: Float[np.ndarray, " pixels"],
    ) -> None:
        """Set the pixels of a mask."""
        self.color[hit] = color
        self.code[hit] = code
        self.inverse_depth[hit] = nearness

    def darken(self, shadows: list[Float[np.ndarray, "3 3"]], strength: float) -> None:
        """Soft round shadows, inscribed in parallelograms just above the ground; they fall on the ground alone."""
        if not shadows:
            return
        for inverse, box in zip(*self._project(np.stack(shadows))[1:], strict=True):
            window, a, b, _, hit = self._hit(inverse, box)
            if not hit.size:
                continue
            depth = np.clip(1.6 * (1 - (2 * a - 1) ** 2 - (2 * b - 1) ** 2), 0, 1) * strength
            darker = cv2.multiply(self.color[window], cv2.merge([1 - depth] * 3), dtype=cv2.CV_8U)
            cv2.copyTo(darker, hit, self.color[window])

    def sky(self, panorama: Rgb) -> UInt8[np.ndarray, "rows columns 3"]:
        """The panorama (all round, from the horizon up to 45 degrees) in the camera's view, at the image's size."""
        camera = self.camera
        x = np.arange(camera.width, dtype=np.float32) + np.float32(0.5 - camera.width / 2)
        y = (np.arange(camera.height, dtype=np.float32) + np.float32(0.5 - camera.height / 2))[:, None]
        right, down, ahead = camera.turn.astype(np.float32)
        east, up, north = (right[i] * x + (down[i] * y + ahead[i] * np.float32(camera.focal_pixels)) for i in range(3))
        height, width = panorama.shape[:2]
        column = np.arctan2(east, north) * np.float32(width / (2 * np.pi))
        row = height - 1 - np.arctan2(up, np.hypot(east, north)) * np.float32(height / (np.pi / 4))
        return cv2.remap(panorama, column % width, row, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
