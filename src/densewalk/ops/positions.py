"""Fixed position embeddings of sines and cosines."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor


def sincos_positions(dim: int, grid: tuple[int, int], *, first: Literal["column", "row"] = "column") -> Float[Tensor, "patches dim"]:
    """Sines and cosines of the coordinates of each patch, in raster order.

        omega[j] = 10000 ** (-j / (dim / 4)),  j = 0 ... dim / 4 - 1
        position[row, column] = [sin(a omega), cos(a omega), sin(b omega), cos(b omega)]

    Args:
        first: `column`: a is the column, b the row (MAE). `row`: a is the row, b the column (MoCo v3).
    """
    if dim % 4:
        raise ValueError(f"sines and cosines of two coordinates need a multiple of 4 dimensions, got {dim}")
    omega = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    rows, columns = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in grid), indexing="ij")
    angles = [c.flatten()[:, None] * omega for c in ((columns, rows) if first == "column" else (rows, columns))]
    return torch.cat([function(angle) for angle in angles for function in (torch.sin, torch.cos)], dim=1).float()
