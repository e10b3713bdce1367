"""The transformer block of plain and of rotary networks, and ways to run several.

    x = x + drop(scale_1 * proj(attention(norm_1(x))))
    x = x + drop(scale_2 * mlp(norm_2(x)))

timm's blocks hold the parameters; their own `forward` is not used. `run_block` computes all of a block. To get at its queries, keys and
values, or to compute some tokens only, take it apart: `query_key_value`, `attend`, `block.attn.proj`, `finish_block`.
"""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from timm.layers import GluMlp, SwiGLU, apply_rot_embed_cat
from timm.models.eva import EvaBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from densewalk.ops.cpu.attention import attention, self_attention
from densewalk.ops.cpu.linear import can_use_kernels, linear, linear_of_layer, linear_of_norm
from densewalk.ops.cpu.stochastic_depth import residual

log = logging.getLogger("densewalk")
BlockRunner = Callable[[Sequence[nn.Module], Tensor, Tensor | None, bool], Tensor]


def run_block(block: Any, x: Float[Tensor, "batch tokens dim"], rope: Tensor | None = None) -> Float[Tensor, "batch tokens dim"]:
    """Compute a block; `rope` are its rotary positions, if it has any.

    Plain blocks multiply LayerScale into weights where that is less work, and skip dropped images; rotary and opened ones do not: equal
    up to rounding.
    """
    if rope is not None:  # timm's attention
        return finish_block(block, x, block.attn(block.norm1(x), rope=rope))
    x = residual(x, block.drop_path1, partial(_attention_branch, block))
    return residual(x, block.drop_path2, partial(_mlp_branch, block, fold=True))


def query_key_value(block: Any, x: Float[Tensor, "batch tokens dim"], queries: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries (of the first `queries` tokens), keys and values [batch, heads, tokens, head_dim]."""
    attn, dim = block.attn, x.shape[-1]
    weight, bias = attn.qkv.weight, attn.qkv.bias
    if bias is None:  # in rotary blocks: keys have none
        bias = torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
    x = block.norm1(x)
    query = linear(x[:, :queries], weight[:dim], bias[:dim])
    key, value = linear(x, weight[dim:], bias[dim:]).chunk(2, dim=-1)
    query, key, value = (t.unflatten(2, (attn.num_heads, -1)).transpose(1, 2) for t in (query, key, value))
    return query, key, value


def rotate(block: Any, x: Float[Tensor, "batch heads tokens head_dim"], rope: Tensor | None) -> Tensor:
    """Queries or keys with their rotary positions; CLS and registers have none."""
    if rope is None or x.shape[2] <= block.attn.num_prefix_tokens:
        return x
    prefix, patches = x.tensor_split([block.attn.num_prefix_tokens], dim=2)
    return torch.cat([prefix, apply_rot_embed_cat(patches, rope, half=True).type_as(x)], dim=2)


def attend(block: Any, query: Tensor, key: Tensor, value: Tensor, rope: Tensor | None) -> Float[Tensor, "batch queries dim"]:
    """The values that each query attends to, all heads side by side."""
    return attention(rotate(block, query, rope), rotate(block, key, rope), value).transpose(1, 2).flatten(2)


def finish_block(
    block: Any,
    x: Float[Tensor, "*batch tokens dim"],
    y: Float[Tensor, "*batch tokens dim"],
    patches: Bool[Tensor, "images patches"] | None = None,
) -> Float[Tensor, "*batch tokens dim"]:
    """Add the attention layer's output `y` to `x`, then the MLP's.

    patches: if given, the patches whose tokens [tokens, dim] `x` and `y` are: stochastic depth drops whole images.
    """

    def dropped(drop: nn.Module, branch: Tensor) -> Tensor:
        if patches is None:
            return drop(branch)
        return drop(x.new_ones(len(patches), 1))[patches.nonzero()[:, 0]] * branch

    x = x + dropped(block.drop_path1, _scaled(y, _layer_scale(block, 1)))
    return x + dropped(block.drop_path2, _mlp_branch(block, x))


def _attention_branch(block: Any, x: Tensor) -> Tensor:
    attn = block.attn
    qkv = linear_of_norm(block.norm1, x, attn.qkv).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return _scaled_linear(attn.proj, self_attention(qkv).transpose(1, 2).flatten(2), _layer_scale(block, 1))


def _mlp_branch(block: Any, x: Tensor, *, fold: bool = False) -> Tensor:
    mlp, scale = block.mlp, _layer_scale(block, 2)
    if isinstance(mlp, GluMlp | SwiGLU):
        return _scaled(mlp(block.norm2(x)), scale)
    x = linear_of_norm(block.norm2, x, mlp.fc1)
    if fold:
        return _linear_of_activation(mlp.act, x, mlp.fc2, scale)
    return _scaled(_linear_of_activation(mlp.act, x, mlp.fc2), scale)


def _linear_of_activation(activation: nn.Module, x: Tensor, layer: nn.Linear, scale: Tensor | None = None) -> Tensor:
    """`scale * layer(activation(x))`; the backward pass makes the activation's output again.

    Kept, it would be a quarter of all that a block keeps. Values and gradients are the same to the last bit.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():  # a compiler chooses itself what to keep
        return _scaled_linear(layer, activation(x), scale)
    if can_use_kernels(x, layer.weight):
        if _folds(layer, x):
            return linear_of_layer(activation, x, *_folded(layer, scale))
        return _scaled(linear_of_layer(activation, x, layer.weight, layer.bias), scale)
    # stops when the activation is there: the layer is not computed again
    return checkpoint(lambda x: _scaled_linear(layer, activation(x), scale), x, use_reentrant=False, preserve_rng_state=False)


def _layer_scale(block: Any, branch: Literal[1, 2]) -> Tensor | None:
    """LayerScale of the attention (1) or the MLP (2); None without."""
    if isinstance(block, EvaBlock):
        return getattr(block, f"gamma_{branch}")
    return getattr(getattr(block, f"ls{branch}"), "gamma", None)


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale


def _scaled_linear(layer: nn.Linear, x: Tensor, scale: Tensor | None) -> Tensor:
    """`scale * layer(x)`, multiplied into the weights where they are fewer than the outputs."""
    return linear(x, *_folded(layer, scale)) if scale is not None and _folds(layer, x) else _scaled(layer(x), scale)


def _folds(layer: nn.Linear, x: Tensor) -> bool:
    """True if the layer's weights are fewer than its outputs for `x`."""
    return layer.in_features * x.shape[-1] < x.numel()


def _folded(layer: nn.Linear, scale: Tensor | None) -> tuple[Tensor, Tensor]:
    return (layer.weight, layer.bias) if scale is None else (layer.weight * scale[:, None], layer.bias * scale)


def run_blocks(blocks: Sequence[nn.Module], x: Tensor, rope: Tensor | None, recompute: bool) -> Tensor:
    """Compute blocks one after the other; with `recompute`, only their inputs are kept."""
    for block in blocks:
        x = checkpoint(run_block, block, x, rope, use_reentrant=False) if recompute else run_block(block, x, rope)
    return x


class CompiledBlocks:
    """`run_blocks` by torch.compile; if it fails, blocks run as they are, with one warning.

    Every shape, and every network that learns or does not, is compiled at its first use, which takes from seconds to minutes.
    """

    def __init__(self) -> None:
        self.compiled: BlockRunner | None = torch.compile(run_blocks, dynamic=False)

    def __call__(self, blocks: Sequence[nn.Module], x: Tensor, rope: Tensor | None, recompute: bool) -> Tensor:
        """Equal `run_blocks` up to rounding and stochastic depth's draws."""
        if self.compiled is not None:
            try:
                return self.compiled(blocks, x, rope, recompute)
            # an error that is not the compiler's comes again below
            except Exception as error:
                reason = str(error).strip().splitlines() or ["no reason given"]
                log.warning("torch.compile fails here (%s: %s): blocks run as they are", type(error).__name__, reason[0])
                self.compiled = None
        return run_blocks(blocks, x, rope, recompute)
