"""Images with one class each, in ImageNet's layout: one folder per class.

    training, validation = imagenet("data/imagenet")             # ROOT/{train,val}/{class}/*.JPEG
    training.names[training.targets[0]]                          # the class of the first image

Listing checks that both splits have the same classes and that no folder is empty; pictures are opened when they are read.
Every error names the file or folder.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.paths import existing_folder
from densewalk.data.images import EXTENSIONS


@dataclass(frozen=True)
class Classified:
    """One split: paths (as strings: a million of them are copied to every worker), the classes' numbers and names."""

    paths: list[str]
    targets: list[int]
    names: list[str]

    def __len__(self) -> int:
        return len(self.paths)


def imagenet(root: str | Path, training: str = "train", validation: str = "val") -> tuple[Classified, Classified]:
    """The two splits; classes are numbered in the order of their folders' names, as torchvision's ImageFolder does.

    Raises:
        UserError: a split or a class folder is missing, is empty, or is in one split only.
    """
    folders = [existing_folder(Path(root) / split, allowed="ROOT/{train,val}/{class}/*.JPEG") for split in (training, validation)]
    classes = [_classes(folder) for folder in folders]
    for here, there in ((0, 1), (1, 0)):
        if missing := sorted(set(classes[there]) - set(classes[here])):
            folder, other = (folders[side] / missing[0] for side in (here, there))
            raise UserError(
                f"class folder {folder} does not exist, but {other} does ({len(missing)} such classes)",
                todo="sort the pictures of both splits into folders of the same classes",
            )
    first, second = (_split(folder, names) for folder, names in zip(folders, classes, strict=True))
    return first, second


def _classes(folder: Path) -> list[str]:
    names = sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not names:
        raise UserError(f"{folder} has no class folder", allowed="one folder of pictures per class")
    return names


def _split(folder: Path, names: list[str]) -> Classified:
    paths: list[str] = []
    targets: list[int] = []
    for number, name in enumerate(names):
        found = sorted(
            os.path.join(below, file)
            for below, _, files in os.walk(folder / name, followlinks=True)
            for file in files
            if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
        )
        if not found:
            raise UserError(f"class folder {folder / name} holds no picture", allowed=" ".join(EXTENSIONS))
        paths += found
        targets += [number] * len(found)
    return Classified(paths, targets, names)
