"""Change a backbone: stochastic depth, registers, positions, frozen parts."""

import math
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from densewalk.core.errors import UserError
from densewalk.models.backbone import Backbone, interpolate_positions
from densewalk.models.timm_models import architecture_without_registers
from densewalk.ops.positions import sincos_positions


def with_drop_path(backbone: Backbone, rate: float) -> Backbone:
    """A copy with stochastic depth."""
    copy = Backbone(backbone.arch, drop_path=rate)
    copy.load_state_dict(backbone.state_dict())
    return copy


def without_registers(backbone: Backbone) -> Backbone:
    """A copy without register tokens. CLS keeps the position that is folded into it."""
    plain = Backbone(architecture_without_registers(backbone.arch))
    weights = backbone.vit.state_dict()
    del weights["reg_token"]
    if not backbone.arch.rope:
        weights["pos_embed"] = torch.cat([torch.zeros_like(weights["cls_token"]), weights["pos_embed"]], dim=1)
    plain.vit.load_state_dict(weights)
    return plain


@torch.no_grad()
def with_fixed_positions(backbone: Backbone, pixels: int, *, first: Literal["column", "row"]) -> Backbone:
    """A copy whose table of positions is that of square images of so many pixels: sines and cosines that do not learn; CLS has none.

    Raises:
        UserError: the network has rotary positions, or was loaded from a file with a table of its own.
    """
    if backbone.arch.rope:
        raise UserError(f"positions: sincos, but {backbone.arch.name} has rotary positions", todo="set positions: kept")
    table = backbone.vit.pos_embed
    if backbone.report is not None and not torch.allclose(table, _sincos_table(backbone, first), atol=1e-3):
        found = f"positions: sincos would replace the learned positions of {backbone.report.source}"
        raise UserError(found, todo="set positions: kept, which trains them on")
    copy = Backbone(replace(backbone.arch, image=pixels // backbone.patch * backbone.patch))
    copy.load_state_dict({**backbone.state_dict(), "vit.pos_embed": _sincos_table(copy, first)})
    copy.vit.pos_embed.requires_grad_(False)
    copy.report = backbone.report
    return copy


def _sincos_table(backbone: Backbone, first: Literal["column", "row"]) -> Tensor:
    """The table of a network's own image size."""
    table, side = backbone.vit.pos_embed, backbone.arch.image // backbone.patch
    fixed = sincos_positions(backbone.dim, (side, side), first=first).to(table)
    return torch.cat([fixed.new_zeros(table.shape[1] - len(fixed), backbone.dim), fixed])[None]


@torch.no_grad()
def resize_positions(backbone: Backbone, pixels: int) -> Backbone:
    """A copy whose table of positions is that of square images of so many pixels: bicubic with antialias; CLS keeps its own.

    Raises:
        UserError: the network has rotary positions, which have no table.
    """
    if backbone.arch.rope:
        raise UserError(f"resize_positions: {backbone.arch.name} has rotary positions, for any size", todo="leave `resize_positions` out")
    copy = Backbone(replace(backbone.arch, image=pixels // backbone.patch * backbone.patch))
    weights = backbone.state_dict()
    table, side = weights["vit.pos_embed"], pixels // backbone.patch
    patches = math.isqrt(table.shape[1]) ** 2  # the last ones; a position of CLS comes first
    resized = interpolate_positions(table[:, -patches:], (side, side), "antialias")
    copy.load_state_dict({**weights, "vit.pos_embed": torch.cat([table[:, :-patches], resized], dim=1)})
    copy.report = backbone.report
    return copy


def require_blocks(backbone: Backbone, learning: int) -> None:
    """UserError if more blocks are to learn than there are."""
    if learning > backbone.arch.depth:
        raise UserError(f"trainable_blocks {learning}: {backbone.arch.name} has {backbone.arch.depth} blocks")


def freeze_all_but(backbone: Backbone, last_blocks: int) -> None:
    """Let only the last blocks and the final norm learn; UserError if there are fewer blocks."""
    require_blocks(backbone, last_blocks)
    backbone.requires_grad_(False)
    for part in [*backbone.vit.blocks[-last_blocks:], backbone.vit.norm]:
        part.requires_grad_(True)
