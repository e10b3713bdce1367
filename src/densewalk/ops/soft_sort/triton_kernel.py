"""`loss.mix_and_score` as a CUDA kernel, compiled by Triton.

One warp works on one row of scores after another. Its matrices and the differences for the backward pass, 150 KB for 49 scores, lie in
scratch memory of its own; nothing grows with the number of rows.
"""

# Triton infers the types inside
# mypy: allow-untyped-defs, no-check-untyped-defs

from functools import partial

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor

from densewalk.ops.soft_sort import loss
from densewalk.ops.soft_sort.loss import FLOOR
from densewalk.ops.soft_sort.networks import Network

PROGRAMS = 2048  # at once: more than any GPU of today runs, at 150 KB each


def mix_and_score(
    network: Network, shares: Float[Tensor, "comparators rows"], targets: Float[Tensor, "comparators rows"], with_gradient: bool
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "comparators rows"] | None]:
    """`loss.mix_and_score` in float32 on CUDA."""
    comparators, rows = shares.shape
    low, high = torch.from_numpy(network.wiring[:, :2].T.copy()).to(shares.device, torch.int32)
    width = triton.next_power_of_2(network.n)
    programs = min(rows, PROGRAMS)
    size = (2 * network.n + comparators) * width
    scratch = shares.new_empty(programs, size)
    losses = shares.new_empty(rows)
    grad = torch.empty_like(shares, memory_format=torch.contiguous_format)
    shares, targets = shares.contiguous(), targets.contiguous()
    _mix_rows[(programs,)](
        low, high, shares, targets, losses, grad, scratch, rows, network.n, comparators, size, FLOOR, with_gradient, width, num_warps=1
    )
    return losses, grad if with_gradient else None


score_rows = partial(loss.score_rows, mix=mix_and_score)


@triton.jit
def _mix_rows(
    low, high, shares, targets, losses, grad, scratch, rows, n, comparators, size, floor, with_gradient: tl.constexpr, width: tl.constexpr
):
    """Fill losses [rows] and grad [comparators, rows]; p[k * width + i] is P[i, k]."""
    lane = tl.arange(0, width)
    p = scratch + tl.program_id(0).to(tl.int64) * size + lane
    q = p + n * width
    kept = q + n * width
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        for k in range(n):
            one = tl.where(lane == k, 1.0, 0.0)
            tl.store(p + k * width, one)
            tl.store(q + k * width, one)
        tl.debug_barrier()
        for c in range(comparators):
            a = tl.load(low + c) * width
            b = tl.load(high + c) * width
            s = tl.load(shares + c * rows + row)
            x = tl.load(p + a)
            y = tl.load(p + b)
            tl.store(kept + c * width, x - y)
            tl.store(p + a, (1 - s) * x + s * y)
            tl.store(p + b, s * x + (1 - s) * y)
            t = tl.load(targets + c * rows + row)
            x = tl.load(q + a)
            y = tl.load(q + b)
            tl.store(q + a, (1 - t) * x + t * y)
            tl.store(q + b, t * x + (1 - t) * y)
            tl.debug_barrier()
        total = tl.zeros([width], dtype=tl.float32)
        for k in range(n):
            x = tl.load(p + k * width)
            y = tl.load(q + k * width)
            clipped = tl.maximum(x, floor)
            total -= y * tl.log(clipped)
            tl.store(p + k * width, tl.where(x >= floor, -y / (clipped * n), 0.0))
        tl.store(losses + row, tl.sum(total, axis=0) / n)
        tl.debug_barrier()
        if with_gradient:
            for i in range(comparators):
                c = comparators - 1 - i
                a = tl.load(low + c) * width
                b = tl.load(high + c) * width
                s = tl.load(shares + c * rows + row)
                x = tl.load(p + a)
                y = tl.load(p + b)
                tl.store(grad + c * rows + row, tl.sum(tl.load(kept + c * width) * (y - x), axis=0))
                tl.store(p + a, (1 - s) * x + s * y)
                tl.store(p + b, s * x + (1 - s) * y)
                tl.debug_barrier()
