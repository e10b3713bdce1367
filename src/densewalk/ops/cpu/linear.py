"""Linear layers in float32 by the library that is faster on this processor, exact up to rounding.

    use_onednn_linear(network)           # every nn.Linear in it, under its own name
    y = linear(x, weight, bias)          # y = x weight^T + bias

torch leaves float32 products to MKL, which takes AVX2 kernels on AMD's processors even where they have AVX-512. oneDNN, which torch
contains, too, uses AVX-512; `processor.py` says where that is faster. Under autocast the products are torch's own.
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

from densewalk.ops.cpu.processor import this_processor
from densewalk.ops.cpu.switch import use_cpu_kernels

MIN_ROWS = 16  # below, torch's product is faster
MAX_ROWS = 704  # of factors that are transposed at once
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def can_use_kernels(x: Tensor, weight: Tensor) -> bool:
    """True if the layers here can compute the product of these: on a CPU in float32."""
    if not use_cpu_kernels(x.device) or torch.is_autocast_enabled("cpu"):
        return False
    return x.device == weight.device and x.dtype == weight.dtype == torch.float32


def can_use_onednn(x: Tensor, weight: Tensor) -> bool:
    """True if oneDNN computes the product of these."""
    return can_use_kernels(x, weight) and _prefers_onednn(x)


def _prefers_onednn(x: Tensor) -> bool:
    return HAS_ONEDNN and this_processor().onednn_linear and x.numel() >= MIN_ROWS * x.shape[-1]


def linear(
    x: Float[Tensor, "*batch features"], weight: Float[Tensor, "out features"], bias: Float[Tensor, " out"] | None = None
) -> Float[Tensor, "*batch out"]:
    """Equal `F.linear` up to rounding."""
    if not can_use_onednn(x, weight):
        return F.linear(x, weight, bias)
    return _Linear.apply(x, weight, bias) if torch.is_grad_enabled() else product(x, weight, bias)


def linear_of_layer(
    layer: nn.Module, x: Float[Tensor, "*batch features"], weight: Float[Tensor, "out features"], bias: Float[Tensor, " out"] | None
) -> Float[Tensor, "*batch out"]:
    """Compute `linear(layer(x), weight, bias)`, keeping only `x` for the backward pass.

    Needs `can_use_kernels`. layer: an activation or a norm: cheap, deterministic, its output as large as `x`.
    """
    return _LinearOfLayer.apply(layer, x, weight, bias, *layer.parameters())


def linear_of_norm(norm: nn.Module, x: Tensor, layer: nn.Linear) -> Tensor:
    """Compute `layer(norm(x))`; on a CPU, the norm's output is not kept."""
    if torch.is_grad_enabled() and can_use_kernels(x, layer.weight):
        return linear_of_layer(norm, x, layer.weight, layer.bias)
    return layer(norm(x))


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weight^T + bias` by the faster library, without gradients; `weight` or its transpose is contiguous."""
    return onednn_product(x, weight, bias) if _prefers_onednn(x) else F.linear(x, weight, bias)


def onednn_product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """oneDNN's `x weight^T + bias`, where `HAS_ONEDNN`."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def transposed_product(one: Float[Tensor, "rows m"], other: Float[Tensor, "rows n"]) -> Float[Tensor, "m n"]:
    """Compute `one^T other`; by oneDNN in blocks of rows."""
    wider = one.shape[1] > other.shape[1]
    if not _prefers_onednn(one) or (wider and not this_processor().full_width):
        return one.t() @ other
    # oneDNN transposes both first: a block stays in a core's cache, and it is cheaper if `x` is the narrower one. But then the result of a
    # wider `one` has to be transposed, too, which costs more than that where it is larger than `one`
    swapped = wider and len(one) >= other.shape[1]
    x, weight = (other, one) if swapped else (one, other)
    blocks = -(-len(one) // MAX_ROWS)
    parts = [onednn_product(_transposed(a), b.t()) for a, b in zip(x.chunk(blocks), weight.chunk(blocks), strict=True)]
    result = functools.reduce(Tensor.add_, parts)
    return _transposed(result) if swapped else result


def _transposed(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "columns rows"]:
    """Make the transpose, in a fifth of the time of torch's `contiguous`."""
    import cv2  # late: what trains nothing does without

    result = matrix.new_empty(matrix.shape[1], matrix.shape[0])
    cv2.transpose(matrix.numpy(), result.numpy())
    return result


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


class _LinearOfLayer(torch.autograd.Function):
    """The product of a layer's output, which the backward pass computes again."""

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
            y = ctx.layer(x)
        rows = gradient.reshape(-1, gradient.shape[-1])
        shape = y.shape
        for_weight = transposed_product(rows, y.detach().reshape(-1, shape[-1])) if of_weight else None
        found: Iterator[Tensor] = iter(())
        if of_x or any(of_parameters):
            # the gradient needs y's place in the graph only: its memory is free from here on
            edge = get_gradient_edge(y)
            del y
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
        """Equal torch's up to rounding."""
        return linear(x, self.weight, self.bias)


def use_onednn_linear(module: nn.Module) -> nn.Module:
    """Make each nn.Linear of a network a `Linear`, names as they are; return the network."""
    for part in module.modules():
        if type(part) is nn.Linear:
            part.__class__ = Linear
    return module
