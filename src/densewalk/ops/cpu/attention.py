"""Attention by oneDNN's products, in float32, exact up to rounding.

    y = attention(query, key, value)     # softmax(query key^T / sqrt(head_dim)) value

Like torch's, it never holds the whole softmax matrix. Its products are oneDNN's instead of MKL's, its exponentials powers of two. Where
oneDNN is twice as fast as MKL, it takes two thirds of torch's time for 1374 tokens and an eighth less for 261; elsewhere (processor.py),
for few tokens and for many threads torch's own is used.
"""

import itertools
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from densewalk.ops.cpu.linear import can_use_onednn, product
from densewalk.ops.cpu.processor import this_processor

MIN_TOKENS = 256  # queries and keys; below, torch's is faster
MAX_THREADS = 2  # above, torch's is faster: each thread gets heads of its own there, a part of each product here
MAX_ROWS = 288  # queries at once: their scores for some thousand keys stay in a core's cache


def attention(
    query: Float[Tensor, "images heads queries head_dim"],
    key: Float[Tensor, "images heads keys head_dim"],
    value: Float[Tensor, "images heads keys head_dim"],
) -> Float[Tensor, "images heads queries head_dim"]:
    """Equal `F.scaled_dot_product_attention` up to rounding.

    for each image and head:
        softmax(query @ key.T / sqrt(head_dim), dim=1) @ value
    """
    return _Attention.apply(query, key, value) if _is_faster(query, key) else F.scaled_dot_product_attention(query, key, value)


def self_attention(qkv: Float[Tensor, "3 images heads tokens head_dim"]) -> Float[Tensor, "images heads tokens head_dim"]:
    """Compute `attention` of queries, keys and values in one tensor, as their gradient is."""
    return _Attention.apply(qkv) if _is_faster(*qkv[:2]) else F.scaled_dot_product_attention(*qkv)


def _is_faster(query: Tensor, key: Tensor) -> bool:
    tokens = min(query.shape[2], key.shape[2])
    enough = tokens >= MIN_TOKENS and torch.get_num_threads() <= MAX_THREADS
    return enough and can_use_onednn(query, key) and this_processor().full_width


class _Attention(torch.autograd.Function):
    """Keeps inputs, result and one number per query for the backward pass.

    With scores s = query key^T / sqrt(head_dim), shares p = exp(s - log sum exp s) and the result y = p value:

        dvalue = p^T dy,   ds = p (dy value^T - sum(dy y)),   dquery = ds key / sqrt(head_dim),   dkey = ds^T query / sqrt(head_dim)

    Scores are in units of log 2, because powers of two are faster than exponentials.
    """

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        query, key, value = parts if len(parts) == 3 else parts[0]
        images, heads, queries, dim = query.shape
        unit = dim**-0.5 / math.log(2)
        y = query.new_empty(images, queries, heads, dim).transpose(1, 2)
        logs = query.new_empty(images, heads, queries, 1)
        for at in itertools.product(range(images), range(heads)):
            one_key, one_value = key[at].contiguous(), value[at].contiguous()
            for rows in _blocks(queries):
                p = product(query[at][rows] * unit, one_key)
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
        unit = dim**-0.5 / math.log(2)
        for at in itertools.product(range(images), range(heads)):
            one_key, one_value, dy = key[at].contiguous(), value[at].contiguous(), gradient[at].contiguous()
            # of all queries so far; transposed because these products are faster
            dkey_t = dvalue_t = one_key.new_zeros(())
            for rows in _blocks(queries):
                q, g = query[at][rows] * unit, dy[rows]
                p = product(q, one_key).sub_(logs[at][rows]).exp2_()
                ds = product(g, one_value).sub_((g * y[at][rows]).sum(1, keepdim=True)).mul_(p)
                dvalue_t = product(g.t(), p.t()) + dvalue_t
                dkey_t = product(q.t(), ds.t()) + dkey_t
                torch.mul(product(ds, one_key.t()), dim**-0.5, out=dquery[at][rows])
            torch.mul(dkey_t.t(), math.log(2), out=dkey[at])
            dvalue[at] = dvalue_t.t()
        return tuple(gradients)


def _blocks(queries: int) -> list[slice]:
    """Slices of as equal length as possible."""
    size = -(-queries // -(-queries // MAX_ROWS))
    return [slice(start, start + size) for start in range(0, queries, size)]
