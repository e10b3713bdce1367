"""Build vision transformers of timm's, with blocks that keep less for the backward pass."""

from functools import partial
from typing import Any

import timm
import torch
from timm.layers import LayerScale, Mlp, SwiGLUPacked
from timm.models.eva import Eva
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from densewalk.models.architecture import Architecture
from densewalk.models.blocks import residual
from densewalk.ops.cpu.attention import self_attention
from densewalk.ops.cpu.linear import Linear, hasten, linear, linear_behind, suits


class LeanMlp(Mlp):
    """timm's MLP without keeping the activation's output for the backward pass, which makes it again from its input.

    It is a quarter of all that a block keeps, for the cost of one GELU; values and gradients are the same to the last bit.
    """

    def forward(self, x: Tensor, norm: nn.Module | None = None, scale: nn.Module | None = None) -> Tensor:
        """What timm's gives behind a norm, times a LayerScale."""
        x = self.fc1(x) if norm is None else behind(norm, x, self.fc1)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiler chooses by itself what to keep
            return self._activate(x, scale)
        weight, bias = folded(self.fc2, scale)
        if isinstance(self.fc2, Linear) and suits(x, weight):
            return linear_behind(self.act, x, weight, bias)
        # stops as soon as the activation is there: the second layer is not computed again
        return checkpoint(self._activate, x, scale, use_reentrant=False, preserve_rng_state=False)

    def _activate(self, x: Tensor, scale: nn.Module | None) -> Tensor:
        return scaled(self.fc2, self.act(x), scale)


class LeanBlock(Block):
    """timm's block with less to do and to keep: no pass over all tokens for LayerScale, no work for images that are dropped."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """What timm's gives, in stochastic depth's draws, too."""
        x = residual(x, self.drop_path1, self.attend)
        return residual(x, self.drop_path2, self.transform)

    def attend(self, x: Tensor) -> Tensor:
        """The branch of the attention."""
        layer: Any = self.attn
        qkv = behind(self.norm1, x, layer.qkv).unflatten(2, (3, layer.num_heads, -1))
        return scaled(layer.proj, self_attention(qkv.permute(2, 0, 3, 1, 4)).transpose(1, 2).flatten(2), self.ls1)

    def transform(self, x: Tensor) -> Tensor:
        """The branch of the MLP."""
        return self.mlp(x, self.norm2, self.ls2) if isinstance(self.mlp, LeanMlp) else self.ls2(self.mlp(self.norm2(x)))


def behind(norm: nn.Module, x: Tensor, layer: Any) -> Tensor:
    """`layer(norm(x))`; where our own product is taken, the norm's output is not kept for the backward pass but made again."""
    if isinstance(layer, Linear) and torch.is_grad_enabled() and suits(x, layer.weight):
        return linear_behind(norm, x, layer.weight, layer.bias)
    return layer(norm(x))


def scaled(layer: Any, x: Tensor, scale: nn.Module | None) -> Tensor:
    """`scale(layer(x))`; a LayerScale is multiplied into the weights, which are fewer than the outputs of a batch."""
    return linear(x, *folded(layer, scale)) if isinstance(scale, LayerScale) else layer(x)


def folded(layer: Any, scale: nn.Module | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer, times a LayerScale behind it."""
    if not isinstance(scale, LayerScale):
        return layer.weight, layer.bias
    return layer.weight * scale.gamma[:, None], layer.bias * scale.gamma


def build_vit(arch: Architecture, drop_path: float = 0.0) -> nn.Module:
    """The network of an architecture, with new weights and the CPU's fast layers."""
    return hasten((_rotary_vit if arch.rope else _plain_vit)(arch, drop_path))


def _plain_vit(arch: Architecture, drop_path: float) -> VisionTransformer:
    """The network with a table of positions."""
    return VisionTransformer(
        img_size=arch.image,
        patch_size=arch.patch,
        embed_dim=arch.dim,
        depth=arch.depth,
        num_heads=arch.heads,
        num_classes=0,
        global_pool="token",
        init_values=1e-5 if arch.layer_scale else None,
        reg_tokens=arch.registers,
        no_embed_class=arch.registers > 0,
        drop_path_rate=drop_path,
        dynamic_img_size=True,
        # the first layer of a gated MLP makes both the gate and the gated; a half keeps timm's rounding down right
        mlp_ratio=((2 if arch.swiglu else 1) * arch.hidden + 0.5) / arch.dim,
        mlp_layer=SwiGLUPacked if arch.swiglu else LeanMlp,  # type: ignore[arg-type]
        block_fn=LeanBlock,
        act_layer=nn.SiLU if arch.swiglu else None,
    )


def _rotary_vit(arch: Architecture, drop_path: float) -> Eva:
    """DINOv3's network. Its release moves, squeezes and stretches the coordinates at random in training; this does not."""
    vit = Eva(
        img_size=arch.image,
        patch_size=arch.patch,
        embed_dim=arch.dim,
        depth=arch.depth,
        num_heads=arch.heads,
        num_classes=0,
        global_pool="token",
        init_values=1e-5,
        num_reg_tokens=arch.registers,
        drop_path_rate=drop_path,
        dynamic_img_size=True,
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
