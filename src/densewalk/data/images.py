"""Still pictures: reading files of any kind the same way, folders of pictures, folders of frames.

folder = ImageFolder("data/coco/train2017")
x = normalize(folder[0] / 255)                    # what every network of this project takes
clips = FrameFolders("data/DAVIS/JPEGImages/480p")
clip = clips.read(0, [0, 4, 8])                   # three frames of the first sequence
"""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int64, Integer, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from densewalk.core.errors import UserError
from densewalk.core.imagenet import IMAGENET_MEAN, IMAGENET_STD

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


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
