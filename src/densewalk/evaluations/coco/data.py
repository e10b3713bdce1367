"""COCO's instances files and images, checked before anything is trained."""

from dataclasses import dataclass
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.coco import read_instances
from densewalk.data.benchmarks.paths import existing_folder, require_apart
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
    require_apart([training.images / "*"], [validation.images / "*"])
    if training.categories != validation.categories:
        # the position in this list is the detector's label
        raise UserError(
            f"{training.annotations} and {validation.annotations} do not list the same categories in the same order",
            todo="write both files with one list of categories",
        )
    return training, validation


def check_split(annotations: Path, images: Path) -> Split:
    """One split; see `check_data`."""
    found = read_instances(annotations, existing_folder(images, "image folder"))
    with_objects = {entry.image for entry in found.objects}
    usable = sum(image.id in with_objects and min(image.size or (0,)) >= SMALLEST for image in found.images.values())
    if not usable:
        raise UserError(f"{annotations} has no image of at least {SMALLEST} x {SMALLEST} px with an object")
    return Split(annotations, images, len(found.images), usable, tuple(found.categories.items()))
