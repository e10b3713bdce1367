"""Which image files a folder holds, and in which order: the one place that lists, counts, pairs and sorts them. Free of torch."""

import logging
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import pairwise
from pathlib import Path

from densewalk.core.errors import UserError
from densewalk.data.storage.members import require_plain_name
from densewalk.data.storage.places import members_below

log = logging.getLogger("densewalk")


def find_files(root: str | Path, extensions: Collection[str], *, below: bool = True) -> list[str]:
    """List the files with these extensions (in any case) below a folder, as sorted paths relative to it.

    A tar or zip archive is a folder, too (data/storage). Links are followed; a folder that is reached twice, as by `ln -s . latest`, is
    listed once, under its own name. Hidden files and folders are passed over.

    Args:
        below: also in folders inside it.

    Raises:
        UserError: a folder that cannot be listed, a name that is no text, or a link to nothing, a pipe or a device in a file's place.
    """
    if (members := members_below(root)) is not None:
        ends = tuple(extensions)
        return [name for name, _ in members if name.lower().endswith(ends) and (below or "/" not in name)]
    root = os.fspath(root)
    found: list[str] = []
    real: list[str] = [""]
    links: list[str] = []
    seen = {_identity(parent) for parent in (Path(root).resolve(), *Path(root).resolve().parents)} - {_identity(root)}
    while real or links:
        if not real:
            link = links.pop()
            if _identity(os.path.join(root, link)) in seen:
                log.info("%s leads to a folder that is listed already, and is passed over", os.path.join(root, link))
                continue
            real.append(link)
        folder = real.pop()
        seen.add(_identity(os.path.join(root, folder)))
        files, folders, linked = _entries(os.path.join(root, folder) if folder else root, extensions)
        found += [os.path.join(folder, name) for name in files]
        if below:
            real += [os.path.join(folder, name) for name in folders]
            # deepest names last, so that they are followed first and the order does not depend on the file system
            links = sorted({*links, *(os.path.join(folder, name) for name in linked)}, reverse=True)
    return sorted(found)


def _entries(folder: str, extensions: Collection[str]) -> tuple[list[str], list[str], list[str]]:
    """Names of a folder's files with these extensions, of the folders in it, and of the links to folders."""
    files: list[str] = []
    folders: list[str] = []
    links: list[str] = []
    ends = tuple(extensions)
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                wanted = name.lower().endswith(ends)
                if wanted and _is(entry.is_file):
                    files.append(name)
                elif _is(entry.is_dir):
                    (links if entry.is_symlink() else folders).append(name)
                elif wanted:
                    raise UserError(f"{os.path.join(folder, name)} is no file (a pipe, a device, or a link to nothing)", todo="remove it")
    except OSError as error:
        raise UserError(f"folder {folder} cannot be listed: {error.strerror}", todo="correct its permissions") from error
    for name in (*files, *folders, *links):
        require_plain_name(name, folder)
    return files, folders, links


def _is(kind: Callable[[], bool]) -> bool:
    """Ask an entry what it is; a link to itself is nothing."""
    try:
        return kind()
    except OSError:
        return False


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


# -- order -------------------------------------------------------------------------------------------------------------


def by_number(name: str) -> list[str | int]:
    """Sorting key for which frame_9 comes before frame_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def frames_in_order(names: Iterable[str], folder: str | Path) -> list[str]:
    """Sort the files of a sequence by number.

    Raises:
        UserError: two files have one number, such as 1.jpg and 01.jpg, or 1.jpg and 1.png; or names differ in more than numbers, as
            a.jpg and b.jpg, or -1.jpg and 1.jpg: their order would be a guess.
    """
    ordered = sorted((by_number(os.path.splitext(name)[0]), name) for name in names)
    for (number, one), (next_number, other) in pairwise(ordered):
        if number[::2] != next_number[::2]:
            found = f"{folder} has frames whose names differ in more than a number: {one} and {other}"
            raise UserError(found, allowed="names such as 00000.jpg or frame_9.jpg", todo="number them, or move what is no frame away")
        if number == next_number:
            raise UserError(f"{folder} has two frames of one number: {one} and {other}", todo="remove one of them")
    return [name for _, name in ordered]


# -- pairs -------------------------------------------------------------------------------------------------------------


def by_key(root: str | Path, names: Iterable[str], *, end: str = "") -> dict[str, str]:
    """Key of each file, its path without the extension and without `end`, and the file.

    Raises:
        UserError: two files have one key, such as a.jpg and a.png: which of them the mask belongs to would be a guess.
    """
    found: dict[str, str] = {}
    for name in names:
        stem = os.path.splitext(name)[0]
        if not stem.endswith(end):
            continue
        key = stem.removesuffix(end)
        if key in found:
            raise UserError(f"{root} has two files of one name: {found[key]} and {name}", todo="remove one of them")
        found[key] = name
    return found


def pair_keys(
    images: Mapping[str, str],
    masks: Mapping[str, str],
    folders: tuple[str | Path, str | Path],
    *,
    ends: tuple[str, str] = ("", ""),
    sparse: bool = False,
    todo: str = "",
) -> list[str]:
    """Return the keys that are in both, in the images' order.

    Args:
        images, masks: key -> file, of `by_key`. folders: of the images and of the masks. ends: of both, as for `by_key`.
        sparse: images without a mask are left out, since a layout has masks for some of its frames only.
        todo: about images without a mask.

    Raises:
        UserError: an image has no mask, or a mask no image; leaving them out would change the benchmark.
    """
    if alone := sorted(masks.keys() - images.keys(), key=by_number):
        mask, image = os.path.join(folders[1], masks[alone[0]]), os.path.join(folders[0], alone[0] + ends[0])
        found = f"mask {mask} has no image of that name in {folders[0]} ({len(alone)} of {len(masks)} masks): {image}.* does not exist"
        raise UserError(found, todo="complete the images, or remove the masks: names must be equal but for the suffix")
    if (alone := sorted(images.keys() - masks.keys(), key=by_number)) and not sparse:
        image, mask = os.path.join(folders[0], images[alone[0]]), os.path.join(folders[1], alone[0] + ends[1])
        found = f"image {image} has no mask ({len(alone)} of {len(images)} images): {mask}.png does not exist"
        raise UserError(found, todo=todo or "complete the masks, or remove the images: names must be equal but for the suffix")
    return [key for key in images if key in masks]
