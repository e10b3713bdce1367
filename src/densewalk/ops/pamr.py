"""Pixel-adaptive mask refinement (PAMR): label scores move to pixels of similar color. It has no parameters.

    refined = pamr(images, scores, iterations=10, dilations=(1, 2, 4, 8, 12, 24))

The neighbors of a pixel p are 8 directions at each dilation; beyond the border lies its nearest pixel. For color channel c,

    k_c(p, r) = -|x_c(p) - x_c(r)| / (1e-8 + 0.1 s_c(p))        s_c(p): unbiased standard deviation over the 9 |dilations| pixels
    a(p, .)   = softmax over all neighbors of mean_c k_c(p, .)
    m(p)     <- sum_r a(p, r) m(r)                              `iterations` times; p itself has no weight

Source: Araslanov and Roth (https://arxiv.org/abs/2005.08104), section 3.3; s_c counts p once for each dilation, as their code does.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

DIRECTIONS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if (down, right) != (0, 0)]
SMALLEST = 1e-8
SHARE = 0.1


def pamr(
    images: Float[Tensor, "batch 3 height width"],
    scores: Float[Tensor, "batch labels rows columns"],
    *,
    iterations: int,
    dilations: Sequence[int],
) -> Float[Tensor, "batch labels height width"]:
    """Refine scores of any size, which are enlarged to the images' (bilinear, corners aligned).

    A constant stays as it is, the sum over the labels is kept, and no value leaves the range of its label's scores.

    Args:
        images: colors of any scale: what multiplies or shifts a channel changes nothing.
    """
    height, width = images.shape[-2:]
    if scores.shape[-2:] != images.shape[-2:]:
        scores = F.interpolate(scores, (height, width), mode="bilinear", align_corners=True)
    weights = affinities(images, dilations)
    for _ in range(iterations):
        refined = torch.zeros_like(scores, memory_format=torch.contiguous_format)
        for weight, neighbor in zip(weights.unbind(1), neighbors(scores, dilations), strict=True):
            refined.addcmul_(weight[:, None], neighbor)
        scores = refined
    return scores


def affinities(images: Float[Tensor, "batch 3 height width"], dilations: Sequence[int]) -> Float[Tensor, "batch neighbors height width"]:
    """a(p, r) of every pixel and neighbor; the order of the neighbors is that of `neighbors`."""
    scale = SMALLEST + SHARE * color_deviation(images, dilations)
    return torch.stack([-((images - near).abs() / scale).mean(1) for near in neighbors(images, dilations)], dim=1).softmax(1)


def color_deviation(images: Float[Tensor, "batch 3 height width"], dilations: Sequence[int]) -> Float[Tensor, "batch 3 height width"]:
    """s_c(p)."""
    count = (len(DIRECTIONS) + 1) * len(dilations)
    total, squares = len(dilations) * images, torch.zeros_like(images)
    for near in neighbors(images, dilations):
        total = total + near
    mean = total / count
    for near in neighbors(images, dilations):
        squares += (near - mean).square()
    squares += len(dilations) * (images - mean).square()
    return (squares / (count - 1)).sqrt()


def neighbors(
    maps: Float[Tensor, "batch channels height width"], dilations: Sequence[int]
) -> Iterator[Float[Tensor, "batch channels height width"]]:
    """The maps moved so that each pixel holds its neighbor's value: 8 directions of the first dilation, of the second, ..."""
    height, width = maps.shape[-2:]
    border = max(dilations)
    padded = F.pad(maps, (border,) * 4, mode="replicate")
    for dilation in dilations:
        for down, right in DIRECTIONS:
            top, left = border + dilation * down, border + dilation * right
            yield padded[..., top : top + height, left : left + width]
