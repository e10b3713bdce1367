"""Masks of the CLS token's attention, and DINO's Jaccard index of them."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

VOID = 255  # VOC's label of pixels that belong to no object for certain


def top_mass_mask(attention: Float[Tensor, " patches"], mass: float) -> Bool[np.ndarray, " patches"]:
    """The smallest set of patches with at least `mass` of the attention: in ascending order, those after 1 - mass is passed."""
    values, order = (attention / attention.sum()).sort(stable=True)
    mask = torch.empty_like(order, dtype=torch.bool)
    mask[order] = values.cumsum(0) > 1 - mass
    return mask.cpu().numpy()


def head_masks(
    attention: Float[Tensor, "heads rows columns"], mass: float, patch: int, width: int, height: int
) -> Bool[np.ndarray, "heads height width"]:
    """Each head's mask at the image's size; every pixel has its patch's value."""
    masks = np.stack([top_mass_mask(head.flatten(), mass).reshape(head.shape) for head in attention])
    return masks.repeat(patch, axis=1).repeat(patch, axis=2)[:, :height, :width]


def mask_jaccard(objects: Integer[np.ndarray, "height width"], masks: Bool[np.ndarray, "heads height width"]) -> float:
    """Mean over the objects of the best IoU with any head's mask (facebookresearch/dino#54); NaN without an object.

    Pixels of VOID belong to no object, but count in the union where a mask holds them, as in the issue's code.
    """
    best = []
    for number in np.unique(objects):
        if number not in (0, VOID):
            truth = objects == number
            best.append(((truth & masks).sum((1, 2)) / (truth | masks).sum((1, 2))).max())
    return float(np.mean(best)) if best else float("nan")
