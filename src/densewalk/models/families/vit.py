"""Build timm's vision transformers from an `Architecture`."""

from functools import partial
from typing import Any

import timm
import torch
from timm.layers import GELUTanh, QuickGELU, SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from densewalk.models.architecture import Architecture
from densewalk.ops.cpu.linear import use_onednn_linear


def build_vit(arch: Architecture, drop_path: float = 0.0) -> nn.Module:
    """The network of an architecture with new weights."""
    shared = {
        "img_size": arch.image,
        "patch_size": arch.patch,
        "embed_dim": arch.dim,
        "depth": arch.depth,
        "num_heads": arch.heads,
        "num_classes": 0,
        "global_pool": "token" if arch.class_token else "map",
        "init_values": 1e-5 if arch.layer_scale else None,
        "drop_path_rate": drop_path,
        "dynamic_img_size": True,
    }
    return use_onednn_linear((_rotary_vit if arch.rope else _plain_vit)(arch, shared))


def _plain_vit(arch: Architecture, shared: dict[str, Any]) -> VisionTransformer:
    """The network with a table of positions."""
    gated: dict[str, Any] = {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU} if arch.swiglu else {}
    if not arch.swiglu and arch.activation != "gelu":
        gated["act_layer"] = {"quick_gelu": QuickGELU, "gelu_tanh": GELUTanh}[arch.activation]
    if arch.eps != 1e-6:
        gated["norm_layer"] = partial(timm.layers.LayerNorm, eps=arch.eps)
    return VisionTransformer(
        **shared,
        **gated,
        reg_tokens=arch.registers,
        no_embed_class=arch.registers > 0,
        class_token=arch.class_token,
        pre_norm=arch.pre_norm,
        # a gated MLP's first layer makes the gate and the gated; the half makes timm's rounding down right
        mlp_ratio=((2 if arch.swiglu else 1) * arch.hidden + 0.5) / arch.dim,
    )


def _rotary_vit(arch: Architecture, shared: dict[str, Any]) -> Eva:
    """DINOv3's network, without its random shifts and scales of the coordinates in training."""
    vit = Eva(
        **shared,
        num_reg_tokens=arch.registers,
        swiglu_mlp=arch.swiglu,
        swiglu_align_to=8 if arch.swiglu else 0,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_temperature=100.0,
        rope_rotate_half=True,
        norm_layer=partial(timm.layers.LayerNorm, eps=1e-5),
    )
    if arch.periods is not None:
        vit.rope.periods.copy_(torch.tensor(arch.periods))  # type: ignore[union-attr, operator]
    return vit
