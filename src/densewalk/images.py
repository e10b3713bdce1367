"""Still pictures: reading files of any kind the same way, folders of pictures, folders of frames.

folder = ImageFolder("data/coco/train2017")
x = normalize(folder[0] / 255)                    # what every network of this project takes
clips = FrameFolders("data/DAVIS/JPEGImages/480p")
clip = clips.read(0, [0, 4, 8])                   # three frames of the first sequence
"""

import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int64, Integer, UInt8
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from densewalk.checkpoint import write_json
from densewalk.errors import UserError
from densewalk.settings.checkpoints import IMAGENET_MEAN, IMAGENET_STD

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# pictures that `check_images` opens, spread over the folder
SAMPLE = 16


def normalize(x: Float[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch 3 height width"]:
    """RGB in 0..1 to ImageNet's zero mean and unit standard deviation."""
    return (x - _per_channel(IMAGENET_MEAN, x)) / _per_channel(IMAGENET_STD, x)


def denormalize(x: Float[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch 3 height width"]:
    """The inverse of `normalize`, for pictures of what a network saw."""
    return x * _per_channel(IMAGENET_STD, x) + _per_channel(IMAGENET_MEAN, x)


def _per_channel(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


# -- files -----------------------------------------------------------------------------------------------------------


def read_rgb(path: str | Path) -> UInt8[Tensor, "3 height width"]:
    """The picture as RGB, upright (EXIF), channels last in memory.

    Greyscale is repeated in the three channels, palettes are looked up, transparency is dropped, 16 bits become 8.

    Raises:
        UserError: the file is missing, damaged or no picture.
    """
    image = ImageOps.exif_transpose(open_picture(path))
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise UserError(f"{path} has 32-bit pixels", allowed="8 or 16 bits per channel")
    elif image.mode == "P":
        image = image.convert("RGBA")  # a palette may hold transparent colours
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def read_mask(path: str | Path) -> Int64[Tensor, "height width"]:
    """The labels of an indexed or greyscale picture: its pixel values, never its colours.

    Raises:
        UserError: the file is missing, damaged, no picture, or a colour picture.
    """
    return torch.from_numpy(read_labels(path).astype(np.int64))


def read_labels(path: str | Path) -> Integer[np.ndarray, "height width"]:
    """`read_mask` in the file's own type, uint8 or wider.

    Raises:
        UserError: see `read_mask`.
    """
    image = open_picture(path)
    if image.mode not in ("P", "L", "1", "I") and not image.mode.startswith("I;16"):
        raise UserError(
            f"mask {path} is a colour picture ({image.mode})", allowed="indexed or greyscale PNG whose pixel values are the labels"
        )
    labels = np.asarray(image)
    return labels.astype(np.uint8) if labels.dtype == bool else labels


def read_stored(path: str | Path) -> Image.Image:
    """The picture as a Pillow image, RGB, as it is stored: what annotations in pixels and torchvision's ImageFolder refer to.

    Raises:
        UserError: the file is missing, damaged or no picture.
    """
    return open_picture(path).convert("RGB")


def picture_header(path: str | Path) -> tuple[tuple[int, int], str]:
    """Width and height, and Pillow's mode, without decoding the pixels.

    Raises:
        UserError: the file is missing, damaged or no picture.
    """
    try:
        with Image.open(path) as image:
            return image.size, image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a picture: {error}", todo="download it again") from error


def open_picture(path: str | Path) -> Image.Image:
    """The decoded file; a truncated one is an error here and not later.

    Raises:
        UserError: the file is missing, damaged or no picture.
    """
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError as error:
        raise UserError(f"picture {path} does not exist", todo="correct the path or download it") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a picture: {error}", todo="download it again or remove it") from error
    return image


# -- folders ---------------------------------------------------------------------------------------------------------


class ImageFolder(Dataset[Tensor]):
    """All pictures below a folder, sorted by path; `[i]` is uint8 [3, height, width] RGB.

    Args:
        receipt: `check_images`'s, with `kept` (ascending numbers) for those pictures only.

    Raises:
        UserError: no such folder, no picture in it, or other ones than those the kept were chosen from; later, a picture that
            cannot be read.
    """

    def __init__(self, root: str | Path, extensions: Sequence[str] = EXTENSIONS, *, receipt: Mapping[str, Any] | None = None) -> None:
        self.root = _existing(Path(root))
        # strings, not paths: a million of them are copied to every worker
        self.names = sorted(_pictures(self.root, extensions))
        if not self.names:
            raise UserError(f"{root} holds no picture", allowed=" ".join(extensions), todo="correct `source` or download the pictures")
        if receipt is not None and "kept" in receipt:
            if listing(self.names) != receipt["listing"]:
                raise UserError(f"{root} has changed since its pictures were chosen", todo="delete its receipt in results/data")
            self.names = [self.names[i] for i in receipt["kept"]]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> UInt8[Tensor, "3 height width"]:
        return read_rgb(self.root / self.names[index])


class FrameFolders:
    """Videos as folders of numbered pictures, in the layout of DAVIS and YouTube-VOS: every folder with pictures is one sequence.

    Attributes:
        root: the folder.
        names: the sequences' folders relative to `root`, sorted.
        sequences: for each the paths of its frames, sorted by number.

    Args:
        only: names of the sequences to use; all by default.

    Raises:
        UserError: no such folder, no picture in it, masks among the frames' folders, or a name in `only` that is not there.
    """

    def __init__(self, root: str | Path, extensions: Sequence[str] = EXTENSIONS, *, only: Collection[str] | None = None) -> None:
        self.root = Path(root)
        folders: dict[str, list[str]] = {}
        for name in ImageFolder(root, extensions).names:
            folders.setdefault(os.path.dirname(name), []).append(name)
        _refuse_masks(root, folders)
        missing = sorted(set(only or ()) - folders.keys())
        if missing:
            raise UserError(f"{root} has no sequence {missing[0]} ({len(missing)} of {len(only or ())} listed ones are missing)")
        self.names = sorted(folders if only is None else only)
        self.sequences = [[os.path.join(root, name) for name in sorted(folders[folder], key=_by_number)] for folder in self.names]

    def __len__(self) -> int:
        return len(self.sequences)

    def read(self, sequence: int, indices: Sequence[int]) -> UInt8[Tensor, "frames 3 height width"]:
        """Frames of one sequence, in the order asked for.

        Raises:
            UserError: a frame cannot be read or has another size than the first one.
        """
        paths = [self.sequences[sequence][i] for i in indices]
        frames = [read_rgb(path) for path in paths]
        for path, frame in zip(paths, frames, strict=True):
            if frame.shape != frames[0].shape:
                raise UserError(
                    f"{path} is {_size(frame)}, but {paths[0]} is {_size(frames[0])}", allowed="frames of one size in each folder"
                )
        return torch.stack(frames)


class FrameClips(Dataset[Tensor]):
    """All clips of some sequences: one for each start frame from which the whole clip lies in its sequence; video.py's are alike.

    `[i]` is uint8 [frames, 3, height, width] RGB. Sequences shorter than a clip have none.

    Args:
        frames: per clip. stride: from one frame of a clip to the next.

    Raises:
        UserError: no sequence is long enough; later, a frame that cannot be read or has another size.
    """

    def __init__(self, folders: FrameFolders, frames: int, stride: int) -> None:
        self.folders = folders
        self.span = range(0, frames * stride, stride) if frames > 1 else range(1)
        lengths = [len(sequence) for sequence in folders.sequences]
        self.starts = [(sequence, start) for sequence, length in enumerate(lengths) for start in range(length - self.span[-1])]
        if not self.starts:
            raise UserError(
                f"{folders.root}: a clip of {frames} frames, every {stride} frames, takes {self.span[-1] + 1}; "
                f"the longest sequence has {max(lengths)}",
                todo="take fewer frames or a smaller spacing",
            )

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> UInt8[Tensor, "frames 3 height width"]:
        sequence, start = self.starts[index]
        return self.folders.read(sequence, [start + n for n in self.span])


def check_images(
    root: str | Path,
    receipt_path: str | Path,
    layout: Literal["pictures", "sequences"] = "pictures",
    chosen: str | Path | None = None,
    fps: float | None = None,
) -> dict[str, Any]:
    """Look at a folder before anything is trained on it: list it, open some pictures, write the receipt.

    Args:
        chosen: a text file with the names of the sequences to use. fps: their frames a second, if known.

    Returns:
        The receipt: kind, name, path, files, `listing` (sha256 of all names: adding a file changes it), smallest and largest
        [width, height] of the opened pictures, and for sequences their number, their shortest and longest length, the
        names of those that were chosen (None for all), and fps.

    Raises:
        UserError: the folder is missing (named with what is there instead), empty, or a picture cannot be read.
    """
    folder = ImageFolder(root)
    sample = sorted({i * (len(folder) - 1) // (SAMPLE - 1) for i in range(SAMPLE)})
    sizes = sorted((list(folder[i].shape[:0:-1]) for i in sample), key=lambda size: size[0] * size[1])
    receipt: dict[str, Any] = {
        "kind": "images" if layout == "pictures" else "sequences",
        "name": Path(receipt_path).stem,
        "path": str(root),
        "files": len(folder),
        "listing": listing(folder.names),
        "smallest": sizes[0],
        "largest": sizes[-1],
    }
    if layout == "sequences":
        names = read_list(chosen) if chosen is not None else None
        lengths = [len(sequence) for sequence in FrameFolders(root, only=names).sequences]
        receipt |= {"sequences": len(lengths), "shortest": min(lengths), "longest": max(lengths), "chosen": names, "fps": fps}
    write_json(receipt_path, receipt)
    return receipt


def listing(names: Sequence[str]) -> str:
    """A fingerprint of a folder: which files there are, not what is in them."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def read_list(path: str | Path) -> list[str]:
    """The names in a text file, one a line, e.g. DAVIS's ImageSets/2017/train.txt.

    Raises:
        UserError: the file is missing or empty.
    """
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise UserError(f"list {path} is no text", todo="correct `sequence_list` or download it again") from error
    except FileNotFoundError as error:
        raise UserError(f"list {path} does not exist", todo="correct `sequence_list` or download it") from error
    if not names:
        raise UserError(f"list {path} is empty", todo="correct `sequence_list` or leave it out")
    return names


def _refuse_masks(root: str | Path, folders: Collection[str]) -> None:
    """A benchmark's folder holds its masks, too, which are no frames to train on."""
    masks = next((folder for folder in sorted(folders) if "Annotations" in Path(folder).parts), None)
    if masks is not None:
        frames = sorted({str(Path(f).parent) for f in folders if "JPEGImages" in Path(f).parts})
        raise UserError(
            f"{root} holds masks ({masks}), which would be taken for a video",
            allowed=", ".join(str(Path(root) / f) for f in frames) or "a folder of frames alone",
            todo="point `source` to the frames",
        )


def _existing(root: Path) -> Path:
    if root.is_dir():
        return root
    there = next(parent for parent in root.absolute().parents if parent.is_dir())
    found = sorted(p.name for p in there.iterdir() if p.is_dir())[:8]
    raise UserError(
        f"folder {root} does not exist",
        allowed=f"folders in {there}: {', '.join(found) or 'none'}",
        todo="correct `source` or download the pictures",
    )


def _pictures(root: Path, extensions: Sequence[str]) -> Iterator[str]:
    """Paths relative to `root`; links are followed, hidden files are not pictures."""
    for folder, _, files in os.walk(root, followlinks=True):
        below = os.path.relpath(folder, root)
        for file in files:
            if file.lower().endswith(tuple(extensions)) and not file.startswith("."):
                yield os.path.normpath(os.path.join(below, file))


def _by_number(name: str) -> list[str | int]:
    """A sorting key for which frame_9 comes before frame_10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def _size(image: Tensor) -> str:
    return f"{image.shape[-1]}x{image.shape[-2]}"
