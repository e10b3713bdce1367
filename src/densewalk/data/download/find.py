"""Find the known data sets below a folder by what lies in them. Free of torch.

    for found in find_datasets(Path("/datasets")):
        print(found.name, found.root, found.lacks)      # davis /datasets/DAVIS ['5 of 30 in ImageSets/2017/val.txt']

The signs of each set are in datasets.yaml. A folder in a set's place may be an archive, as for the readers.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.paths import read_list
from densewalk.data.benchmarks.sizes import files_in
from densewalk.data.download.catalog import Dataset, datasets
from densewalk.data.storage.places import is_file, is_folder, resolve

DEEPEST = 4  # folders below the given one
MOST_FOLDERS = 200  # a folder with more holds data, not data sets


@dataclass(frozen=True)
class FoundDataset:
    """A data set that is there. lacks: in words, what the whole set has more of; empty for the whole set."""

    name: str
    root: Path
    lacks: tuple[str, ...] = ()


def find_datasets(folder: Path) -> list[FoundDataset]:
    """Every known data set at most four folders below the folder, in the order of datasets.yaml and then of paths.

    Raises:
        UserError: there is no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder", todo="name the folder below which the data sets lie")
    roots = list(_candidates(folder.resolve()))
    known = {name: dataset for name, dataset in datasets().items() if dataset.signs}
    return [
        FoundDataset(name, root, lacks_of(dataset, root)) for name, dataset in known.items() for root in roots if _is_root(dataset, root)
    ]


def roots_below(name: str, folder: Path) -> list[Path]:
    """The folders of one data set at most two folders below a folder, in which somebody has looked for it in vain."""
    dataset = datasets()[name]
    if not dataset.signs or not folder.is_dir():
        return []
    return [root for root in _candidates(folder, DEEPEST - 2) if root != folder and _is_root(dataset, root)]


def describe_signs(name: str) -> str:
    """What is looked for of a data set, in words."""
    dataset = datasets()[name]
    inside = ", ".join(dataset.signs)
    return f"{name}: a folder{f' {dataset.named}' if dataset.named else ''} with {inside}"


def lacks_at(name: str, root: Path) -> tuple[str, ...]:
    """What the whole data set has more of than a folder that holds it; nothing where its signs are not there."""
    dataset = datasets()[name]
    return lacks_of(dataset, root) if all(_is_there(root, part) for part in dataset.signs) else ()


def lacks_of(dataset: Dataset, root: Path) -> tuple[str, ...]:
    """What the whole set has more of."""
    counts = {part: (count_of(root, part), whole) for part, whole in dataset.signs.items() if whole is not None}
    return tuple(f"{count} of {whole} in {part}" for part, (count, whole) in counts.items() if count != whole)


def count_of(root: Path, part: str) -> int:
    """Lines of a list, files of a folder or archive, or matches of a pattern."""
    if "*" in part:
        return sum(1 for _ in root.glob(part))
    place = resolve(root / part)
    return len(read_list(place, todo="download it again")) if is_file(place) else files_in(place) or 0


def _candidates(folder: Path, depth: int = 0) -> Iterator[Path]:
    """The folder and those below it, sorted; not those below the root of a set."""
    yield folder
    if depth == DEEPEST or any(_is_root(dataset, folder) for dataset in datasets().values()):
        return
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    except PermissionError:  # of somebody else's
        return
    for name in names if len(names) <= MOST_FOLDERS else ():
        below = folder / name
        if not (below.is_symlink() and folder.is_relative_to(below.resolve())):
            yield from _candidates(below, depth + 1)


def _is_root(dataset: Dataset, root: Path) -> bool:
    if not dataset.signs or (dataset.named is not None and dataset.named != root.name):
        return False
    return all(_is_there(root, part) for part in dataset.signs)


def _is_there(root: Path, part: str) -> bool:
    if "*" in part:
        return next(root.glob(part), None) is not None
    place = resolve(root / part)
    return is_file(place) or is_folder(place)
