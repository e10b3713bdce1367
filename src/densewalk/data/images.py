"""Read image and mask files; normalize images. What cannot be read is a UserError."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Integer, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from densewalk.core.errors import UserError
from densewalk.core.imagenet import IMAGENET_MEAN, IMAGENET_STD

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def normalize(x: Float[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch 3 height width"]:
    """Scale RGB in 0..1 to ImageNet's zero mean and unit standard deviation."""
    mean, std = (torch.tensor(values, dtype=x.dtype, device=x.device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (x - mean) / std


def read_rgb(path: str | Path) -> UInt8[Tensor, "3 height width"]:
    """Read an image as RGB, upright (EXIF), channels last in memory.

    Gray is repeated in the three channels, palettes are looked up, transparency is dropped, 16 bits become 8.
    """
    image = ImageOps.exif_transpose(open_image(path))
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise UserError(f"{path} has 32-bit pixels", allowed="8 or 16 bits per channel")
    elif image.mode == "P":
        image = image.convert("RGBA")  # a palette may hold transparent colors
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def read_stored(path: str | Path) -> Image.Image:
    """Read an image as RGB as it is stored: annotations in pixels refer to that."""
    return open_image(path).convert("RGB")


def read_mask(path: str | Path) -> Integer[np.ndarray, "height width"]:
    """Read the pixel values of an indexed or grayscale image, uint8 or wider, never its colors."""
    image = open_image(path)
    if image.mode not in ("P", "L", "1", "I") and not image.mode.startswith("I;16"):
        allowed = "indexed or grayscale PNG whose pixel values are the labels"
        raise UserError(f"mask {path} is a color image ({image.mode})", allowed=allowed)
    mask = np.asarray(image)
    return mask.astype(np.uint8) if mask.dtype == bool else mask


def read_image_header(path: str | Path) -> tuple[tuple[int, int], str]:
    """Read width and height, and Pillow's mode, without decoding the pixels."""
    try:
        with Image.open(path) as image:
            return image.size, image.mode
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as an image: {error}", todo="download it again") from error


def open_image(path: str | Path) -> Image.Image:
    """Decode a file completely, so that a truncated one is an error here and not later."""
    try:
        image = Image.open(path)
        image.load()
    except FileNotFoundError as error:
        raise UserError(f"image {path} does not exist", todo="correct the path or download it") from error
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as an image: {error}", todo="download it again or remove it") from error
    return image
