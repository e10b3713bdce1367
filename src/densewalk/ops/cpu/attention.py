"""Attention at a CPU's full speed, in float32 and exact as ever.

    y = attention(query, key, value)     # softmax(query key^T / sqrt(head_dim)) value

torch's own never keeps the whole matrix of softmax, which this does not either, but takes MKL's products and exponentials. With the
products of linear.py and powers of two it takes two thirds of the time for 1374 tokens, and an eighth less for 261. On a GPU, for
few tokens or many threads, under autocast, and while torch.compile looks on, it is torch's own.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from densewalk.ops.cpu.linear import product, suits

FEWEST = 256
"""Queries and keys from which on this is the faster one."""


MOST_THREADS = 2
"""Beyond these torch's is taken: it gives each thread heads of its own, while here each product is shared out."""


ROWS = 288
"""Most queries at once: their scores for some thousand keys stay in a core's cache."""


def attention(
    query: Float[Tensor, "images heads queries head_dim"],
    key: Float[Tensor, "images heads keys head_dim"],
    value: Float[Tensor, "images heads keys head_dim"],
) -> Float[Tensor, "images heads queries head_dim"]:
    """What `F.scaled_dot_product_attention` gives, up to rounding.

    for each image and head:
        softmax(query @ key.T / sqrt(head_dim), dim=1) @ value
    """
    result: Tensor = _Attention.apply(query, key, value) if _taken(query, key) else F.scaled_dot_product_attention(query, key, value)
    return result


def self_attention(qkv: Float[Tensor, "3 images heads tokens head_dim"]) -> Float[Tensor, "images heads tokens head_dim"]:
    """`attention` of queries, keys and values that are one tensor, as its gradient then is, too."""
    result: Tensor = _Attention.apply(qkv) if _taken(*qkv[:2]) else F.scaled_dot_product_attention(*qkv)
    return result


def _taken(query: Tensor, key: Tensor) -> bool:
    enough = min(query.shape[2], key.shape[2]) >= FEWEST
    return suits(query, key) and enough and torch.get_num_threads() <= MOST_THREADS


class _Attention(torch.autograd.Function):
    """Block after block of queries; what is kept for the backward pass is one number of each query beside the result.

    With scores s = query key^T / sqrt(head_dim), shares p = exp(s - log sum exp s) and the result y = p value:

        dvalue = p^T dy,   ds = p (dy value^T - sum(dy y)),   dquery = ds key / sqrt(head_dim),   dkey = ds^T query / sqrt(head_dim)

    Scores are in units of log 2: exponentials of base two are the faster ones.
    """

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        query, key, value = parts if len(parts) == 3 else parts[0]
        images, heads, queries, dim = query.shape
        y = query.new_empty(images, queries, heads, dim).transpose(1, 2)
        logs = query.new_empty(images, heads, queries, 1)
        for at in _each(images, heads):
            one_key, one_value = key[at].contiguous(), value[at].contiguous()
            for rows in _blocks(queries):
                p = product(query[at][rows] * _unit(dim), one_key)
                top = p.amax(1, keepdim=True)
                total = p.sub_(top).exp2_().sum(1, keepdim=True)
                torch.div(product(p, one_value.t()), total, out=y[at][rows])
                torch.add(top, total.log2_(), out=logs[at][rows])
        ctx.save_for_backward(y, logs, *parts)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        y, logs, *parts = ctx.saved_tensors
        gradients = [torch.empty_like(part) for part in parts]
        query, key, value = parts if len(parts) == 3 else parts[0]
        dquery, dkey, dvalue = gradients if len(parts) == 3 else gradients[0]
        images, heads, queries, dim = query.shape
        for at in _each(images, heads):
            one_key, one_value, dy = key[at].contiguous(), value[at].contiguous(), gradient[at].contiguous()
            # of all queries so far, transposed: the products are the faster ones
            dkey_t = dvalue_t = one_key.new_zeros(())
            for rows in _blocks(queries):
                q, g = query[at][rows] * _unit(dim), dy[rows]
                p = product(q, one_key).sub_(logs[at][rows]).exp2_()
                ds = product(g, one_value).sub_((g * y[at][rows]).sum(1, keepdim=True)).mul_(p)
                dvalue_t = product(g.t(), p.t()) + dvalue_t
                dkey_t = product(q.t(), ds.t()) + dkey_t
                torch.mul(product(ds, one_key.t()), dim**-0.5, out=dquery[at][rows])
            torch.mul(dkey_t.t(), math.log(2), out=dkey[at])
            dvalue[at] = dvalue_t.t()
        return tuple(gradients)


def _unit(dim: int) -> float:
    """By what scores are scaled."""
    return dim**-0.5 / math.log(2)


def _each(images: int, heads: int) -> list[tuple[int, int]]:
    return [(image, head) for image in range(images) for head in range(heads)]


def _blocks(queries: int) -> list[slice]:
    """Slices of as equal length as can be."""
    size = -(-queries // -(-queries // ROWS))
    return [slice(start, start + size) for start in range(0, queries, size)]
