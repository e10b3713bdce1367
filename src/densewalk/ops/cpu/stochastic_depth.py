"""Residual connections with stochastic depth; on a CPU, dropped images are not computed."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from densewalk.ops.cpu.switch import use_cpu_kernels


def residual(
    x: Float[Tensor, "batch tokens dim"], drop: nn.Module, branch: Callable[[Tensor], Tensor]
) -> Float[Tensor, "batch tokens dim"]:
    """Compute `x + drop(branch(x))` for timm's DropPath, which drops whole images.

    for image in x:
        image + kept / (1 - rate) * branch(image), kept with probability 1 - rate
    """
    if isinstance(drop, BatchSubset) and drop.training and drop.drop_prob and len(x):
        images = drop.draw(len(x), x.device)
        return _IndexAdd.apply(x, images, branch(x.index_select(0, images)).to(x.dtype), len(x) / len(images))
    rate = getattr(drop, "drop_prob", 0.0) if drop.training else 0.0
    if not rate:
        return x + branch(x)
    kept = x.new_empty(len(x), 1, 1).bernoulli_(1 - rate)
    # without any kept image the weights still need a gradient of zero: AdamW then moves on
    if use_cpu_kernels(x.device) and kept.any():
        if kept.all():
            return torch.add(x, branch(x), alpha=1 / (1 - rate))
        images = kept.flatten().nonzero()[:, 0]
        return _IndexAdd.apply(x, images, branch(x.index_select(0, images)).to(x.dtype), 1 / (1 - rate))
    return x + branch(x) * (kept / (1 - rate))


class BatchSubset(nn.Module):
    """Stochastic depth that keeps a random subset of a batch, of fixed size, and computes a branch for it alone (DINOv2).

        kept = a random subset of max(int(images * (1 - rate)), 1) images
        x[kept] += images / len(kept) * branch(x[kept])

    `residual` does so. Called on a branch's output as timm's DropPath is, it scales what is kept and makes the rest 0.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.drop_prob = rate

    def draw(self, images: int, device: torch.device) -> Tensor:
        """Places of the images that are kept."""
        return torch.randperm(images, device=device)[: max(int(images * (1 - self.drop_prob)), 1)]

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if not self.training or not self.drop_prob or not len(x):
            return x
        kept = self.draw(len(x), x.device)
        return torch.zeros_like(x).index_add(0, kept, x.index_select(0, kept), alpha=len(x) / len(kept))


class _IndexAdd(torch.autograd.Function):
    """`x.index_add(0, rows, source, alpha=alpha)`; torch's own keeps `source`, for its shape."""

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
