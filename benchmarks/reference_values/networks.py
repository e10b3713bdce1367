"""Recorded networks: their architecture by their tensors' shapes, and which of their updates say anything."""

import math
from collections.abc import Callable, Mapping

from torch import Tensor

from densewalk.models.architecture import Architecture
from densewalk.models.loading import to_timm

NOISE = 1e-6  # gradients below are rounding: Adam makes whole steps of their signs


def architecture(weights: Mapping[str, Tensor], heads: int, hidden: int | None = None) -> Architecture:
    """The vision transformer that a state dict in a release's names is of; hidden: width of its MLPs, if not the usual one."""
    own = to_timm(weights)
    registers = own["reg_token"].shape[1] if "reg_token" in own else 0
    dim, _, patch, _ = own["patch_embed.proj.weight"].shape
    positions = own["pos_embed"].shape[1] - (0 if registers else 1)
    gated = any(".mlp.w12." in k for k in weights)
    return Architecture(
        "recorded",
        dim=dim,
        depth=1 + max(int(k.split(".")[1]) for k in own if k.startswith("blocks.")),
        heads=heads,
        patch=patch,
        image=patch * math.isqrt(positions),
        registers=registers,
        layer_scale=any(k.endswith("ls1.gamma") for k in own),
        swiglu=gated,
        hidden_width=hidden,
    )


def choose_heads(weights: Mapping[str, Tensor], error: Callable[[int], float]) -> int:
    """The number of heads, which no tensor's shape tells: of all that divide the width the one that gives the recorded features."""
    dim = weights["patch_embed.proj.weight"].shape[0]
    return min((n for n in range(1, dim + 1) if dim % n == 0 and n <= 32), key=error)


def sure_entries(sure: dict[str, Tensor], name: str, gradient: Tensor) -> None:
    """Keep in `sure` the entries whose gradient has been more than rounding in every step so far."""
    now = (gradient.abs() > NOISE) & (gradient.abs() > 1e-4 * gradient.abs().max())
    sure[name] = sure[name] & now if name in sure else now
