"""Feature maps as images of how similar each place is to one of them."""

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F


def draw_similarity(features: Float[Tensor, "batch dim rows columns"], side: int) -> Float[Tensor, "batch 3 {side} {side}"]:
    """Cosine of each place with the middle one, as gray images: black -1, white 1."""
    features = F.normalize(features.float(), dim=1)
    middle = features[:, :, features.shape[2] // 2, features.shape[3] // 2, None, None]
    cosine = (features * middle).sum(dim=1, keepdim=True)
    return F.interpolate((cosine + 1) / 2, (side, side)).expand(-1, 3, -1, -1)


def to_row(images: Float[Tensor, "batch 3 height width"]) -> tuple[list[UInt8[np.ndarray, "height width 3"]], list[np.ndarray]]:
    """Images in 0..1 as 8-bit pixels without labels: a row of `strips.write_rows`."""
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return list(pixels), list(0 * pixels[..., 0])
