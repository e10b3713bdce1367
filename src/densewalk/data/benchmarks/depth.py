"""Images with depth maps, in the layouts of NYUv2, KITTI and SUN RGB-D. Free of torch.

    examples, skipped = list_depth("data/nyu", "nyu", "nyu_test.txt")
    meters = read_depth(examples[0])                # float32 [height, width], 0: no value

Listing opens the header of every file: a missing depth file, one that is not of 16 bits, and one of another size than its image are
errors that name it, before anything is computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import Float

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.paths import descend, existing_file, existing_folder, read_text, require_inside
from densewalk.data.image_files import mask_turn, read_header, read_mask, require_depth_bits
from densewalk.data.storage.places import is_file, resolve

DOWNLOAD = "complete the data, or write None for the depth of this image, which then is skipped"


@dataclass(frozen=True)
class DepthLayout:
    """folder: below `root`, where `root` is not the folder itself. units: stored value of a meter. parts: how many parts of an image's
    path name its scene, None: all but the file's name."""

    folder: str
    units: int
    images: str = ""
    depths: str = ""
    parts: int | None = None


LAYOUTS = {
    "nyu": DepthLayout("nyu", 1000),
    "kitti": DepthLayout("kitti", 256, "input", "gt_depth", 2),
    "sunrgbd": DepthLayout("SUNRGBD", 8000),
}


@dataclass(frozen=True)
class DepthImage:
    """One image with its depth map; name: the image's path in its list. size: height and width as it is shown."""

    name: str
    image: Path
    depth: Path
    layout: str
    size: tuple[int, int]

    @property
    def scene(self) -> str:
        """What images of one place or drive share."""
        parts = PurePosixPath(self.name).parts
        return "/".join(parts[: LAYOUTS[self.layout].parts or -1])

    def __str__(self) -> str:
        return str(self.image)


def list_depth(root: str | Path, layout: str, name: str) -> tuple[list[DepthImage], int]:
    """The images of a list, sorted by name, and how many lines have no depth (`None`).

    A line is `image depth` or `image depth focal_length`, paths below the layout's folder; a leading / counts for nothing.

    Raises:
        UserError: a line that says something else, a file that is not there, or a depth map that does not fit its image.
    """
    rule = LAYOUTS[layout]
    base = existing_folder(descend(root, rule.folder), f"the folder of layout {layout},")
    path = existing_file(base / name)
    images, depths = (descend(base, folder) if folder else base for folder in (rule.images, rule.depths))
    found: dict[str, DepthImage] = {}
    skipped = 0
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        fields = [field.lstrip("/") for field in line.split()]
        if not fields:
            continue
        where = f"{path}, line {number}"
        if len(fields) not in (2, 3):
            said = f"{where}: {len(fields)} fields" + (", and so no depth" if len(fields) == 1 else "")
            raise UserError(said, allowed="`image depth` or `image depth focal_length`", todo=DOWNLOAD)
        if fields[1] == "None":
            skipped += 1
            continue
        for field in fields[:2]:
            require_inside(field, where)
        if fields[0] in found:
            raise UserError(f"{where}: {fields[0]} is listed twice, and would be counted twice", todo="remove one of the lines")
        found[fields[0]] = _checked(fields[0], images / fields[0], depths / fields[1], layout, where)
    if not found:
        raise UserError(f"{path} lists no image with depth", todo="download it again or name another list")
    return [found[key] for key in sorted(found)], skipped


def _checked(name: str, image: Path, depth: Path, layout: str, where: str) -> DepthImage:
    image, depth = resolve(image), resolve(depth)
    for kind, file in (("image", image), ("depth map", depth)):
        if not is_file(file):
            raise UserError(f"{where}: {kind} {file} does not exist", todo=DOWNLOAD)
    header, picture = read_header(depth), read_header(image)
    require_depth_bits(depth, header, f"{LAYOUTS[layout].units} a meter", "download it again, or save the distances as a PNG of 16 bits")
    if header.size not in (picture.size, picture.shown):
        sizes = [f"{width}x{height}" for width, height in (header.size, picture.shown)]
        swapped = " (width and height are swapped)" if header.size == picture.shown[::-1] else ""
        found = f"depth map {depth} is {sizes[0]}, but {image} is {sizes[1]}{swapped}"
        raise UserError(found, todo="use the depth that is aligned with the image")
    mask_turn(depth, header, image, picture)
    return DepthImage(name, image, depth, layout, picture.shown[::-1])


def require_other_scenes(training: Sequence[DepthImage], scored: Sequence[DepthImage], lists: tuple[str, str]) -> None:
    """Refuse a scene that is both trained on and scored."""
    scenes = {example.scene: example for example in training}
    if both := next((example for example in scored if example.layout == training[0].layout and example.scene in scenes), None):
        raise UserError(
            f"scene {both.scene} is in both lists: {scenes[both.scene].name} in {lists[0]}, {both.name} in {lists[1]}",
            todo="correct the lists: images of one scene show the same things",
        )


def read_depth(example: DepthImage) -> Float[np.ndarray, "height width"]:
    """Depth in meters, 0 where there is none."""
    return read_mask(example.depth, example.image).astype(np.float32) / np.float32(LAYOUTS[example.layout].units)
