"""Change a backbone: stochastic depth, registers, frozen parts."""

import torch

from densewalk.models.backbone import Backbone
from densewalk.models.timm_models import architecture_without_registers


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


def freeze_all_but(backbone: Backbone, last_blocks: int) -> None:
    """Let only the last blocks and the final norm learn."""
    backbone.requires_grad_(False)
    for part in [*backbone.vit.blocks[-last_blocks:], backbone.vit.norm]:
        part.requires_grad_(True)
