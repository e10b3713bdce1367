"""Images with one class each, in ImageNet's layout: ROOT/{train,val}/{class}/*.JPEG.

training, validation = list_imagenet("data/imagenet")
training.names[training.targets[0]]                          # the class of the first image
"""

import os
from dataclasses import dataclass
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.paths import existing_folder, require_apart, subfolders
from densewalk.data.image_files import EXTENSIONS
from densewalk.data.image_folder import find_images


@dataclass(frozen=True)
class ClassifiedImages:
    """One split: paths, as strings since workers copy them, and the classes' numbers and names."""

    paths: list[str]
    targets: list[int]
    names: list[str]

    def __len__(self) -> int:
        return len(self.paths)


def list_imagenet(root: str | Path, training: str = "train", validation: str = "val") -> tuple[ClassifiedImages, ClassifiedImages]:
    """List both splits; classes are numbered by name, as torchvision's ImageFolder does."""
    folders = [existing_folder(Path(root) / split, allowed="ROOT/{train,val}/{class}/*.JPEG") for split in (training, validation)]
    classes = [_list_classes(folder) for folder in folders]
    for here, there in ((0, 1), (1, 0)):
        if missing := sorted(set(classes[there]) - set(classes[here])):
            folder, other = folders[here] / missing[0], folders[there] / missing[0]
            found = f"class folder {folder} does not exist, but {other} does ({len(missing)} such classes)"
            raise UserError(found, todo="sort the images of both splits into folders of the same classes")
    first, second = (_list_split(folder, names) for folder, names in zip(folders, classes, strict=True))
    require_apart(first.paths, second.paths)
    return first, second


def _list_classes(folder: Path) -> list[str]:
    names = subfolders(folder)
    if not names:
        raise UserError(f"{folder} has no class folder", allowed="one folder of images per class")
    return names


def _list_split(folder: Path, names: list[str]) -> ClassifiedImages:
    paths: list[str] = []
    targets: list[int] = []
    for number, name in enumerate(names):
        found = [os.path.join(folder, name, image) for image in find_images(folder / name)]
        if not found:
            raise UserError(f"class folder {folder / name} holds no image", allowed=" ".join(EXTENSIONS))
        paths += found
        targets += [number] * len(found)
    return ClassifiedImages(paths, targets, names)
