"""COCO's instances files and images, checked before anything is trained."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densewalk.core.errors import UserError
from densewalk.core.files import read_json
from densewalk.evaluations.coco.settings import CocoSettings

SMALLEST = 32  # least side of a training image in pixels


@dataclass(frozen=True)
class Split:
    """A checked split; `usable` of its `count` images are large enough and have an object, to train on."""

    annotations: Path
    images: Path
    count: int
    usable: int
    categories: tuple[tuple[int, str], ...]


def check_data(settings: CocoSettings) -> tuple[Split, Split]:
    """The training and the validation split."""
    root = Path(settings.root)
    training, validation = (check_split(root / f"annotations/instances_{name}.json", root / name) for name in ("train2017", "val2017"))
    if training.categories != validation.categories:
        # the position in this list is the detector's label
        raise UserError(
            f"{training.annotations} and {validation.annotations} do not list the same categories in the same order",
            todo="write both files with one list of categories",
        )
    return training, validation


def check_split(annotations: Path, images: Path) -> Split:
    """One split; see `check_data`."""
    if not images.is_dir():
        raise UserError(f"image folder {images} does not exist", todo="correct `root` or download the data")
    content = read_json(annotations)
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise UserError(f"{annotations} is not a COCO instances file", allowed="a dictionary with images, annotations and categories")
    there = {path.name for path in images.iterdir()}
    try:
        missing = [image["file_name"] for image in content["images"] if image["file_name"] not in there]
        if missing:
            raise UserError(f"{annotations} lists {len(missing)} images that are not in {images}, e.g. {missing[0]}", todo="download them")
        _check_references(annotations, content)
        with_objects = {annotation["image_id"] for annotation in content["annotations"]}
        usable = sum(image["id"] in with_objects and min(image["width"], image["height"]) >= SMALLEST for image in content["images"])
        categories = tuple((category["id"], category["name"]) for category in content["categories"])
    except (KeyError, TypeError) as error:
        raise UserError(f"{annotations} is not a COCO instances file: an entry lacks {error}", todo="download it again") from error
    if not usable:
        raise UserError(f"{annotations} has no image of at least {SMALLEST} x {SMALLEST} px with an object")
    return Split(annotations, images, len(content["images"]), usable, categories)


def _check_references(path: Path, content: dict[str, Any]) -> None:
    """Require of every annotation a listed image, a listed category and a mask."""
    images, categories = ({entry["id"] for entry in content[kind]} for kind in ("images", "categories"))
    for annotation in content["annotations"]:
        if annotation["image_id"] not in images or annotation["category_id"] not in categories or not annotation.get("segmentation"):
            found = json.dumps({key: annotation.get(key) for key in ("id", "image_id", "category_id")})
            raise UserError(f"{path}: annotation {found} has an unknown image or category, or no segmentation")
