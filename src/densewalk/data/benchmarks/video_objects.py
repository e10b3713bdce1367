"""Videos with a mask for every frame, in the layouts of DAVIS and YouTube-VOS.

    DAVIS/{JPEGImages,Annotations}/480p/{sequence}/00000.{jpg,png}, DAVIS/ImageSets/{2016,2017}/{train,val}.txt
    YouTube-VOS/train/{JPEGImages,Annotations}/{sequence}/00000.{jpg,png}      masks may be there for some of the frames only

Listing checks that every file is there and of the right size, by the files' headers; every error names the file.
"""

from collections.abc import Sequence as Several
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write
from densewalk.data.benchmarks.palette import palette
from densewalk.data.benchmarks.paths import existing_folder, text_of
from densewalk.data.images import picture_header, read_labels, read_rgb

VOID = 255  # annotators were unsure
Labels = UInt8[np.ndarray, "height width"]
Video = UInt8[np.ndarray, "frames height width"]


@dataclass(frozen=True)
class Sequence:
    """One video: an image and an indexed PNG for every frame.

    merge: all objects are one, and 255 is no void but an object, as in DAVIS-2016.
    """

    name: str
    frames: list[Path]
    masks: list[Path]
    merge: bool = False

    def __len__(self) -> int:
        return len(self.frames)

    def image(self, number: int) -> UInt8[np.ndarray, "height width 3"]:
        """A frame, RGB."""
        return read_rgb(self.frames[number]).permute(1, 2, 0).numpy()

    def mask(self, number: int, *, keep_void: bool = False) -> Labels:
        """The objects 1, 2, ... of a frame; 0 is background, and so is void unless it is kept as 255."""
        labels = read_labels(self.masks[number])
        if labels.max() > VOID:
            raise UserError(f"mask {self.masks[number]} has the id {labels.max()}", allowed=f"0 to {VOID}", todo="number the objects anew")
        labels = labels.astype(np.uint8)
        if self.merge:
            return (labels > 0).astype(np.uint8)
        return labels if keep_void else np.where(labels == VOID, np.uint8(0), labels)

    def truth(self, *, keep_void: bool = False) -> Video:
        """All masks."""
        return np.stack([self.mask(number, keep_void=keep_void) for number in range(len(self.masks))])


# -- layouts ---------------------------------------------------------------------------------------------------------


def davis(
    root: str | Path,
    *,
    year: int = 2017,
    split: str = "val",
    resolution: str = "480p",
    annotations: str = "Annotations",
    only: Several[str] | None = None,
) -> list[Sequence]:
    """The sequences of ImageSets/`year`/`split`.txt, in 2016 with merged objects.

    Args:
        annotations: `Annotations`, or `Annotations_unsupervised`.
        only: names to choose from the list.

    Raises:
        UserError: a list, folder or file is missing, or a mask has another size than its frames.
    """
    root = existing_folder(Path(root), "DAVIS's folder")
    path = root / "ImageSets" / str(year) / f"{split}.txt"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt")))
        raise UserError(f"list {path} does not exist", allowed=there, todo="correct `root`, `year` or `split`")
    names = _choose(text_of(path).split(), only, path)
    return [_sequence(root / "JPEGImages" / resolution, root / annotations / resolution, name, merge=year == 2016) for name in names]


def youtube_vos(root: str | Path, *, split: str = "train", only: Several[str] | None = None) -> list[Sequence]:
    """The sequences of `root`/`split`, each with those of its frames that have a mask.

    Raises:
        UserError: see `davis`.
    """
    folder = existing_folder(Path(root) / split, "YouTube-VOS's folder")
    masks = existing_folder(folder / "Annotations")
    names = _choose(sorted(p.name for p in masks.iterdir() if p.is_dir()), only, masks)
    return [_sequence(folder / "JPEGImages", masks, name, sparse=True) for name in names]


def _choose(names: list[str], only: Several[str] | None, where: Path) -> list[str]:
    unknown = [name for name in only or [] if name not in names]
    if unknown or not names:
        raise UserError(f"{where} does not list {unknown[0]}" if unknown else f"{where} lists no sequence", allowed=", ".join(names))
    return [name for name in names if only is None or name in only]


def _sequence(images: Path, masks: Path, name: str, *, merge: bool = False, sparse: bool = False) -> Sequence:
    """The checked files of one sequence. sparse: frames without a mask are left out."""
    images, masks = existing_folder(images / name), existing_folder(masks / name)
    frames = [f for f in sorted(images.glob("*.jpg")) if not sparse or (masks / f"{f.stem}.png").is_file()]
    if not frames:
        raise UserError(f"{images} has no frame (*.jpg)" + (f" with a mask in {masks}" if sparse else ""))
    sequence = Sequence(name, frames, [masks / f"{frame.stem}.png" for frame in frames], merge)
    for path in sequence.masks:
        if not path.is_file():
            raise UserError(f"mask {path} does not exist", todo="scoring needs a mask for every frame (test-dev has only first ones)")
    _check_headers(sequence)
    return sequence


def _check_headers(sequence: Sequence) -> None:
    """One size for all pictures, one number for each pixel of a mask."""
    expected = picture_header(sequence.frames[0])[0]
    for path in [*sequence.frames, *sequence.masks]:
        size, mode = picture_header(path)
        if size != expected:
            raise UserError(f"{path} is {size[0]}x{size[1]}, but {sequence.frames[0]} is {expected[0]}x{expected[1]}")
        if path in sequence.masks and mode in ("RGB", "RGBA", "LA", "CMYK", "YCbCr"):
            raise UserError(f"mask {path} is a colour picture ({mode})", allowed="an indexed PNG whose pixel values are the objects")


# -- output ------------------------------------------------------------------------------------------------------------


def write_labels(folder: Path, labels: Video) -> None:
    """Palette PNGs 00000.png, 00001.png, ..., the format of DAVIS's annotations and of its servers."""
    colours = palette().tobytes()
    for number, frame in enumerate(labels):
        picture = Image.fromarray(frame)
        picture.putpalette(colours)
        with atomic_write(folder / f"{number:05d}.png") as temporary:
            picture.save(temporary, format="PNG")
