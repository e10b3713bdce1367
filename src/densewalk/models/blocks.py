"""Transformer blocks one after the other: as they are, recomputed in the backward pass, or compiled."""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

log = logging.getLogger("densewalk")
Through = Callable[[Sequence[nn.Module], Tensor, Tensor | None, bool], Tensor]


def residual(
    x: Float[Tensor, "batch tokens dim"], drop: nn.Module, branch: Callable[[Tensor], Tensor]
) -> Float[Tensor, "batch tokens dim"]:
    """`x + drop(branch(x))` for stochastic depth, which drops the branch of whole images; a CPU does not compute these.

    for image in x:
        image + kept / (1 - rate) * branch(image), kept with probability 1 - rate
    """
    rate = getattr(drop, "drop_prob", 0.0) if drop.training else 0.0
    if not rate:
        return x + branch(x)
    kept = x.new_empty(len(x), 1, 1).bernoulli_(1 - rate)
    # where no image is kept, the weights still must get their gradient of zero: it lets AdamW go on
    if x.device.type == "cpu" and not torch.compiler.is_compiling() and kept.any():
        if kept.all():
            return torch.add(x, branch(x), alpha=1 / (1 - rate))
        images = kept.flatten().nonzero()[:, 0]
        result: Tensor = _IndexAdd.apply(x, images, branch(x.index_select(0, images)).to(x.dtype), 1 / (1 - rate))
        return result
    return x + branch(x) * (kept / (1 - rate))


class _IndexAdd(torch.autograd.Function):
    """`x.index_add(0, rows, source, alpha=alpha)`. torch's own keeps the whole source for its backward pass, which asks for its shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, source: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.alpha = alpha
        return x.index_add(0, rows, source, alpha=alpha)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (rows,) = ctx.saved_tensors
        of_x, _, of_source, _ = ctx.needs_input_grad
        return gradient if of_x else None, None, gradient.index_select(0, rows).mul_(ctx.alpha) if of_source else None, None


def through(blocks: Sequence[nn.Module], x: Tensor, turns: Tensor | None, recompute: bool) -> Tensor:
    """`x` through all blocks. With `recompute`, the backward pass gets each block's input and computes the rest again.

    turns: rotary positions, which each block then takes beside `x`.
    """
    beside = () if turns is None else (turns,)
    for block in blocks:
        x = checkpoint(block, x, *beside, use_reentrant=False) if recompute else block(x, *beside)
    return x


class CompiledBlocks:
    """`through` by torch.compile; after a failure, which is logged once, as it is.

    Every shape, and every network that learns or does not, is compiled at its first use, which takes from seconds to minutes.
    """

    def __init__(self) -> None:
        self.compiled: Through | None = torch.compile(through, dynamic=False)

    def __call__(self, blocks: Sequence[nn.Module], x: Tensor, turns: Tensor | None, recompute: bool) -> Tensor:
        """The same as `through`, up to rounding and stochastic depth's draws."""
        if self.compiled is not None:
            try:
                return self.compiled(blocks, x, turns, recompute)
            # an error that is not the compiler's comes again below
            except Exception as error:
                reason = str(error).strip().splitlines() or ["no reason given"]
                log.warning("torch.compile fails here (%s: %s): blocks run as they are", type(error).__name__, reason[0])
                self.compiled = None
        return through(blocks, x, turns, recompute)
