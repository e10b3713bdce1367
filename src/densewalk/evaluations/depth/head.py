"""The linear depth head, and the features it sees."""

import math
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from densewalk.core.errors import UserError
from densewalk.core.hashing import derive_seed
from densewalk.evaluations.depth.settings import DepthSettings
from densewalk.models.feature_cache import Dense
from densewalk.models.interface import Network

# depth of the backbone -> the four blocks, from 0
FOUR = {12: [2, 5, 8, 11], 24: [4, 11, 17, 23], 40: [9, 19, 29, 39]}
Features = Float[Tensor, "batch channels rows columns"]
Maps = Float[Tensor, "batch 1 rows columns"]


def blocks_of(layers: Literal["last", "four"], depth: int) -> list[int]:
    """Numbers of the blocks, from 0."""
    if layers == "last":
        return [depth - 1]
    if depth < 4:
        raise UserError(f"layers four, but the backbone has {depth} blocks", todo="choose layers: last")
    return FOUR.get(depth) or [depth * (i + 1) // 4 - 1 for i in range(4)]


def channels(settings: DepthSettings, network: Network) -> int:
    """Channels of the features."""
    if settings.feature_kind == "":
        return network.dim
    return sum(network.arch.level_dims[block] for block in blocks_of(settings.layers, network.depth)) * (2 if settings.cls_token else 1)


def features_of(settings: DepthSettings, network: Network) -> Dense:
    """A function from normalized images to features: of each layer the patches, and behind them its CLS token, layer by layer."""
    if settings.feature_kind == "":
        return network.dense
    blocks = blocks_of(settings.layers, network.depth)
    if len({network.arch.level_strides[block] for block in blocks}) > 1:
        raise UserError(f"layers {settings.layers}, but the layers of {network.arch.name} differ in size", todo="choose layers: last")

    def compute(images: Tensor) -> Tensor:
        if not settings.cls_token:
            return torch.cat(network.levels(images, blocks, norm=settings.final_norm), dim=1)
        pairs = network.levels_with_cls(images, blocks, norm=settings.final_norm)
        return torch.cat([with_cls(patches, cls) for patches, cls in pairs], dim=1)

    return compute


def with_cls(patches: Float[Tensor, "batch dim rows columns"], cls: Float[Tensor, "batch dim"]) -> Features:
    """Patches with the CLS token behind every one: [batch, 2 dim, rows, columns]."""
    return torch.cat([patches, cls[:, :, None, None].expand_as(patches)], dim=1)


def bin_depths(settings: DepthSettings) -> Float[Tensor, " bins"]:
    """The depths that are mixed, in meters, both ends included."""
    low, high = settings.min_depth, settings.resolved().max_depth
    assert high is not None
    if settings.bin_spacing == "log":
        return torch.linspace(math.log(low), math.log(high), settings.bins).exp()
    return torch.linspace(low, high, settings.bins)


def mix_bins(
    scores: Float[Tensor, "batch bins rows columns"], depths: Float[Tensor, " bins"], weights: Literal["linear", "softmax", "sigmoid"]
) -> Maps:
    """Depth = sum_k w_k b_k, w = (relu(x) + 0.1) or sigmoid(x), divided by its sum over the bins, or softmax(x).

    Computed as (sum_k v_k b_k) / (sum_k v_k), without the normalized weights.
    """
    if weights == "softmax":
        values = (scores - scores.amax(1, keepdim=True)).exp()
    else:
        values = scores.relu() + 0.1 if weights == "linear" else scores.sigmoid()
    both = torch.stack([depths, torch.ones_like(depths)])[:, :, None, None]
    mixed, total = F.conv2d(values, both.to(values.dtype)).split(1, dim=1)
    return mixed / total


class DepthHead(nn.Module):
    """Features to a map of depths in meters, `upsample` times as large as the features.

        depth = mix_bins(W interpolate(norm(x)) + b) = mix_bins(interpolate(W norm(x) + b))

    Both are equal because the weights of an interpolation add up to one; the right one, which is computed here, takes a sixteenth of
    the products for `upsample` 4. W starts from N(0, 0.01), b from 0.
    """

    depths: Tensor

    def __init__(self, settings: DepthSettings, dim: int, seed: int) -> None:
        super().__init__()
        self.scale, self.weights = settings.upsample, settings.bin_weights
        self.norm = nn.BatchNorm2d(dim) if settings.batch_norm else nn.Identity()
        self.linear = nn.Conv2d(dim, settings.bins, 1)
        nn.init.normal_(self.linear.weight, std=0.01, generator=torch.Generator().manual_seed(derive_seed(seed, "depth head")))
        nn.init.zeros_(self.linear.bias)  # type: ignore[arg-type]
        self.register_buffer("depths", bin_depths(settings), persistent=False)

    def forward(self, x: Features) -> Float[Tensor, "batch 1 map_rows map_columns"]:
        """The depth of every place."""
        scores = self.linear(self.norm(x))
        if self.scale > 1:
            scores = F.interpolate(scores, scale_factor=self.scale, mode="bilinear")
        return mix_bins(scores, self.depths, self.weights)


# -- from an image to whole patches and back ---------------------------------------------------------------------------


def padding(length: int, patch: int) -> tuple[int, int]:
    """Zeros before and after a side, so that it becomes a multiple of the patch: P = -length mod patch, P // 2 of them before."""
    total = -length % patch
    return total // 2, total - total // 2


def pad_to_patches(images: Float[Tensor, "batch 3 height width"], patch: int) -> Float[Tensor, "batch 3 padded_height padded_width"]:
    """Normalized images with zeros around them."""
    rows, columns = padding(images.shape[-2], patch), padding(images.shape[-1], patch)
    return F.pad(images, (*columns, *rows))


def resize_map(
    maps: Maps, size: tuple[int, int], patch: int, *, crop_padding: bool, image: tuple[int, int] | None = None
) -> Float[Tensor, "batch 1 height width"]:
    """Bilinear to `size`; with `crop_padding` to the padded image's size first, whose padding is then cut off.

    image: size of what the network saw, before its padding; by default `size`.
    """
    height, width = image or size
    if crop_padding:
        (top, bottom), (left, right) = padding(height, patch), padding(width, patch)
        maps = F.interpolate(maps, (height + top + bottom, width + left + right), mode="bilinear")
        maps = maps[..., top : top + height, left : left + width]
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size, mode="bilinear")


def at_image(
    settings: DepthSettings, maps: Maps, flipped: Maps | None, size: tuple[int, int], patch: int, image: tuple[int, int] | None = None
) -> Float[Tensor, "batch 1 height width"]:
    """Clamped depth at a size from the head's maps; `flipped`: of the mirrored image, as it came out; `image`: as in `resize_map`."""
    low, high = settings.min_depth, settings.resolved().max_depth
    resized = partial(resize_map, size=size, patch=patch, crop_padding=bool(settings.resolved().crop_padding), image=image)
    if flipped is None:
        return resized(maps).clamp(low, high)
    if settings.flip == "map":
        return resized((maps + flipped.flip(-1)) / 2).clamp(low, high)
    one, other = resized(maps.clamp(low, high)), resized(flipped.clamp(low, high))
    return (one + other.flip(-1)) / 2
