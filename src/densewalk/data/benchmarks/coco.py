"""COCO's annotation files, checked entry by entry before anything uses them. Free of torch.

    found = read_instances("annotations/instances_val2017.json", "val2017")      # all that mmdetection and the metric touch

The first thing that is wrong is a UserError with the file, the entry and the key.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from densewalk.core.errors import UserError
from densewalk.core.files import parse_json
from densewalk.data.benchmarks.paths import require_inside
from densewalk.data.benchmarks.run_lengths import Bounds, runs_bounds, runs_of
from densewalk.data.file_lists import find_files
from densewalk.data.image_files import EXTENSIONS, leaves_image, read_header, require_upright_labels
from densewalk.data.storage.places import is_file

LARGEST = 2**53  # id that the metric, which keeps them as float64, can tell from others
CLOSE = 1.5  # pixels by which a box may differ from the bounds of its mask
ORDER = "x, y, width, height in pixels from the upper left corner"
LARGEST_SIZE = 1e12  # of a number: more than any pixel or area
TWICE = 0.01  # part of the objects that may be there twice: COCO has a few
LOOSE = 0.05  # part of the boxes that may have an IoU below 0.5 with the bounds of their masks
LEFT_OUT = 0.01  # part of the objects that may be too small to train on: COCO has a few


@dataclass(frozen=True)
class CocoImage:
    """An image; size: width and height, None where the file does not say."""

    id: int
    name: str
    size: tuple[int, int] | None


@dataclass(frozen=True)
class CocoObject:
    """An object; box: x, y, width, height in pixels. fits: it has an IoU of 0.5 or more with its mask's bounds, if there is a mask."""

    image: int
    category: int | None
    box: Bounds
    crowd: bool
    fits: bool = True


@dataclass(frozen=True)
class Instances:
    """A checked file of instances: images and categories by id in the file's order, and all objects."""

    path: Path
    images: dict[int, CocoImage]
    objects: list[CocoObject]
    categories: dict[int, str]


def read_instances(path: str | Path, pictures: str | Path | None = None, *, masks: bool = True) -> Instances:
    """Read and check a file of instances.

    Args:
        pictures: folder in which each image has to be, with the size that the file says; not looked at if None.
        masks: as detectors and AP need it: with categories, areas, segmentations, sizes of images and ids of annotations. Otherwise
            boxes alone are needed; what else is there is checked, too.

    Raises:
        UserError: the first entry that is wrong.
    """
    path = Path(path)
    content = read_content(path, ("images", "annotations", *(["categories"] if masks else [])))
    images = read_images(path, content["images"], sized=masks)
    if pictures is not None:
        check_pictures(images.values(), pictures, path)
    categories = _categories(path, content.get("categories", []))
    objects = [_object(entry, images, categories, masks=masks) for entry in entries(path, "annotations", content["annotations"])]
    _require_unique(entries(path, "annotations", content["annotations"]), needed=masks)
    _require_pixels(path, objects)
    _require_once(path, content["annotations"], objects)
    if masks:
        _require_trainable(path, content["annotations"])
        _require_fitting(path, content["annotations"], objects)
    return Instances(path, images, objects, categories)


def check_pictures(found: Iterable[CocoImage], folder: str | Path, where: str | Path) -> None:
    """Check that images are in the folder, and of the width and height that the file `where` says.

    Raises:
        UserError: images are missing, or the first one of another size or with an EXIF orientation that leaves it open.
    """
    folder, found = Path(folder), list(found)
    there = set(find_files(folder, EXTENSIONS))
    missing = [image.name for image in found if image.name not in there and not is_file(folder / image.name)]
    if missing:
        found_missing = f"{where} lists {len(missing)} images that are not in {folder}: {folder / missing[0]} does not exist"
        raise UserError(found_missing, todo="download them")
    for image in found:
        file = folder / image.name
        require_upright_labels(file, read_header(file), image.size, f"{where}, image {image.id}")


# -- entries -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Entry:
    """One dictionary of a list in an annotation file, with what a message needs."""

    path: Path
    part: str
    number: int
    values: dict[str, Any]

    def fail(self, key: str, found: str, allowed: str = "", todo: str = "correct the file") -> NoReturn:
        """Raise the error of one key."""
        name = f" (id {self.values['id']!r})" if "id" in self.values else ""
        raise UserError(f"{self.path}: {self.part}[{self.number}]{name}: {key} {found}", allowed=allowed, todo=todo)

    def get(self, key: str, allowed: str) -> Any:
        """Return a value that has to be there."""
        if key not in self.values:
            self.fail(key, "is missing", allowed)
        return self.values[key]

    def whole(self, key: str, least: int, most: int = LARGEST) -> int:
        """Return a whole number."""
        value = self.get(key, "a whole number")
        if type(value) is not int or not least <= value <= most:
            self.fail(key, f"is {brief(value)}", f"a whole number from {least}" if type(value) is int else "a whole number, not text")
        return value

    def text(self, key: str) -> str:
        """Return a text that can be printed."""
        value = self.get(key, "a text")
        if not isinstance(value, str) or not value or not value.isprintable():
            self.fail(key, f"is {brief(value)}", "a text of printable characters")
        return value


def read_content(path: Path, parts: Sequence[str]) -> dict[str, Any]:
    """Read an annotation file of COCO as JSON with these lists."""
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist", todo="correct `root` or download the data") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", todo="correct its permissions") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no annotation file of COCO: it is not JSON: {error}", todo="download it again") from error
    wanted = f"a dictionary with the lists {', '.join(parts)}"
    if not isinstance(content, dict):
        raise UserError(f"{path} is no annotation file of COCO: it holds {brief(content)}", allowed=wanted)
    for part in parts:
        if not isinstance(content.get(part), list):
            found = f"{part} is {brief(content[part])}" if part in content else f"it has no {part}"
            raise UserError(f"{path} is no annotation file of COCO: {found}", allowed=wanted)
    if not content["images"]:
        raise UserError(f"{path} lists no image")
    return content


def entries(path: Path, part: str, values: Any) -> Iterator[Entry]:
    """The entries of a list, each of which has to be a dictionary."""
    for number, value in enumerate(values if isinstance(values, list) else [values]):
        if not isinstance(value, dict):
            raise UserError(f"{path}: {part}[{number}] is {brief(value)}", allowed="a dictionary", todo="correct the file")
        yield Entry(path, part, number, value)


def brief(value: object, most: int = 60) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= most else f"{text[: most - 3]}..."


def read_images(path: Path, values: list[Any], *, sized: bool) -> dict[int, CocoImage]:
    """Read the list of images, by id; sized: each says its width and height."""
    images: dict[int, CocoImage] = {}
    names: dict[str, int] = {}
    for entry in entries(path, "images", values):
        number, name = entry.whole("id", 0), entry.text("file_name")
        require_inside(name, f"{path}: images[{entry.number}] (id {number}): file_name")
        given = sized or "width" in entry.values or "height" in entry.values
        size = (entry.whole("width", 1, 2**31), entry.whole("height", 1, 2**31)) if given else None
        if number in images:
            entry.fail("id", f"is that of image {images[number].name}, too")
        if name in names:
            entry.fail("file_name", f"{name} is that of image {names[name]}, too")
        images[number], names[name] = CocoImage(number, name, size), number
    return images


def _categories(path: Path, values: Any) -> dict[int, str]:
    categories: dict[int, str] = {}
    for entry in entries(path, "categories", values):
        number, name = entry.whole("id", 0), entry.text("name")
        if number in categories:
            entry.fail("id", f"is that of {categories[number]}, too")
        if name in categories.values():
            entry.fail("name", f"{name} is that of another category, too")
        categories[number] = name
    return categories


def _require_unique(annotations: Iterator[Entry], *, needed: bool) -> None:
    """Require ids of annotations that differ; the metric takes 0 for `unmatched`."""
    seen: dict[int, int] = {}
    for entry in annotations:
        if "id" in entry.values or needed:
            number = entry.whole("id", 1 if needed else 0)
            if number in seen:
                entry.fail("id", f"is that of annotations[{seen[number]}], too")
            seen[number] = entry.number


# -- objects -----------------------------------------------------------------------------------------------------------


def _object(entry: Entry, images: dict[int, CocoImage], categories: dict[int, str], *, masks: bool) -> CocoObject:
    """Check one annotation."""
    image = images.get(entry.whole("image_id", 0))
    if image is None:
        entry.fail("image_id", f"{entry.values['image_id']} is the id of no image")
    box = _box(entry, image.size)
    crowd = entry.values.get("iscrowd", 0)
    if crowd not in (0, 1) or isinstance(crowd, float):
        entry.fail("iscrowd", f"is {brief(crowd)}", "0 or 1; 0 where it is missing")
    category = entry.whole("category_id", 0) if masks or "category_id" in entry.values else None
    if categories and category is not None and category not in categories:
        entry.fail("category_id", f"{category} is the id of no category")
    bounds = None
    if masks:
        assert image.size is not None
        _check_area(entry, image.size)
        bounds = _mask_bounds(entry, image.size)
        _check_fit(entry, box, bounds)
    return CocoObject(image.id, category, box, bool(crowd), bounds is None or _overlap(box, bounds) >= 0.5)


def _box(entry: Entry, size: tuple[int, int] | None) -> Bounds:
    box = entry.get("bbox", ORDER)
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        entry.fail("bbox", f"is {brief(box)}", f"four finite numbers: {ORDER}")
    x, y, width, height = box
    if width < 0 or height < 0:
        entry.fail("bbox", f"is {brief(box)}", f"no negative width or height: {ORDER}")
    if size is not None and leaves_image((x, y, x + width, y + height), size):
        corners = "; are these two corners?" if 0 <= x <= width <= size[0] + 1 and 0 <= y <= height <= size[1] + 1 else ""
        entry.fail("bbox", f"{brief(box)} leaves the image of {size[0]}x{size[1]}", ORDER + corners)
    return x, y, width, height


def _check_area(entry: Entry, size: tuple[int, int]) -> None:
    area = entry.get("area", "the object's area in pixels")
    if is_number(area) and area > (size[0] + 1) * (size[1] + 1) * 1.1:  # the metric leaves out objects above its largest area
        entry.fail("area", f"is {brief(area)}, more than the image of {size[0]}x{size[1]}", "the object's area in pixels")
    if not is_number(area) or area < 0:
        entry.fail("area", f"is {brief(area)}", "the object's area in pixels")
    if entry.values.get("ignore"):
        entry.fail("ignore", f"is {brief(entry.values['ignore'])}: training would leave the object out, the metric would not", "iscrowd: 1")


def _mask_bounds(entry: Entry, size: tuple[int, int]) -> Bounds | None:
    """Check a segmentation; x0, y0, x1, y1 of it, None if it is empty."""
    mask = entry.get("segmentation", "polygons or run lengths")
    if isinstance(mask, list):
        bounds = _polygon_bounds(entry, mask)
        if leaves_image(bounds, size):
            found = f"reaches from {bounds[0]:g}, {bounds[1]:g} to {bounds[2]:g}, {bounds[3]:g} in an image of {size[0]}x{size[1]}"
            entry.fail("segmentation", found, "corners x, y in pixels")
        return bounds
    width, height = size
    if not isinstance(mask, dict) or not {"size", "counts"} <= mask.keys():
        entry.fail("segmentation", f"is {brief(mask)}", "a list of polygons, or run lengths with size and counts")
    if mask["size"] != [height, width] or not all(type(side) is int for side in mask["size"]):
        entry.fail("segmentation", f"has the size {brief(mask['size'])}", f"height and width of the image: {[height, width]}")
    try:
        runs = runs_of(mask["counts"])
    except ValueError as error:
        entry.fail("segmentation", f"has counts that are no run lengths: {error}", "whole numbers from 0, or their compressed text")
    if sum(runs) != width * height:
        entry.fail("segmentation", f"has counts of {sum(runs)} pixels", f"{width * height}, those of the image")
    return runs_bounds(runs, height)


def _polygon_bounds(entry: Entry, polygons: list[Any]) -> Bounds:
    allowed = "a list of polygons, each a list x0, y0, x1, y1, x2, y2, ... of three corners or more"
    if not polygons:
        entry.fail("segmentation", "is empty", allowed)
    bounds = []
    for polygon in polygons:
        if is_number(polygon):
            entry.fail("segmentation", f"{brief(polygons)} is a polygon that is in no list of polygons", allowed)
        if not isinstance(polygon, list) or len(polygon) % 2 or len(polygon) < 6 or not _all_numbers(polygon):
            entry.fail("segmentation", f"has the polygon {brief(polygon)}", allowed)
        x, y = polygon[::2], polygon[1::2]
        bounds.append((min(x), min(y), max(x), max(y)))
    return min(b[0] for b in bounds), min(b[1] for b in bounds), max(b[2] for b in bounds), max(b[3] for b in bounds)


def _check_fit(entry: Entry, box: Bounds, bounds: Bounds | None) -> None:
    """Refuse a box that fits its mask only if it is read in another order than COCO's, or that lies elsewhere."""
    x, y, width, height = box
    if bounds is None or width < 1 or height < 1 or _close((x, y, x + width, y + height), bounds):
        return
    readings = {
        "two corners": (x, y, width, height),
        "center, width, height": (x - width / 2, y - height / 2, x + width / 2, y + height / 2),
        "y, x, height, width": (y, x, y + height, x + width),
    }
    for name, reading in readings.items():
        if _close(reading, bounds):
            entry.fail("bbox", f"{brief(list(box))} fits the segmentation only as {name}", ORDER)
    if x > bounds[2] + 1 or y > bounds[3] + 1 or x + width < bounds[0] - 1 or y + height < bounds[1] - 1:
        entry.fail("bbox", f"{brief(list(box))} lies outside its segmentation ({', '.join(f'{v:g}' for v in bounds)})", ORDER)


def _close(one: Bounds, other: Bounds) -> bool:
    return all(abs(a - b) <= CLOSE for a, b in zip(one, other, strict=True))


def _overlap(box: Bounds, bounds: Bounds) -> float:
    """IoU of x, y, width, height and x0, y0, x1, y1."""
    x, y, width, height = box
    left, top, right, bottom = bounds
    inner = max(0, min(x + width, right) - max(x, left)) * max(0, min(y + height, bottom) - max(y, top))
    union = width * height + (right - left) * (bottom - top) - inner
    return inner / union if union > 0 else 1.0


def _require_fitting(path: Path, annotations: list[dict[str, Any]], objects: list[CocoObject]) -> None:
    """Refuse a file of which many boxes do not fit their masks: one of the two is for images of another size."""
    bad = [n for n, found in enumerate(objects) if not found.fits]
    if len(bad) > LOOSE * len(objects):
        which = {key: annotations[bad[0]][key] for key in ("id", "bbox")}
        found = f"{path}: {len(bad)} of {len(objects)} boxes have an IoU below 0.5 with their masks: annotations[{bad[0]}] {which}"
        raise UserError(found, allowed=ORDER, todo="correct the file (are boxes or masks for images of another size?)")


def _require_once(path: Path, annotations: list[dict[str, Any]], objects: list[CocoObject]) -> None:
    """Refuse a file of which many objects are there twice, as after joining files: the metric would count each as missed once."""
    seen: set[int] = set()
    twice = []
    for number, one in enumerate(objects):
        key = hash((one.image, one.category, one.box))
        if key in seen:
            twice.append(number)
        seen.add(key)
    if len(twice) > TWICE * len(objects):
        which = f"annotations[{twice[0]}] (id {annotations[twice[0]].get('id')!r})"
        found = f"{path}: {len(twice)} of {len(objects)} objects are there twice: {which}"
        raise UserError(f"{found} has image, category and bbox of another", todo="remove the copies")


def _require_pixels(path: Path, objects: list[CocoObject]) -> None:
    """Refuse a file whose boxes are parts of the image."""
    if objects and all(max(o.box) <= 1 for o in objects):
        found = f"{path}: annotations[0]: bbox {brief(list(objects[0].box))} and all others lie between 0 and 1"
        raise UserError(found, allowed=ORDER, todo="multiply them by the images' sizes")


def _require_trainable(path: Path, annotations: list[dict[str, Any]]) -> None:
    """Refuse a file of which mmdetection would leave out many objects without a word: those without an area, or below one pixel."""
    bad = [n for n, a in enumerate(annotations) if a["area"] <= 0 or a["bbox"][2] < 1 or a["bbox"][3] < 1]
    if len(bad) > LEFT_OUT * len(annotations):
        found = {key: annotations[bad[0]][key] for key in ("id", "area", "bbox")}
        raise UserError(
            f"{path}: {len(bad)} of {len(annotations)} objects have no area, or are less than a pixel wide or high: "
            f"annotations[{bad[0]}] {found}",
            todo="correct or remove them: training would leave them out",
        )


def is_number(value: object) -> bool:
    """Say whether a value is a finite number that float64 can hold, and no truth value."""
    return type(value) in (int, float) and -LARGEST_SIZE < value < LARGEST_SIZE  # type: ignore[operator]


def _all_numbers(values: list[Any]) -> bool:
    """Say whether a long list holds finite numbers alone, as fast as Python can."""
    return (
        set(map(type, values)) <= {int, float}
        and abs(sum(values)) < LARGEST_SIZE
        and min(values) > -LARGEST_SIZE
        and max(values) < LARGEST_SIZE
    )
