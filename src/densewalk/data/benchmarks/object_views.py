"""Images of rigid objects with camera and depth, in NAVI's layout (https://arxiv.org/abs/2306.09109). Free of torch.

    navi_v1/{object}/wild_set/annotations.json      a list: name, size and camera of each image
    navi_v1/{object}/wild_set/images/000.jpg        views = read_views("data/navi_v1")
    navi_v1/{object}/wild_set/depth/000.png         meters = read_view_depth(views[0])

The wild set of an object shows it before many backgrounds. A camera's `q`, a quaternion w, x, y, z, and `t` take the object's points,
in millimeters, to axes right, down, forward; `focal_length` is in pixels, the principal point is the middle of the image. `image_size` is
height and width of the upright image. A depth map says how far the object is along the camera's axis: 655,350 / value millimeters in 16
bits, 0 where the object is not. It is drawn on the upright image: unlike the image, it has no EXIF orientation.
Listing reads all annotations and the headers of all files; what is missing or not what it should be is a UserError that names it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.paths import descend, existing_file, existing_folder, read_text, require_inside, subfolders
from densewalk.data.file_lists import find_files
from densewalk.data.image_files import EXTENSIONS, read_header, read_mask, require_depth_bits
from densewalk.data.storage.places import is_file, is_folder, resolve

WILD = "wild_set"
NEAREST = 655.35  # meters that the value 1 stands for
REDUCED = "downsampled_"  # copies of images that probe3d's preparation writes beside them
AGAIN = "download it again"
Places = Float[np.ndarray, "points 2"]
Points = Float[np.ndarray, "points 3"]


class Camera(BaseModel):
    """The fields of an image's camera that are read."""

    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)

    q: Annotated[list[float], Field(min_length=4, max_length=4)]
    t: Annotated[list[float], Field(min_length=3, max_length=3)]
    focal_length: float = Field(gt=0)


class ViewAnnotation(BaseModel):
    """The fields of an image's annotation that are read."""

    model_config = ConfigDict(extra="ignore", strict=True)

    filename: str = Field(min_length=1)
    image_size: Annotated[list[int], Field(min_length=2, max_length=2)]
    camera: Camera


ANNOTATIONS = TypeAdapter(list[ViewAnnotation])


@dataclass(frozen=True, eq=False)
class ObjectView:
    """One image of an object.

    size: height, width as it is shown. rotation, translation: of a point to camera axes right, down, forward, in meters:
    rotation @ point + translation. focal: in pixels.
    """

    thing: str
    image: Path
    depth: Path
    size: tuple[int, int]
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, "3"]
    focal: float

    @property
    def name(self) -> str:
        """The object, and the image's name without its end."""
        return f"{self.thing}/{self.image.stem}"

    def lift(self, rays: Places, depth: Float[np.ndarray, " points"]) -> Points:
        """Points in the object's axes, in meters. rays: right and down for each step forward. depth: in meters along the camera's axis."""
        seen = depth[:, None] * np.concatenate([rays, np.ones((len(rays), 1))], axis=1)
        return (seen - self.translation) @ self.rotation

    def project(self, points: Points) -> tuple[Places, Float[np.ndarray, " points"]]:
        """Rays and depths of points in the object's axes; the inverse of `lift`."""
        seen = points @ self.rotation.T + self.translation
        return seen[:, :2] / seen[:, 2:], seen[:, 2]


def read_views(root: str | Path) -> list[ObjectView]:
    """The wild sets of all objects, sorted by object and name. `root` is navi_v1 or the folder above it; objects without one are left out.

    Raises:
        UserError: no object, an image without pose or depth, or a file that does not fit the others.
    """
    base = existing_folder(descend(root, "navi_v1"), "the folder of NAVI's objects,")
    names = [name for name in subfolders(base) if is_folder(resolve(base / name / WILD))]
    if not names:
        raise UserError(f"{base} holds no object", allowed=f"folders {{object}}/{WILD}", todo="correct `root`, or download NAVI")
    return [view for name in names for view in _read_wild_set(name, base / name / WILD)]


def _read_wild_set(thing: str, folder: Path) -> list[ObjectView]:
    path = existing_file(folder / "annotations.json")
    entries: dict[str, ObjectView] = {}
    named = set()
    for number, found in enumerate(_read_annotations(path)):
        where, stem = f"{path}, entry {number}", Path(found.filename).stem
        require_inside(found.filename, where)
        if stem in entries:
            raise UserError(f"{where}: {stem} has an entry already, and would be counted twice", todo="remove one of them")
        entries[stem] = _checked(thing, folder, found, where)
        named.add(found.filename)
    images = resolve(folder / "images")
    for name in find_files(images, EXTENSIONS, below=False):
        if name not in named and not name.startswith(REDUCED):
            raise UserError(f"{images / name} has no pose: {path} does not name it", todo="complete the annotations or remove the image")
    return [entries[stem] for stem in sorted(entries)]


def _read_annotations(path: Path) -> list[ViewAnnotation]:
    try:
        found = ANNOTATIONS.validate_python(json.loads(read_text(path)))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(f"{path} is no list of NAVI's annotations: {where}: {first['msg']}", todo=AGAIN) from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}", todo=AGAIN) from error
    if not found:
        raise UserError(f"{path} names no image", todo=AGAIN)
    return found


def _checked(thing: str, folder: Path, found: ViewAnnotation, where: str) -> ObjectView:
    """A view whose files are there and have one size."""
    image, depth = folder / "images" / found.filename, folder / "depth" / f"{Path(found.filename).stem}.png"
    for kind, file in (("image", image), ("depth map", depth)):
        if not is_file(resolve(file)):
            raise UserError(f"{kind} {file} does not exist ({where})", todo="complete the data")
    height, width = found.image_size
    image, depth = resolve(image), resolve(depth)
    header, stored = read_header(image), read_header(depth)
    require_depth_bits(depth, stored, "655,350 / mm", AGAIN)
    for file, size in ((image, header.shown), (depth, stored.size)):
        if size != (width, height):
            swapped = " (height and width are swapped)" if size == (height, width) else ""
            said = f"{where} says image_size {height}, {width}, but {file} is {size[1]} high and {size[0]} wide{swapped}"
            raise UserError(said, allowed="height, width of the upright image", todo="correct the annotation or the file")
    q = np.array(found.camera.q)
    if not 0.99 < np.linalg.norm(q) < 1.01:
        said = f"{where} (image {found.filename}): camera.q {', '.join(f'{x:g}' for x in q)} is no rotation"
        raise UserError(said, allowed="a quaternion w, x, y, z of length 1", todo=AGAIN)
    translation = np.array(found.camera.t) / 1000
    return ObjectView(thing, image, depth, (height, width), rotation_of(q), translation, found.camera.focal_length)


def rotation_of(q: Float[np.ndarray, "4"]) -> Float[np.ndarray, "3 3"]:
    """The rotation of a quaternion w, x, y, z of any length: v -> q v q* / |q|^2."""
    w, v = q[0], q[1:]
    cross = np.array([[0, -v[2], v[1]], [v[2], 0, -v[0]], [-v[1], v[0], 0]])
    return np.eye(3) + 2 * (w * cross + cross @ cross) / (q @ q)


def read_view_depth(view: ObjectView) -> Float[np.ndarray, "height width"]:
    """Depth in meters, 0 where the object is not.

    Raises:
        UserError: the map cannot be read, or is 0 everywhere.
    """
    stored = read_mask(view.depth).astype(np.float64)
    if not stored.any():
        raise UserError(f"depth map {view.depth} shows nothing of the object: it is 0 everywhere", todo=AGAIN)
    return np.divide(NEAREST, stored, out=np.zeros_like(stored), where=stored > 0)
