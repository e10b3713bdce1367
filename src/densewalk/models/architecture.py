"""Names and shapes of vision transformers.

Names are `vit_{size}_patch{8,14,16}[_reg4][_swiglu][_rope]`, or `timm/NAME` for the network that timm calls NAME.
Patch 14 means DINOv2's family, except for MAE's `huge`: LayerScale, and position embeddings of 37 x 37 patches (518 px); the others
have 224 px embeddings. `_rope` means DINOv3's family: LayerScale, and rotary positions in every attention instead of a table.
"""

import re
from dataclasses import dataclass
from typing import Literal

Interpolation = Literal["offset", "antialias", "size"]
# width, depth, heads
SIZES = {
    "nano": (48, 2, 6),  # nano and micro: for tests and the demo
    "micro": (96, 4, 6),
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "small12": (384, 12, 12),  # MoCo-v3's and SLIP's
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
    "huge20": (1280, 32, 20),  # DINOv3's
    "giant": (1536, 40, 24),  # DINOv2's
}
_NAME = re.compile(r"vit_(?P<size>[a-z]+\d*)_patch(?P<patch>8|14|16)(?P<reg>_reg4)?(?P<swiglu>_swiglu)?(?P<rope>_rope)?")


@dataclass(frozen=True)
class Architecture:
    """The shape of a network; `timm_models.named_architecture` makes it from a name."""

    name: str
    dim: int
    depth: int
    heads: int
    patch: int
    image: int = 224
    registers: int = 0
    layer_scale: bool = False
    interpolation: Interpolation = "offset"
    swiglu: bool = False
    rope: bool = False
    periods: tuple[float, ...] | None = None  # of rotary positions, if not 100 ** (4 k / head_dim): Meta's are rounded to bfloat16

    @property
    def hidden(self) -> int:
        """Width of the MLPs' hidden layer; DINOv2's gated ones have two thirds of 4 widths."""
        return -(-(8 * self.dim // 3) // 8) * 8 if self.swiglu and not self.rope else 4 * self.dim


def architecture_named(name: str) -> Architecture | None:
    """The architecture of a name of this project's; None of any other name."""
    match = _NAME.fullmatch(name)
    if match is None or match["size"] not in SIZES:
        return None
    rope = match["rope"] is not None
    dinov2 = match["patch"] == "14" and match["size"] != "huge" and not rope
    return Architecture(
        name,
        *SIZES[match["size"]],
        patch=int(match["patch"]),
        image=518 if dinov2 else 224,
        registers=4 if match["reg"] else 0,
        layer_scale=dinov2 or rope,
        interpolation="antialias" if match["reg"] else "offset",
        swiglu=match["size"] == "giant" or match["swiglu"] is not None,
        rope=rope,
    )
