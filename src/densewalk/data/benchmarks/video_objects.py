"""Videos with a mask for every frame, in the layouts of DAVIS and YouTube-VOS.

    DAVIS/{JPEGImages,Annotations}/480p/{sequence}/00000.{jpg,png}, DAVIS/ImageSets/{2016,2017}/{train,val}.txt
    DAVIS/ImageSets/480p/{train,val}.txt                      of DAVIS-2016's own download: a frame and its mask a line
    YouTube-VOS/train/{JPEGImages,Annotations}/{sequence}/00000.{jpg,png}      masks may be there for some of the frames only

Listing checks that every file is there and of the right size, by the files' headers; every error names the file.
"""

import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write
from densewalk.data.benchmarks.paths import choose_names, existing_folder, read_list, read_text, require_inside, subfolders
from densewalk.data.file_lists import by_key, find_files, frames_in_order, pair_keys
from densewalk.data.image_files import EXTENSIONS, mask_turn, read_header, read_image, read_mask
from densewalk.data.palette import palette
from densewalk.data.storage.places import is_file, is_folder, resolve

VOID = 255  # annotators were unsure
Mask = UInt8[np.ndarray, "height width"]
Masks = UInt8[np.ndarray, "frames height width"]


@dataclass(frozen=True)
class LabelledVideo:
    """One sequence: an image and an indexed PNG for every frame.

    merge: all objects are one, and 255 is no void but an object, as in DAVIS-2016.
    """

    name: str
    frames: list[Path]
    masks: list[Path]
    merge: bool = False

    def __len__(self) -> int:
        return len(self.frames)

    def image(self, number: int) -> UInt8[np.ndarray, "height width 3"]:
        """Read a frame, upright RGB."""
        return np.array(read_image(self.frames[number]))

    def mask(self, number: int, *, keep_void: bool = False) -> Mask:
        """Read the objects 1, 2, ... of a frame; 0 is background and, if not kept as 255, void."""
        mask = read_mask(self.masks[number], self.frames[number] if self.frames else None)
        if mask.max() > VOID:
            raise UserError(
                f"mask {self.masks[number]} has the id {mask.max()}", allowed=f"0 to {VOID}", todo="number the objects again, from 1"
            )
        mask = mask.astype(np.uint8)
        if self.merge:
            return (mask > 0).astype(np.uint8)
        return mask if keep_void else np.where(mask == VOID, np.uint8(0), mask)

    def truth(self, *, keep_void: bool = False) -> Masks:
        """Read all masks."""
        return np.stack([self.mask(number, keep_void=keep_void) for number in range(len(self.masks))])


def list_davis(
    root: str | Path,
    *,
    year: int = 2017,
    split: str = "val",
    resolution: str = "480p",
    annotations: str = "Annotations",
    only: Sequence[str] | None = None,
    first_only: bool = False,
) -> list[LabelledVideo]:
    """List the sequences of ImageSets/`year`/`split`.txt, in 2016 with merged objects.

    DAVIS-2016's own download has ImageSets/`resolution`/`split`.txt instead, which is read where there is no folder of the year.

    Args:
        annotations: `Annotations`, or `Annotations_unsupervised`.
        only: names to choose from the list.
        first_only: only the first frame's mask is needed, as in test-dev.
    """
    root = existing_folder(Path(root), "DAVIS's folder")
    path = root / "ImageSets" / str(year) / f"{split}.txt"
    own = root / "ImageSets" / resolution / path.name
    if year == 2016 and not is_folder(resolve(path.parent)) and is_file(resolve(own)):
        names = choose_names(_sequences_of_pairs(own, resolution), only, own)
    else:
        names = choose_names(read_list(path, todo="correct `root`, `year` or `split`"), only, path)
    images, masks = root / "JPEGImages" / resolution, root / annotations / resolution
    return [_check_video(images, masks, name, merge=year == 2016, first_only=first_only) for name in names]


def _sequences_of_pairs(path: Path, resolution: str) -> list[str]:
    """The sequences of a list of lines `/JPEGImages/480p/NAME/00000.jpg /Annotations/480p/NAME/00000.png`, in their order."""
    line = re.compile(rf"/?JPEGImages/{re.escape(resolution)}/(.+)/[^/]+ +/?Annotations/{re.escape(resolution)}/\1/[^/]+")
    names: dict[str, None] = {}
    for number, text in enumerate(read_text(resolve(path)).splitlines(), start=1):
        if not text.strip():
            continue
        found = line.fullmatch(text.strip())
        if found is None:
            allowed = f"/JPEGImages/{resolution}/NAME/00000.jpg /Annotations/{resolution}/NAME/00000.png"
            raise UserError(f"{path}, line {number}: {text[:80]!a} is no frame with its mask", allowed=allowed, todo="download it again")
        require_inside(found[1], f"{path}, line {number}")
        names[found[1]] = None
    return list(names)


def list_youtube_vos(root: str | Path, *, split: str = "train", only: Sequence[str] | None = None) -> list[LabelledVideo]:
    """List the sequences of `root`/`split`, each with those of its frames that have a mask."""
    folder = existing_folder(Path(root) / split, "YouTube-VOS's folder")
    masks = existing_folder(folder / "Annotations")
    names = choose_names(subfolders(masks), only, masks)
    return [_check_video(folder / "JPEGImages", masks, name, sparse=True) for name in names]


def _check_video(
    images: Path, masks: Path, name: str, *, merge: bool = False, sparse: bool = False, first_only: bool = False
) -> LabelledVideo:
    """Return a sequence, in the order of its numbers, if its files are there and of one size, and its masks hold numbers.

    Args:
        sparse: frames without a mask are left out. A mask without its frame is refused.
        first_only: masks of later frames are left out, but not the frames.
    """
    images, masks = existing_folder(images / name), existing_folder(masks / name)
    frames = by_key(images, frames_in_order(find_files(images, EXTENSIONS, below=False), images))
    labels = by_key(masks, find_files(masks, (".png",), below=False))
    if first_only:
        labels = {key: labels[key] for key in list(frames)[:1] if key in labels}
    todo = "scoring needs a mask for every frame (test-dev has only first ones)"
    keys = list(frames) if first_only and labels else pair_keys(frames, labels, (images, masks), sparse=sparse, todo=todo)
    if not keys:
        raise UserError(f"{images} has no frame ({' '.join(EXTENSIONS)})" + (f" with a mask in {masks}" if sparse else ""))
    video = LabelledVideo(name, [images / frames[key] for key in keys], [masks / labels[key] for key in keys if key in labels], merge)
    check_sizes(video.frames, [(images / frames[key], masks / labels[key]) for key in keys if key in labels])
    return video


def check_sizes(frames: Sequence[Path], pairs: Iterable[tuple[Path, Path]]) -> None:
    """Require that all frames of a video, and its masks, are of one size, and that masks hold numbers, by the files' headers.

    Args:
        pairs: frames with their masks.
    """
    headers = {frame: read_header(frame) for frame in frames}
    expected = headers[frames[0]].shown
    for frame, header in headers.items():
        if header.shown != expected:
            size = header.shown
            raise UserError(f"{frame} is {size[0]}x{size[1]}, but {frames[0]} is {expected[0]}x{expected[1]}")
    for frame, mask in pairs:
        mask_header = read_header(mask)
        mask_turn(mask, mask_header, frame, headers[frame])
        if mask_header.mode in ("RGB", "RGBA", "LA", "CMYK", "YCbCr"):
            raise UserError(
                f"mask {mask} is a color image ({mask_header.mode})", allowed="an indexed PNG whose pixel values are the objects"
            )


def write_labels(folder: Path, labels: Masks, names: Sequence[str] | None = None) -> None:
    """Write palette PNGs 00000.png, 00001.png, ..., or of these names, as DAVIS and its servers have them."""
    colors = palette().tobytes()
    for number, frame in enumerate(labels):
        image = Image.fromarray(frame)
        image.putpalette(colors)
        with atomic_write(folder / f"{f'{number:05d}' if names is None else names[number]}.png") as temporary:
            image.save(temporary, format="PNG")


def zip_labels(path: Path, folder: Path, names: Iterable[str], top: str = "") -> None:
    """Write the PNGs of these sequences, folders in `folder`, into a zip archive as servers take them; the same files, the same bytes.

    Args:
        top: a folder above those of the sequences.
    """
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in sorted(names):
            for file in sorted((folder / name).glob("*.png")):
                place = "/".join(part for part in (top, name, file.name) if part)
                archive.writestr(zipfile.ZipInfo(place), file.read_bytes(), zipfile.ZIP_STORED)
