"""Images as tensors: read as uint8 RGB, and normalized."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from densewalk.core.imagenet import IMAGENET, PixelStatistics
from densewalk.data.image_files import read_image


def normalize(x: Float[Tensor, "*batch 3 height width"], statistics: PixelStatistics = IMAGENET) -> Float[Tensor, "*batch 3 height width"]:
    """(x - mean) / std of RGB in 0..1, by the statistics of the network that takes it; training knows ImageNet's only."""
    mean, std = (torch.tensor(values, dtype=x.dtype, device=x.device)[:, None, None] for values in statistics)
    return (x - mean) / std


def denormalize(
    x: Float[Tensor, "*batch 3 height width"], statistics: PixelStatistics = IMAGENET
) -> Float[Tensor, "*batch 3 height width"]:
    """RGB in 0..1 of normalized images."""
    mean, std = (torch.tensor(values, dtype=x.dtype, device=x.device)[:, None, None] for values in statistics)
    return x * std + mean


def read_rgb(path: str | Path) -> UInt8[Tensor, "3 height width"]:
    """Read an image as RGB, upright, channels last in memory; see `read_image`."""
    return torch.from_numpy(np.array(read_image(path))).permute(2, 0, 1)
