"""Weight-normalized linear layers whose normalized weights are never written: heads of 65,536 prototypes have 64 MiB of them."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from densewalk.ops.cpu.linear import can_use_kernels, linear, product, transposed_product


def weight_norm_linear(
    x: Float[Tensor, "*batch features"], v: Float[Tensor, "out features"], g: Float[Tensor, "out 1"]
) -> Float[Tensor, "*batch out"]:
    """Compute `x w^T` for w_o = g_o v_o / ||v_o||; on a CPU, the outputs are scaled instead of the weights, equal up to rounding."""
    if can_use_kernels(x, v):
        return _WeightNormLinear.apply(x, v, g)
    return linear(x, torch._weight_norm(v, g, 0))


class _WeightNormLinear(torch.autograd.Function):
    """With s_o = g_o / ||v_o||, y = s x v^T and dw = dy^T x: dx = (s dy) v; dv and dg from dw as torch has them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, v: Tensor, g: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(v, dim=1, keepdim=True)
        ctx.save_for_backward(x, v, g, norm)
        return product(x, v).mul_((g / norm)[:, 0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, v, g, norm = ctx.saved_tensors
        of_x, of_v, of_g = ctx.needs_input_grad
        rows = gradient.reshape(-1, gradient.shape[-1])
        dx = product(rows * (g / norm)[:, 0], v.t()).view_as(x) if of_x else None
        if not (of_v or of_g):
            return dx, None, None
        dw = transposed_product(rows, x.reshape(-1, x.shape[-1]))
        dv, dg = torch.ops.aten._weight_norm_interface_backward(dw, v, g, norm, 0)
        return dx, dv if of_v else None, dg if of_g else None
