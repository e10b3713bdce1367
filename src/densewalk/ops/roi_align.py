"""Resample regions of feature maps to grids of equal size (RoIAlign of Mask R-CNN, https://arxiv.org/abs/1703.06870)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.ops import roi_align


def aligned_patches(
    maps: Float[Tensor, "maps channels rows columns"],
    numbers: Int[Tensor, " boxes"],
    boxes: Float[Tensor, "boxes 4"],
    grid: int | tuple[int, int],
) -> Float[Tensor, "boxes patches channels"]:
    """The patches of a grid of `grid` rows and columns laid over each box, in raster order.

    A patch is the mean of the map, interpolated linearly, at ceil(height / rows) x ceil(width / columns) points of its share of the box.
    The map's value [i, j] is at x = j + 1/2, y = i + 1/2.

    Args:
        numbers: of each box's map.
        boxes: left, top, right, bottom in patches of the map.
        grid: rows and columns, or the number of both.
    """
    regions = roi_align(maps, torch.cat([numbers[:, None], boxes], dim=1).to(maps.dtype), grid, aligned=True)
    return regions.flatten(2).transpose(1, 2)
