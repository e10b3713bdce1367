"""What the network sees of a view, and which points of the object lie at the places that are compared.

A square around the object is cut from the middle square of the image. Its places are the middles of `cell` x `cell` pixels; those with
a depth have a point in the object's own axes, in which the views of one object need no further pose.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.object_views import ObjectView, Places, read_view_depth
from densewalk.data.image_files import read_image
from densewalk.evaluations.geometric_correspondence.settings import GeometricCorrespondenceSettings

REDUCED_SIDE = 1024  # shorter side of the images that probe3d prepares
Depth = Float[np.ndarray, "height width"]
Index = Int[np.ndarray, " pixels"]


@dataclass(frozen=True)
class Square:
    """The part of an image that the network sees. corner (x, y), side, center (principal point) and focal: in pixels of one image size.

    rows, columns: of the pixels that are taken, one by one, from the image of `reduced` (height, width); None: resized as a whole.
    """

    corner: tuple[int, int]
    side: int
    center: Float[np.ndarray, "2"]
    focal: float
    rows: Index | None = None
    columns: Index | None = None
    reduced: tuple[int, int] = (0, 0)

    def rays_of(self, places: Places) -> Places:
        """Rays through places x, y of the image."""
        return (places - self.center) / self.focal

    def shares_of(self, rays: Places) -> Places:
        """Where rays meet the square: x and y from 0 to 1."""
        return (rays * self.focal + self.center - self.corner) / self.side


@dataclass(frozen=True)
class SeenObject:
    """The places of a view that show the object.

    index: row * grid + column of each place, ascending. points: in the object's axes, in meters.
    """

    square: Square
    grid: int
    index: Int[np.ndarray, " places"]
    points: Float[np.ndarray, "places 3"]

    @property
    def shares(self) -> Places:
        """x and y of the places in the square, from 0 to 1."""
        rows, columns = np.divmod(self.index, self.grid)
        return (np.stack([columns, rows], axis=1) + 0.5) / self.grid


def see_object(view: ObjectView, side: int, settings: GeometricCorrespondenceSettings) -> SeenObject:
    """Find the square around the object and the points at its places.

    Args:
        side: of the square as the network sees it, in pixels.

    Raises:
        UserError: the middle square of the image shows nothing of the object, or fewer than two places do.
    """
    depth = read_view_depth(view)
    grid = side // settings.cell
    taken = (np.arange(grid) + 0.5) / grid if settings.point == "center" else (np.arange(grid) * side // grid + 0.5) / side
    cut = _cut if settings.resize == "bicubic" else _cut_by_pixels
    square, rows, columns, places_y, places_x = cut(view, depth, side, taken)
    z = depth[rows[:, None], columns]
    index = np.flatnonzero(z)
    if len(index) < 2:
        said = f"depth map {view.depth} shows the object at {len(index)} of {grid} x {grid} places"
        raise UserError(said, allowed="at least 2", todo="remove the view, or choose a smaller `cell`")
    row, column = np.divmod(index, grid)
    rays = square.rays_of(np.stack([places_x[column], places_y[row]], axis=1))
    return SeenObject(square, grid, index, view.lift(rays, z[row, column]).astype(np.float32))


Cut = tuple[Square, Index, Index, Float[np.ndarray, " pixels"], Float[np.ndarray, " pixels"]]


def _cut(view: ObjectView, depth: Depth, side: int, taken: Float[np.ndarray, " pixels"]) -> Cut:
    """The square in the image's own pixels; rows and columns of the pixels that the places lie in, and their middles."""
    (height, width), short = view.size, min(view.size)
    top, left = (height - short) // 2, (width - short) // 2
    (y0, y1), (x0, x1) = _extent(depth[top : top + short, left : left + short] > 0, view)
    length = max(y1 - y0, x1 - x0)
    y, x = (int(np.clip(low - (length - (high - low)) // 2, 0, short - length)) for low, high in ((y0, y1), (x0, x1)))
    corner = left + x, top + y
    square = Square(corner, length, np.array([width, height]) / 2, view.focal)
    rows, columns = (np.minimum(start + (taken * length).astype(np.int64), start + length - 1) for start in corner[::-1])
    return square, rows, columns, rows + 0.5, columns + 0.5


def _cut_by_pixels(view: ObjectView, depth: Depth, side: int, taken: Float[np.ndarray, " pixels"]) -> Cut:
    """The square in pixels of the middle `side` x `side` of the reduced image, as probe3d's code finds it.

    A pixel's ray is that of its place in there, although its depth was taken somewhere in it.
    """
    scale = REDUCED_SIDE / min(view.size)
    reduced = int(view.size[0] * scale), int(view.size[1] * scale)
    middle = [_middle_pixels(length, min(reduced), side) for length in reduced]
    stored = [
        np.floor((pixels + 0.5) * whole / length).astype(np.int64) for pixels, whole, length in zip(middle, view.size, reduced, strict=True)
    ]
    (y0, y1), (x0, x1) = _extent(depth[stored[0][:, None], stored[1]] > 0, view)
    height, width = y1 - 1 - y0, x1 - 1 - x0  # the last row and column are left out
    length = max(height, width)
    if length < 1:
        raise UserError(f"depth map {view.depth} shows the object in one pixel", todo="remove the view")
    y, x = y0 - (length - height) // 2, x0 - (length - width) // 2
    if min(y, x) < 0 or max(y, x) + length > side:  # it then ends with the object
        y, x = max(0, y0 - (length - height)), max(0, x0 - (length - width))
    pixels = [start + (np.arange(side) * length // side) for start in (y, x)]
    square = Square(
        (x, y), length, np.full(2, side / 2), view.focal * side / min(view.size), middle[0][pixels[0]], middle[1][pixels[1]], reduced
    )
    at = [line[(taken * side).astype(np.int64)] for line in pixels]
    return square, stored[0][at[0]], stored[1][at[1]], at[0] + 0.5, at[1] + 0.5


def _middle_pixels(length: int, short: int, side: int) -> Index:
    """Pixels of a side that are left where the shorter one becomes `side`, by nearest pixels, and the middle `side` of them is cut out."""
    smaller = int(side * length / short)
    return (np.arange(side) + round((smaller - side) / 2)) * length // smaller


def _extent(shown: Bool[np.ndarray, "short short"], view: ObjectView) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and behind last row, and column, of what is shown."""
    if not shown.any():
        raise UserError(f"depth map {view.depth} shows nothing of the object in the middle square of the image", todo="remove the view")
    lines = [np.flatnonzero(shown.any(axis=axis)) for axis in (1, 0)]
    (y0, y1), (x0, x1) = ((int(line[0]), int(line[-1]) + 1) for line in lines)
    return (y0, y1), (x0, x1)


def cut_image(view: ObjectView, square: Square, side: int) -> UInt8[np.ndarray, "side side 3"]:
    """The square of the image, as the network sees it."""
    image = read_image(view.image)
    if square.rows is None or square.columns is None:
        (x, y), length = square.corner, square.side
        return np.array(image.resize((side, side), Image.Resampling.BICUBIC, box=(x, y, x + length, y + length)))
    reduced = np.asarray(image.resize(square.reduced[::-1], Image.Resampling.BILINEAR))
    return reduced[square.rows[:, None], square.columns]
