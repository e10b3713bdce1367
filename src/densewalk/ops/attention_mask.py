"""Foreground masks from the CLS token's attention."""

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torchvision.transforms.v2 import functional as tv


def foreground_masks(attention: Float[Tensor, "images rows columns"], mass: float) -> Bool[Tensor, "images rows columns"]:
    """The patches with the largest attention that hold the share `mass` of it.

    The attention is blurred (7 x 7, standard deviation 0.6 patches); small groups are dropped. Source: NeCo's released code.
    """
    blurred = tv.gaussian_blur(attention[:, None], [7, 7], [0.6, 0.6]).flatten(1)
    ascending, order = blurred.sort(dim=1)
    kept = (ascending / ascending.sum(dim=1, keepdim=True)).cumsum(dim=1) > 1 - mass
    masks = torch.zeros_like(kept).scatter(1, order, kept).view(attention.shape)
    return torch.stack([torch.from_numpy(drop_small_groups(mask)) for mask in masks.cpu().numpy()]).to(attention.device)


def drop_small_groups(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Remove connected groups of one or two patches; neighbors are the eight around a patch."""
    groups, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    return mask & (np.bincount(groups.ravel()) > 2)[groups]


def top_mass_mask(attention: Float[Tensor, "batch patches"], mass: float) -> Bool[Tensor, "batch patches"]:
    """The smallest set of patches that holds the share `mass` of each row's attention.

    for patch in sorted(patches, key=attention, reverse=True):
        if sum(attention of the patches before it) < mass * sum(attention):
            keep patch
    """
    values, order = attention.sort(dim=-1, descending=True)
    before = values.cumsum(dim=-1) - values
    kept = before < mass * attention.sum(dim=-1, keepdim=True)
    return torch.zeros_like(kept).scatter(1, order, kept)
