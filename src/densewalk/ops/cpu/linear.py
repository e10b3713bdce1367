"""Linear layers at a CPU's full speed, in float32 and exact as ever.

    hasten(network)                      # every nn.Linear in it, under its own name
    y = linear(x, weight, bias)          # y = x weight^T + bias

torch leaves float32 products to MKL, which on AMD's processors takes kernels for AVX2 where there is AVX-512. oneDNN, which torch has
as well, takes what is there: twice the speed (benchmarks/products.py). On a GPU, under autocast, and while torch.compile looks on,
all is torch's own.
"""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional as F

FEWEST = 16
"""Rows from which on oneDNN's product is the faster one."""


MOST = 704
"""Most rows of factors that are transposed at once."""


def available() -> bool:
    """Whether this torch and this processor have what it takes."""
    # a rule, no measurement: a training that resumes must go on with the same rounding
    return (
        torch.backends.cpu.get_cpu_capability() == "AVX512"
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


AVAILABLE = available()


def linear(
    x: Float[Tensor, "*batch features"], weight: Float[Tensor, "out features"], bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "*batch out"]:
    """What `F.linear` gives, up to rounding."""
    if not suits(x, weight):
        return F.linear(x, weight, bias)
    result: Tensor = _Linear.apply(x, weight, bias) if torch.is_grad_enabled() else product(x, weight, bias)
    return result


def linear_behind(
    layer: nn.Module, x: Float[Tensor, "*batch features"], weight: Float[Tensor, "out features"], bias: Float[Tensor, " out"] | None
) -> Float[Tensor, "*batch out"]:
    """`linear(layer(x), weight, bias)` that keeps `x`, not `layer(x)`, for the backward pass; where `suits` says so.

    layer: cheap to compute again, the same whenever it is, and a tensor as large as `x`: an activation, a norm.
    """
    result: Tensor = _LinearBehind.apply(layer, x, weight, bias, *layer.parameters())
    return result


def suits(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN's product is taken for these."""
    ours = AVAILABLE and x.device.type == weight.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    return ours and not torch.compiler.is_compiling() and not torch.is_autocast_enabled("cpu") and x.numel() >= FEWEST * x.shape[-1]


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """oneDNN's `x weight^T + bias`, without gradients. `weight` may be the transpose of a contiguous matrix, but no other view."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


def transposed_product(one: Float[Tensor, "rows m"], other: Float[Tensor, "rows n"]) -> Float[Tensor, "m n"]:
    """`one^T other`. oneDNN has both transposed first: block by block they stay in a core's cache, and the narrower one is the cheaper
    to be its `x`."""
    narrow, wide = (one, other) if one.shape[1] <= other.shape[1] else (other, one)
    blocks = -(-len(one) // MOST)
    parts = [product(a.t(), b.t()) for a, b in zip(narrow.chunk(blocks), wide.chunk(blocks), strict=True)]
    result = functools.reduce(Tensor.add_, parts)
    return result if narrow is one else result.t().contiguous()


class _Linear(torch.autograd.Function):
    """The product and its gradients: dx = dy weight, dweight = dy^T x, dbias = sum of dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        of_x, of_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x if of_weight else None, weight if of_x else None)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = gradient.reshape(-1, gradient.shape[-1])
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            product(rows, weight.t()).view(*gradient.shape[:-1], -1) if of_x else None,
            transposed_product(rows, x.reshape(-1, x.shape[-1])) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


class _LinearBehind(torch.autograd.Function):
    """The product behind a layer, which the backward pass computes again."""

    @staticmethod
    def forward(ctx: Any, layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, *parameters)
        ctx.layer = layer
        return product(layer(x), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, *parameters = ctx.saved_tensors
        _, of_x, of_weight, of_bias, *of_parameters = ctx.needs_input_grad
        with torch.enable_grad():
            x = x.detach().requires_grad_(of_x)
            behind = ctx.layer(x)
        rows = gradient.reshape(-1, gradient.shape[-1])
        shape = behind.shape
        for_weight = transposed_product(rows, behind.detach().reshape(-1, shape[-1])) if of_weight else None
        found: Iterator[Tensor] = iter(())
        if of_x or any(of_parameters):
            # from here on its gradient is wanted, not the output itself
            edge = get_gradient_edge(behind)
            del behind
            learning = [part for part, learns in zip((x, *parameters), (of_x, *of_parameters), strict=True) if learns]
            found = iter(torch.autograd.grad(edge, learning, product(rows, weight.t()).view(shape)))
        return (
            None,
            next(found) if of_x else None,
            for_weight,
            rows.sum(0) if of_bias else None,
            *(next(found) if learns else None for learns in of_parameters),
        )


class Linear(nn.Linear):
    """torch's layer with `linear` as its product."""

    def forward(self, x: Tensor) -> Tensor:
        """What torch's gives, up to rounding."""
        return linear(x, self.weight, self.bias)


def hasten(module: nn.Module) -> nn.Module:
    """Let every linear layer of a network, parameters and names as they are, take `linear`; the network itself."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = Linear
    return module
