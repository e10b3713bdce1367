"""The loss between two relaxed sorts, without their permutation matrices.

    losses = sort_losses(student_scores, teacher_scores, network=network("bitonic", 49), student_steepness=100, teacher_steepness=100)

A sorting network is a fixed list of compare-exchanges of two wires. Relaxed (Petersen et al., https://arxiv.org/abs/2105.04019),
the wires a and b (a gets the smaller score) swap by the share s instead of entirely or not at all:

    s = swap(steepness * (x_b - x_a))           1 if x_a is far above x_b, 1/2 if they are equal, 0 if it is far below
    x_a, x_b = (1 - s) x_a + s x_b, s x_a + (1 - s) x_b

The same shares mix the columns of P, which starts as the identity: P[i, k] is the part of input i at position k, sorted(x) = x P.

Two stages: the shares of all comparators from the scores (`_compare`), then P, the loss and its gradient by each share
(`mix_and_score` in torch; numba_kernel.py on a CPU, triton_kernel.py on CUDA). Gradients are computed in the forward pass, chunk by
chunk: only d loss / d scores is kept, [rows, n] numbers instead of some forty matrices of [rows, n, n].
"""

import importlib
import importlib.util
import logging
from collections.abc import Callable
from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from densewalk.ops.soft_sort.networks import SWAPS, Layer, Network, Relaxation, Swap

log = logging.getLogger("densewalk")
Backend = Literal["auto", "torch", "numba", "triton"]
Mixer = Callable[[Network, Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]  # `mix_and_score`
Scorer = Callable[[Network, Relaxation, Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]  # `score_rows`
FLOOR = 1e-30  # of P: log P stays finite if the product of many small shares underflows


def sort_losses(
    student: Float[Tensor, "rows n"],
    teacher: Float[Tensor, "rows n"],
    *,
    network: Network,
    student_steepness: float,
    teacher_steepness: float,
    relaxation: Relaxation = "cauchy",
    backend: Backend = "auto",
) -> Float[Tensor, " rows"]:
    """Cross-entropy of the student's relaxed sorting matrix P against the teacher's Q.

        for row in range(rows):
            P, Q = relaxed_sort(student[row]), relaxed_sort(teacher[row])
            loss[row] = -(Q * log(max(P, 1e-30))).sum() / n

    Differentiable once by `student`. Half precision is computed in float32, also under autocast; float64 is computed by torch.
    Source: NeCo (https://arxiv.org/abs/2408.11054), equations 3 to 6.

    steepness: the larger, the harder the comparisons. backend: `auto` is Triton on CUDA, numba on the CPU, if installed.
    """
    if student.shape[1] != network.n:
        raise ValueError(f"a network of {network.n} wires cannot sort {student.shape[1]} scores")
    with torch.autocast(student.device.type, enabled=False):
        wide = torch.promote_types(student.dtype, torch.float32)
        score = _scorer(backend, student.device.type, wide)
        scaled = student.to(wide) * student_steepness
        return _SortLosses.apply(scaled, teacher.detach().to(wide) * teacher_steepness, network, relaxation, score)


class _SortLosses(torch.autograd.Function):
    """Losses and gradient in one pass; only the gradient is kept."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, network: Network, relaxation: Relaxation, score: Scorer) -> Tensor:
        losses, grad = score(network, relaxation, student, teacher, ctx.needs_input_grad[0])
        if grad is not None:
            ctx.save_for_backward(grad)
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (scores_grad,) = ctx.saved_tensors
        return grad[:, None] * scores_grad, None, None, None, None


def score_rows(
    network: Network,
    relaxation: Relaxation,
    student: Float[Tensor, "rows n"],
    teacher: Float[Tensor, "rows n"],
    with_gradient: bool,
    mix: Mixer | None = None,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows n"] | None]:
    """The loss of each row and its gradient by the student's scores (times the steepness)."""
    chunk = 1024 if student.device.type == "cpu" else 8192
    chunks = zip(student.split(chunk), teacher.split(chunk), strict=True)
    parts = [_score_chunk(network, SWAPS[relaxation], s, t, with_gradient, mix or mix_and_score) for s, t in chunks]
    losses = torch.cat([loss for loss, _ in parts])
    return losses, torch.cat([grad for _, grad in parts if grad is not None]) if with_gradient else None


def _score_chunk(
    network: Network, swap: Swap, student: Tensor, teacher: Tensor, with_gradient: bool, mix: Mixer
) -> tuple[Tensor, Tensor | None]:
    rows = len(student)
    scores = torch.cat([student, teacher])
    scores = (scores.flip(1) if network.reverse else scores).T.contiguous()
    signs = torch.tensor(network.signs, dtype=student.dtype, device=student.device)[:, None]
    shares, differences = _compare(scores, network, swap, signs)
    losses, grad = mix(network, shares[:, :rows], shares[:, rows:], with_gradient)
    if grad is None:
        return losses, None
    scores_grad = _compare_backward(grad, shares[:, :rows], differences[:, :rows], network, swap, signs).T
    return losses, scores_grad.flip(1) if network.reverse else scores_grad


def _compare(x: Tensor, network: Network, swap: Swap, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Shares and differences [comparators, rows] for scores x [n, rows] (overwritten).

    for c, (a, b) in enumerate(comparators):
        differences[c] = x[b] - x[a]
        shares[c] = swap(signs[c] * differences[c])
        x[a], x[b] = x[a] + shares[c] * differences[c], x[b] - shares[c] * differences[c]
    """
    shares = x.new_empty(network.comparators, x.shape[1])
    differences = torch.empty_like(shares)
    for layer in network.layers:
        own = slice(layer.first, layer.first + layer.size)
        for a, b, d in layer.slices(x, differences):
            torch.sub(b, a, out=d)
        shares[own] = swap(signs[own] * differences[own])
        for a, b, d, s in layer.slices(x, differences, shares):
            a.addcmul_(d, s)
            b.addcmul_(d, s, value=-1)
    return shares, differences


def _compare_backward(grad: Tensor, shares: Tensor, differences: Tensor, network: Network, swap: Swap, signs: Tensor) -> Tensor:
    """Compute d loss / d scores [n, rows] from d loss / d shares.

    for c, (a, b) in reversed(comparators):
        e = g[a] - g[b]
        gd = shares[c] * e + (grad[c] + differences[c] * e) * d share / d difference
        g[a], g[b] = g[a] - gd, g[b] + gd
    """
    with torch.enable_grad():
        y = (signs * differences).requires_grad_()
        slope = torch.autograd.grad(swap(y).sum(), y)[0].mul_(signs)
    g = grad.new_zeros(network.n, grad.shape[1])
    for layer in reversed(network.layers):
        for a, b, s, d, own, k in layer.slices(g, shares, differences, grad, slope):
            e = a - b
            change = torch.addcmul(own, d, e).mul_(k).addcmul_(s, e)
            a.sub_(change)
            b.add_(change)
    return g


def mix_and_score(
    network: Network, shares: Float[Tensor, "comparators rows"], targets: Float[Tensor, "comparators rows"], with_gradient: bool
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "comparators rows"] | None]:
    """The loss of each row from the student's shares and the teacher's, and d loss / d shares.

    P, Q = identity, identity
    for c, (a, b) in enumerate(comparators):
        difference[c] = P[:, a] - P[:, b]
        P[:, a], P[:, b] = (1 - s[c]) P[:, a] + s[c] P[:, b], s[c] P[:, a] + (1 - s[c]) P[:, b]      and Q likewise
    loss = -(Q * log(P)).sum() / n
    G = -Q / P / n
    for c, (a, b) in reversed(comparators):
        d_shares[c] = -(difference[c] * (G[:, a] - G[:, b])).sum()
        G[:, a], G[:, b] = (1 - s[c]) G[:, a] + s[c] G[:, b], s[c] G[:, a] + (1 - s[c]) G[:, b]
    """
    rows = 64 if shares.device.type == "cpu" else 4096
    parts = [_mix_rows(network, s, t, with_gradient) for s, t in zip(shares.split(rows, 1), targets.split(rows, 1), strict=True)]
    losses = torch.cat([loss for loss, _ in parts])
    return losses, torch.cat([grad for _, grad in parts if grad is not None], dim=1) if with_gradient else None


def _mix_rows(network: Network, shares: Tensor, targets: Tensor, with_gradient: bool) -> tuple[Tensor, Tensor | None]:
    """`mix_and_score` for so few rows that [n, n, rows] numbers stay in the cache."""
    n, rows = network.n, shares.shape[1]
    identity = torch.eye(n, dtype=shares.dtype, device=shares.device)[:, :, None].expand(n, n, rows)
    q = identity.clone()
    for layer in network.layers:
        q = _exchange(q, layer, targets)
    states = [identity.clone()]
    for layer in network.layers:
        states.append(_exchange(states[-1], layer, shares))
        if not with_gradient:
            del states[0]
    p = states.pop()
    losses = -(q * p.clamp(min=FLOOR).log()).sum(dim=(0, 1)) / n
    if not with_gradient:
        return losses, None
    g = torch.where(p >= FLOOR, -q / p.clamp(min=FLOOR) / n, 0)
    grad = torch.empty_like(shares)
    for layer, before in zip(reversed(network.layers), reversed(states), strict=True):
        pairs = zip(layer.slices(before), layer.slices(g, grad), strict=True)
        for (a, b), (ga, gb, out) in pairs:
            torch.sum((a - b).mul_(gb - ga), dim=-2, out=out)
        g = _exchange(g, layer, shares)
    return losses, grad


def _exchange(x: Tensor, layer: Layer, shares: Tensor) -> Tensor:
    """Mix x [n, n, rows] by one layer; lerp keeps the relative precision of small entries."""
    mixed = x.clone() if 2 * layer.size < len(x) else torch.empty_like(x)
    for (a, b, s), (to_a, to_b) in zip(layer.slices(x, shares), layer.slices(mixed), strict=True):
        s = s.unsqueeze(-2)
        torch.lerp(a, b, s, out=to_a)
        torch.lerp(b, a, s, out=to_b)
    return mixed


@cache
def _scorer(backend: Backend, device: str, dtype: torch.dtype) -> Scorer:
    """The implementation of `score_rows`."""
    name: str = backend
    if backend == "auto":  # torch if the compiler is not installed or the scores are not in float32
        name = {"cpu": "numba", "cuda": "triton"}.get(device, "torch") if dtype == torch.float32 else "torch"
        if name != "torch" and importlib.util.find_spec(name) is None:
            log.info("%s is not installed: the sort loss runs in plain torch", name)
            name = "torch"
    return score_rows if name == "torch" else importlib.import_module(f"densewalk.ops.soft_sort.{name}_kernel").score_rows
