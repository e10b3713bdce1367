"""The inpainter: a convolutional network that predicts hidden flow from the flow around it and the image."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from densewalk.methods.cis.losses import Flow, Mask

GAIN = 10.0  # flow comes in units of `flow_scale`: a few pixels are some hundredths
SLOPE = 0.1  # of leaky rectifiers
STAGES = 4  # each halves the sides


class Inpainter(nn.Module):
    """I(x, v, hidden): an encoder of the image and one of the flow, a decoder of both with skip connections, the paper's shape.

    Flow enters as [v, 1, 1 - hidden], v the visible flow. There is no normalization, which would take away how fast things move. The
    network learns what differs from the mean of the visible flow, so that a camera's pan is known from the first step.

    Args:
        width: channels of an encoder's first stage; the second has twice, the others four times as many.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 4 * width]
        self.image, self.flow = (_encoder(channels, widths) for channels in (3, 4))
        self.context = nn.Sequential(
            _layer(2 * widths[-1], widths[-1], 3), *(_layer(widths[-1], widths[-1], 3, dilation=d) for d in (2, 4))
        )
        ups = [(widths[3] + 2 * widths[2], widths[2]), (widths[2] + 2 * widths[1], widths[1]), (widths[1] + 2 * widths[0], widths[0])]
        self.ups = nn.ModuleList(_layer(inputs, outputs, 3) for inputs, outputs in ups)
        self.last = nn.Conv2d(widths[0], 2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, image: Float[Tensor, "batch 3 height width"], visible: Flow, hidden: Mask) -> Flow:
        """Flow everywhere. image: in -0.5..0.5. visible: 0 where hidden is 1."""
        given = torch.cat([GAIN * visible, torch.ones_like(hidden), 1 - hidden], dim=1)
        maps = [torch.cat(pair, dim=1) for pair in zip(_stages(self.image, image), _stages(self.flow, given), strict=True)]
        x = self.context(maps.pop())
        for up, skip in zip(self.ups, reversed(maps), strict=True):
            x = up(torch.cat([F.interpolate(x, skip.shape[-2:], mode="bilinear"), skip], dim=1))
        return mean_visible(visible, hidden) + F.interpolate(self.last(x), image.shape[-2:], mode="bilinear") / GAIN


def mean_visible(visible: Flow, hidden: Mask) -> Float[Tensor, "batch 2 1 1"]:
    """Mean of the flow where it is shown, weighted by how much; nearly 0 where less than a pixel is."""
    return visible.sum(dim=(2, 3), keepdim=True) / ((1 - hidden).sum(dim=(2, 3), keepdim=True) + 1)


def _encoder(channels: int, widths: list[int]) -> nn.ModuleList:
    sides = (7, 5, 3, 3)
    inputs = [channels, *widths]
    return nn.ModuleList(_layer(inputs[i], inputs[i + 1], sides[i], stride=2) for i in range(STAGES))


def _layer(inputs: int, outputs: int, side: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, side, stride=stride, padding=dilation * (side // 2), dilation=dilation)
    nn.init.kaiming_normal_(conv.weight, a=SLOPE)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.LeakyReLU(SLOPE))


def _stages(layers: nn.ModuleList, x: Tensor) -> list[Tensor]:
    found = []
    for layer in layers:
        x = layer(x)
        found.append(x)
    return found
