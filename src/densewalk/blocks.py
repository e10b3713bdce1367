"""Transformer blocks one after the other: as they are, recomputed in the backward pass, or compiled."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

log = logging.getLogger("densewalk")

Through = Callable[[Sequence[nn.Module], Tensor, Tensor | None, bool], Tensor]


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
