"""COCO's panoptic annotation files, checked entry by entry. Free of torch."""

from dataclasses import dataclass
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.coco import CocoImage, Entry, brief, entries, read_content, read_images
from densewalk.data.benchmarks.paths import require_inside


@dataclass(frozen=True)
class Segments:
    """One image and its PNG of segments; pairs: (number of a segment in the PNG, category)."""

    image: CocoImage
    mask: str
    pairs: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Category:
    """What a category is."""

    thing: bool
    supercategory: str


def read_panoptic(path: Path) -> tuple[list[Segments], dict[int, Category]]:
    """Read a panoptic file: every image's segments, and the categories.

    Raises:
        UserError: the first entry that is wrong; an image without segments, or with two entries.
    """
    content = read_content(path, ("images", "annotations", "categories"))
    images = read_images(path, content["images"], sized=False)
    categories = {entry.whole("id", 0): _category(entry) for entry in entries(path, "categories", content["categories"])}
    if len(categories) < len(content["categories"]):
        raise UserError(f"{path}: two categories have one id", todo="download it again")
    found: dict[int, Segments] = {}
    masks: set[str] = set()
    for entry in entries(path, "annotations", content["annotations"]):
        segments = _segments(entry, images, categories)
        if segments.image.id in found or segments.mask in masks:
            entry.fail("image_id or file_name", f"({segments.image.id}, {segments.mask}) is that of another annotation, too")
        found[segments.image.id] = segments
        masks.add(segments.mask)
    if alone := [image for image in images.values() if image.id not in found]:
        raise UserError(f"{path}: {len(alone)} images have no annotation, e.g. {alone[0].name}", todo="download it again")
    return list(found.values()), categories


def _category(entry: Entry) -> Category:
    thing = entry.get("isthing", "0 or 1")
    if thing not in (0, 1) or isinstance(thing, float):
        entry.fail("isthing", f"is {brief(thing)}", "0 or 1")
    return Category(bool(thing), entry.text("supercategory"))


def _segments(entry: Entry, images: dict[int, CocoImage], categories: dict[int, Category]) -> Segments:
    image = images.get(entry.whole("image_id", 0))
    if image is None:
        entry.fail("image_id", f"{entry.values['image_id']} is the id of no image")
    name = entry.text("file_name")
    require_inside(name, f"{entry.path}: annotations[{entry.number}]: file_name")
    part = f"annotations[{entry.number}].segments_info"
    pairs: dict[int, int] = {}
    for segment in entries(entry.path, part, entry.get("segments_info", "a list of segments")):
        number, category = segment.whole("id", 1, 2**24 - 1), segment.whole("category_id", 0)
        if category not in categories:
            segment.fail("category_id", f"{category} is the id of no category")
        if number in pairs:
            segment.fail("id", "is that of another segment of the image, too")
        pairs[number] = category
    return Segments(image, name, tuple(pairs.items()))
