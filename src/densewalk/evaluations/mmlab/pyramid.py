"""Feature pyramids: from a plain ViT, whose maps all have the stride of a patch, and from the stages of a hierarchical network."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from mmdet.models.necks import FPN
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from densewalk.evaluations.mmlab.experiment import scales

Maps = Sequence[Float[Tensor, "batch _dim _rows _columns"]]


@MODELS.register_module()
class SimplePyramid(BaseModule):
    """ViTDet's pyramid, from the last map alone (https://arxiv.org/abs/2203.16527, section 3): per level (transposed)
    convolutions or pooling, then a 1x1 and a 3x3 convolution, each with LayerNorm; the fifth level is the fourth, halved.
    """

    def __init__(self, dim: int, patch: int, *, channels: int = 256) -> None:
        super().__init__()
        rescaled = [rescale(dim, scale, ChannelNorm, narrow=True) for scale in scales(patch)]
        self.rescale = nn.ModuleList(module for module, _ in rescaled)
        self.project = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, channels, 1, bias=False),
                ChannelNorm(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                ChannelNorm(channels),
            )
            for _, width in rescaled
        )

    def forward(self, maps: Maps) -> tuple[Float[Tensor, "batch channels _rows _columns"], ...]:
        """Five levels, finest first, float32 (see `full_precision`)."""
        levels = [project(change(maps[-1])) for change, project in zip(self.rescale, self.project, strict=True)]
        return full_precision([*levels, F.max_pool2d(levels[-1], 1, stride=2)])


@MODELS.register_module()
class LevelPyramid(BaseModule):
    """iBOT's pyramid: the k-th of four maps is brought to the k-th level's size, then an FPN joins the levels
    (https://github.com/bytedance/ibot, evaluation/object_detection; the same rescaling is in mmsegmentation's Feature2Pyramid).
    """

    def __init__(self, dim: int, patch: int, *, channels: int = 256) -> None:
        super().__init__()
        self.rescale = nn.ModuleList(rescale(dim, scale, nn.BatchNorm2d, narrow=False)[0] for scale in scales(patch))
        self.fpn = FPN(in_channels=[dim] * 4, out_channels=channels, num_outs=5)

    def forward(self, maps: Maps) -> tuple[Float[Tensor, "batch channels _rows _columns"], ...]:
        """Five levels, finest first, float32 (see `full_precision`)."""
        return full_precision(self.fpn([change(m) for change, m in zip(self.rescale, maps, strict=True)]))


@MODELS.register_module()
class StagePyramid(FPN):
    """An FPN on four stages, whose strides double (https://arxiv.org/abs/1612.03144); the fifth level is the fourth, halved."""

    def __init__(self, dims: Sequence[int], *, channels: int = 256) -> None:
        super().__init__(in_channels=list(dims), out_channels=channels, num_outs=5)

    def forward(self, maps: Maps) -> tuple[Float[Tensor, "batch channels _rows _columns"], ...]:
        """Five levels, finest first, float32 (see `full_precision`)."""
        return full_precision(super().forward(maps))


def rescale(dim: int, scale: float, norm: type[nn.Module], *, narrow: bool) -> tuple[nn.Module, int]:
    """Layers that change a map's resolution by `scale`, and the width of what they give; `narrow` halves it at each doubling."""
    if scale < 1:
        size = round(1 / scale)
        return nn.MaxPool2d(size, size), dim
    layers: list[nn.Module] = []
    width = dim
    while scale > 1:
        wider, width = width, width // 2 if narrow else width
        if layers:
            layers += [norm(wider), nn.GELU()]
        layers.append(nn.ConvTranspose2d(wider, width, 2, 2))
        scale /= 2
    return nn.Sequential(*layers), width


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, maps: Float[Tensor, "batch dim rows columns"]) -> Float[Tensor, "batch dim rows columns"]:
        """Normalize every position on its own."""
        return super().forward(maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def full_precision(levels: Maps) -> tuple[Float[Tensor, "batch _dim _rows _columns"], ...]:
    """The levels in float32: mmdet gives boxes the type of the maps they are pooled from, and a coordinate around 1000 px is
    off by up to 4 px in bfloat16."""
    return tuple(level.to(torch.float32) for level in levels)
