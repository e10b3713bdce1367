"""Videos with a mask for every frame, in the layouts of DAVIS and YouTube-VOS.

    DAVIS/{JPEGImages,Annotations}/480p/{sequence}/00000.{jpg,png}, DAVIS/ImageSets/{2016,2017}/{train,val}.txt
    YouTube-VOS/train/{JPEGImages,Annotations}/{sequence}/00000.{jpg,png}      masks may be there for some of the frames only

Listing checks that every file is there and of the right size, by the files' headers; every error names the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write
from densewalk.data.benchmarks.palette import palette
from densewalk.data.benchmarks.paths import choose_names, existing_folder, read_list, subfolders
from densewalk.data.file_lists import by_key, find_files, frames_in_order, pair_keys
from densewalk.data.image_files import EXTENSIONS, mask_turn, read_header, read_image, read_mask

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
) -> list[LabelledVideo]:
    """List the sequences of ImageSets/`year`/`split`.txt, in 2016 with merged objects.

    Args:
        annotations: `Annotations`, or `Annotations_unsupervised`.
        only: names to choose from the list.
    """
    root = existing_folder(Path(root), "DAVIS's folder")
    path = root / "ImageSets" / str(year) / f"{split}.txt"
    names = choose_names(read_list(path, todo="correct `root`, `year` or `split`"), only, path)
    return [_check_video(root / "JPEGImages" / resolution, root / annotations / resolution, name, merge=year == 2016) for name in names]


def list_youtube_vos(root: str | Path, *, split: str = "train", only: Sequence[str] | None = None) -> list[LabelledVideo]:
    """List the sequences of `root`/`split`, each with those of its frames that have a mask."""
    folder = existing_folder(Path(root) / split, "YouTube-VOS's folder")
    masks = existing_folder(folder / "Annotations")
    names = choose_names(subfolders(masks), only, masks)
    return [_check_video(folder / "JPEGImages", masks, name, sparse=True) for name in names]


def _check_video(images: Path, masks: Path, name: str, *, merge: bool = False, sparse: bool = False) -> LabelledVideo:
    """Return a sequence, in the order of its numbers, if its files are there and of one size, and its masks hold numbers.

    Args:
        sparse: frames without a mask are left out. A mask without its frame is refused.
    """
    images, masks = existing_folder(images / name), existing_folder(masks / name)
    frames = by_key(images, frames_in_order(find_files(images, EXTENSIONS, below=False), images))
    labels = by_key(masks, find_files(masks, (".png",), below=False))
    todo = "scoring needs a mask for every frame (test-dev has only first ones)"
    keys = pair_keys(frames, labels, (images, masks), sparse=sparse, todo=todo)
    if not keys:
        raise UserError(f"{images} has no frame ({' '.join(EXTENSIONS)})" + (f" with a mask in {masks}" if sparse else ""))
    video = LabelledVideo(name, [images / frames[key] for key in keys], [masks / labels[key] for key in keys], merge)
    expected = read_header(video.frames[0]).shown
    for frame, mask in zip(video.frames, video.masks, strict=True):
        header, mask_header = read_header(frame), read_header(mask)
        if header.shown != expected:
            size = header.shown
            raise UserError(f"{frame} is {size[0]}x{size[1]}, but {video.frames[0]} is {expected[0]}x{expected[1]}")
        mask_turn(mask, mask_header, frame, header)
        if mask_header.mode in ("RGB", "RGBA", "LA", "CMYK", "YCbCr"):
            raise UserError(
                f"mask {mask} is a color image ({mask_header.mode})", allowed="an indexed PNG whose pixel values are the objects"
            )
    return video


def write_labels(folder: Path, labels: Masks) -> None:
    """Write palette PNGs 00000.png, 00001.png, ..., as DAVIS and its servers have them."""
    colors = palette().tobytes()
    for number, frame in enumerate(labels):
        image = Image.fromarray(frame)
        image.putpalette(colors)
        with atomic_write(folder / f"{number:05d}.png") as temporary:
            image.save(temporary, format="PNG")
