"""Images as tensors: read as uint8 RGB, and normalized."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from densewalk.core.imagenet import IMAGENET_MEAN, IMAGENET_STD
from densewalk.data.image_files import read_image


def normalize(x: Float[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch 3 height width"]:
    """Scale RGB in 0..1 to ImageNet's zero mean and unit standard deviation."""
    mean, std = (torch.tensor(values, dtype=x.dtype, device=x.device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (x - mean) / std


def read_rgb(path: str | Path) -> UInt8[Tensor, "3 height width"]:
    """Read an image as RGB, upright, channels last in memory; see `read_image`."""
    return torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1)
