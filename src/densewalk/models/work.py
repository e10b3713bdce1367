"""Floating-point operations and memory of vision transformers, from their shapes alone. Free of torch.

A product of [m, k] and [k, n] counts 2 m k n, as in torch's FlopCounterMode; what is done element by element counts nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from densewalk.models.architecture import Architecture

BACKWARD = 2  # a backward pass is as much work as two forward passes
LEARN = 1 + BACKWARD


@dataclass(frozen=True)
class Work:
    """The work of a job or of one of its steps.

    flops: operations on the GPU. kept: values that a backward pass reads, of all samples together; outside: those of them that are not of
    a backbone's blocks, which are therefore not computed again with gradient checkpointing. learnt, fixed: parameters with an
    optimizer's state, and without one. bfloat16: it computes in bfloat16 whatever a study says.
    """

    flops: float | int
    kept: float | int = 0
    outside: float | int = 0
    learnt: float | int = 0
    fixed: float | int = 0
    bfloat16: bool = False


def tokens(arch: Architecture, height: int, width: int | None = None) -> int:
    """CLS, registers and whole patches of an image; width: the height if not given."""
    return 1 + arch.registers + (height // arch.patch) * ((width or height) // arch.patch)


def vit(arch: Architecture, height: int, width: int | None = None, *, blocks: int | None = None, cls_only: bool = False) -> float:
    """Operations of one image's forward pass.

    Args:
        blocks: only the last so many, without the patches' embedding. cls_only: the last block's output is the CLS token alone.
    """
    n, d = tokens(arch, height, width), arch.dim
    patches = n - 1 - arch.registers
    embedding = 2.0 * patches * 3 * arch.patch**2 * d if blocks is None else 0.0
    count = arch.depth if blocks is None else blocks
    last = _block(arch, n, 1 if cls_only else n) if count else 0.0
    return embedding + max(0, count - 1) * _block(arch, n, n) + last


def encoder(arch: Architecture, count: int) -> float:
    """Operations of all blocks on so many tokens."""
    return arch.depth * _block(arch, count, count)


def _block(arch: Architecture, n: int, queries: int) -> float:
    """One block of n tokens, of which so many are asked for."""
    d = arch.dim
    attention = 2.0 * d * d * (queries + 2 * n) + 2 * 2 * queries * n * d + 2 * queries * d * d
    return attention + 2 * queries * d * arch.hidden * _mlp_layers(arch)


def _mlp_layers(arch: Architecture) -> int:
    return 3 if arch.swiglu else 2


def mlp(widths: Sequence[int]) -> float:
    """Operations of linear layers for one row."""
    return 2.0 * sum(a * b for a, b in pairwise(widths))


def mlp_parameters(widths: Sequence[int]) -> float:
    """Weights of linear layers."""
    return mlp(widths) / 2


def conv(pixels: float | int, inputs: int, outputs: int, side: int = 1) -> float:
    """Operations of a convolution that gives so many pixels; side: of its kernel."""
    return 2.0 * pixels * inputs * outputs * side**2


def parameters(arch: Architecture, blocks: int | None = None) -> float:
    """Weights of a network, or of its last blocks."""
    block = 4.0 * arch.dim**2 + _mlp_layers(arch) * arch.dim * arch.hidden + 13 * arch.dim
    if blocks is not None:
        return blocks * block
    positions = 0 if arch.rope else (arch.image // arch.patch) ** 2 + 1
    return arch.depth * block + arch.dim * (3 * arch.patch**2 + positions + 4 + arch.registers)


def kept_widths(arch: Architecture) -> float:
    """Values of a block for each token that its backward pass reads, in widths of the network.

    Inputs of both norms, of query-key-value, the projection and the MLP; queries, keys and values; the input of GELU, whose output is
    computed again. Gated MLPs keep both halves, the activation and the product; LayerScale behind them its input. Rotary blocks keep
    queries and keys before and after the turn, and the inputs of both LayerScales.
    """
    hidden = arch.hidden / arch.dim
    return 8 + (4 * hidden if arch.swiglu else hidden) + (5 if arch.rope else 1 if arch.swiglu else 0)


def kept(arch: Architecture, height: int, width: int | None = None, *, blocks: int | None = None) -> float:
    """Values of one image that the backward pass of the blocks reads."""
    return (arch.depth if blocks is None else blocks) * tokens(arch, height, width) * kept_widths(arch) * float(arch.dim)
