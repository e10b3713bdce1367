"""Vision transformers with a decoder of masks from an image and its optical flow: what `method: cis` exports.

    m = backbone.motion_masks(images, flow)         # [batch, 1, height, width] in 0..1, of one of two sides

A mask has two sides. The object is the one that keeps away from the frame's border (`object_side`).

The decoder's tensors lie in the backbone's file, each with the prefix `motion_decoder.`; its width follows from their shapes.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from densewalk.core.errors import UserError

PREFIX = "motion_decoder."  # of the tensors' names in the file
TEMPERATURE = 10.0  # the two logits are divided by it
GROUPS = 8  # of group normalization: the width is a multiple
LEAST_DEVIATION = 1e-6  # of flow that is the same everywhere
THRESHOLD = 0.1  # above which a soft mask is one side
BORDER, MOST = 2, 0.6  # pixels of the border; share of it from which on the other side is the object
Flow = Float[Tensor, "batch 2 height width"]
Masks = Float[Tensor, "batch 1 height width"]
Side = Bool[np.ndarray, "height width"]


def standardize_flow(flow: Flow) -> Flow:
    """(u - mean) / std of each image and each of the two components, std without Bessel's correction."""
    mean = flow.mean(dim=(2, 3), keepdim=True)
    deviation = flow.std(dim=(2, 3), keepdim=True, correction=0)
    return (flow - mean) / deviation.clamp(min=LEAST_DEVIATION)


class MotionDecoder(nn.Module):
    """Two logits for each pixel, from a map of features and standardized flow.

    Flow is reduced to 1/2, 1/4 and 1/8 of the image's sides. At 1/8 it meets the features; dilated convolutions look at the whole, and
    the way back to 1/4 takes the flow there again. The last features have mean 0 and variance 1 over each image, so that what grows fast
    is the difference between pixels, not a mask of all or nothing.

    Args:
        dim: channels of the features. width: channels at 1/4, a multiple of 8; twice as many at 1/8.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        if width % GROUPS:
            raise AssertionError(f"a decoder {width} wide: no multiple of {GROUPS}")
        self.flow_half = _layer(2, width, 5, stride=2)
        self.flow_quarter = _layer(width, width, 3, stride=2)
        self.flow_eighth = _layer(width, 2 * width, 3, stride=2)
        self.features = nn.Conv2d(dim, 2 * width, 1)
        self.context = nn.Sequential(_layer(4 * width, 2 * width, 3), *(_layer(2 * width, 2 * width, 3, dilation=d) for d in (2, 4, 8)))
        self.merge = nn.Sequential(nn.Conv2d(3 * width, width, 3, padding=1, bias=False), nn.InstanceNorm2d(width))
        self.logits = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, features: Float[Tensor, "batch dim rows columns"], flow: Flow) -> Float[Tensor, "batch 2 height width"]:
        """Logits of both sides at the size of the flow."""
        quarter = self.flow_quarter(self.flow_half(flow))  # [b, w, h/4, w/4]
        eighth = self.flow_eighth(quarter)
        seen = F.interpolate(self.features(features), eighth.shape[-2:], mode="bilinear")
        coarse = self.context(torch.cat([eighth, seen], dim=1))
        x = torch.cat([quarter, F.interpolate(coarse, quarter.shape[-2:], mode="bilinear")], dim=1)
        return F.interpolate(self.logits(self.merge(x)), flow.shape[-2:], mode="bilinear")


def _layer(inputs: int, outputs: int, side: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, side, stride=stride, padding=dilation * (side // 2), dilation=dilation, bias=False)
    return nn.Sequential(conv, nn.GroupNorm(GROUPS, outputs), nn.ReLU())


def masks_of(logits: Float[Tensor, "batch 2 height width"]) -> Masks:
    """softmax(logits / 10), of the first."""
    return (logits.float() / TEMPERATURE).softmax(dim=1)[:, :1]


def border_share(mask: Side) -> float:
    """Share of the frame's border, 2 pixels wide, that a mask covers.

    The four strips are counted one by one, as in the released code: pixels of the corners count twice.
    """
    strips = [mask[:BORDER], mask[-BORDER:], mask[:, :BORDER], mask[:, -BORDER:]]
    return sum(int(strip.sum()) for strip in strips) / sum(strip.size for strip in strips)


def object_side(mask: Side) -> Side:
    """The mask, or what it leaves if it covers three fifths of the border or more."""
    return mask if border_share(mask) < MOST else ~mask


def read_decoder(weights: dict[str, Tensor], path: str) -> tuple[int | None, dict[str, Tensor]]:
    """The width of the decoder in a file and its tensors, which are removed from `weights`; None and nothing if there is none.

    Raises:
        UserError: the width cannot be told.
    """
    own = {name.removeprefix(PREFIX): weights.pop(name) for name in list(weights) if name.startswith(PREFIX)}
    if not own:
        return None, {}
    first = own.get("logits.weight")
    if first is None or first.ndim != 4 or first.shape[1] % GROUPS or not first.shape[1]:
        found = "is missing" if first is None else f"is {' x '.join(map(str, first.shape))}"
        raise UserError(f"{path}: {PREFIX}logits.weight {found}", allowed=f"2 x width x 3 x 3, width a multiple of {GROUPS}")
    return first.shape[1], own
