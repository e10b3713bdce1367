"""The loss between two relaxed sorts, without their permutation matrices.

    loss = sort_loss(student_scores, teacher_scores, network=network("bitonic", 49), student_steepness=100, teacher_steepness=100)

A sorting network is a fixed list of compare-exchanges of two wires. Relaxed (Petersen et al., https://arxiv.org/abs/2105.04019),
the wires a and b (a shall hold the smaller score) swap by the share s instead of entirely or not at all:

    s = swap(steepness * (x_b - x_a))           1 where x_a is far above x_b, 1/2 where they are equal, 0 where it is far below
    x_a, x_b = (1 - s) x_a + s x_b, s x_a + (1 - s) x_b

The same shares mix the columns of P, which starts as the identity, so that P[i, k] says how much of input i lies at position k and
sorted(x) = x P. NeCo (https://arxiv.org/abs/2408.11054, equations 3 to 5) asks the student's P to equal the teacher's, Q:

    loss of one row = -1/n sum_i sum_k Q[i, k] log P[i, k]

Two stages: the shares of all compare-exchanges, computed from the scores (`_compare`), and the mixing of P by them, the loss and
its gradient with respect to each share (`mix_and_score`, here in plain torch; as a compiled CPU kernel in sorting_numba.py and
as a CUDA kernel in sorting_triton.py). Gradients are made in the forward pass, chunk by chunk, so that only d loss / d scores is
kept: [rows, n] numbers instead of some forty matrices of [rows, n, n].
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
# what `mix_and_score` does
Mixer = Callable[["Network", Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]
# what `score_rows` does
Scorer = Callable[["Network", Relaxation, Tensor, Tensor, bool], tuple[Tensor, Tensor | None]]
# P is not taken to be smaller than this: log P stays finite where the product of many small shares underflows
FLOOR = 1e-30


def sort_loss(
    student: Float[Tensor, "rows n"],
    teacher: Float[Tensor, "rows n"],
    *,
    network: "Network",
    student_steepness: float,
    teacher_steepness: float,
    relaxation: Relaxation = "cauchy",
    backend: Backend = "auto",
) -> Float[Tensor, ""]:
    """Mean over the rows of `sort_losses`."""
    return sort_losses(
        student,
        teacher,
        network=network,
        student_steepness=student_steepness,
        teacher_steepness=teacher_steepness,
        relaxation=relaxation,
        backend=backend,
    ).mean()


def sort_losses(
    student: Float[Tensor, "rows n"],
    teacher: Float[Tensor, "rows n"],
    *,
    network: "Network",
    student_steepness: float,
    teacher_steepness: float,
    relaxation: Relaxation = "cauchy",
    backend: Backend = "auto",
) -> Float[Tensor, " rows"]:
    """Cross-entropy of the student's relaxed sorting matrix P against the teacher's Q, for each row of scores.

        for row in range(rows):
            P, Q = relaxed_sort(student[row]), relaxed_sort(teacher[row])
            loss[row] = -(Q * log(max(P, 1e-30))).sum() / n

    Half precision is computed in float32, also under autocast; float64 stays float64 (and is computed by torch).

    Args:
        network: of n wires, see `network`.
        student_steepness, teacher_steepness: the larger, the harder the comparisons.
        backend: `auto` takes Triton on CUDA and numba on the CPU where they are installed.

    Returns:
        One value of at least 0 for each row, differentiable once with respect to `student`.

    Raises:
        ValueError: the scores do not have the network's number of columns.
    """
    if student.shape[1] != network.n:
        raise ValueError(f"a network of {network.n} wires cannot sort {student.shape[1]} scores")
    with torch.autocast(student.device.type, enabled=False):
        wide = torch.promote_types(student.dtype, torch.float32)
        score = _scorer(backend, student.device.type, wide)
        scaled = student.to(wide) * student_steepness
        losses: Tensor = _SortLosses.apply(scaled, teacher.detach().to(wide) * teacher_steepness, network, relaxation, score)
    return losses


# -- loss and gradient in one pass --------------------------------------------------------------------------------------


class _SortLosses(torch.autograd.Function):
    """Losses and gradient in one go; only the gradient is kept."""

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
    wanted: bool,
    mix: Mixer | None = None,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows n"] | None]:
    """The loss of each row and, if `wanted`, its gradient with respect to the student's scores; scores are in units of the steepness.

    Rows are worked off in chunks; what a chunk needs on the way is forgotten with it.

    Args:
        mix: another implementation of `mix_and_score`.
    """
    chunk = 1024 if student.device.type == "cpu" else 8192
    chunks = zip(student.split(chunk), teacher.split(chunk), strict=True)
    parts = [_score_chunk(network, SWAPS[relaxation], s, t, wanted, mix or mix_and_score) for s, t in chunks]
    losses = torch.cat([loss for loss, _ in parts])
    return losses, torch.cat([grad for _, grad in parts if grad is not None]) if wanted else None


def _score_chunk(network: Network, swap: Swap, student: Tensor, teacher: Tensor, wanted: bool, mix: Mixer) -> tuple[Tensor, Tensor | None]:
    rows = len(student)
    scores = torch.cat([student, teacher])
    scores = (scores.flip(1) if network.reverse else scores).T.contiguous()
    signs = torch.tensor(network.signs, dtype=student.dtype, device=student.device)[:, None]
    shares, differences = _compare(scores, network, swap, signs)
    losses, grad = mix(network, shares[:, :rows], shares[:, rows:], wanted)
    if grad is None:
        return losses, None
    scores_grad = _compare_backward(grad, shares[:, :rows], differences[:, :rows], network, swap, signs).T
    return losses, scores_grad.flip(1) if network.reverse else scores_grad


def _compare(x: Tensor, network: Network, swap: Swap, signs: Tensor) -> tuple[Tensor, Tensor]:
    """The share and the difference x_b - x_a of every comparator, [comparators, rows], for scores [n, rows] (overwritten).

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
    """d loss / d scores [n, rows] from d loss / d shares; the sorted scores themselves are in no loss.

    for c, (a, b) in reversed(comparators):
        e = g[a] - g[b]
        gd = shares[c] * e + (grad[c] + differences[c] * e) * d share / d difference
        g[a], g[b] = g[a] - gd, g[b] + gd
    """
    slope = _slope(swap, signs * differences).mul_(signs)
    g = grad.new_zeros(network.n, grad.shape[1])
    for layer in reversed(network.layers):
        for a, b, s, d, own, k in layer.slices(g, shares, differences, grad, slope):
            e = a - b
            change = torch.addcmul(own, d, e).mul_(k).addcmul_(s, e)
            a.sub_(change)
            b.add_(change)
    return g


def _slope(swap: Swap, y: Tensor) -> Tensor:
    """d swap / dy, element by element."""
    with torch.enable_grad():
        y = y.requires_grad_()
        return torch.autograd.grad(swap(y).sum(), y)[0]


# -- back ends -------------------------------------------------------------------------------------------------------


def mix_and_score(
    network: Network, shares: Float[Tensor, "comparators rows"], targets: Float[Tensor, "comparators rows"], wanted: bool
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "comparators rows"] | None]:
    """The loss of each row from the student's and the teacher's shares, and d loss / d shares if `wanted`.

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
    parts = [_mix_rows(network, s, t, wanted) for s, t in zip(shares.split(rows, 1), targets.split(rows, 1), strict=True)]
    losses = torch.cat([loss for loss, _ in parts])
    return losses, torch.cat([grad for _, grad in parts if grad is not None], dim=1) if wanted else None


def _mix_rows(network: Network, shares: Tensor, targets: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """`mix_and_score` of few enough rows that [n, n, rows] numbers stay in the cache; wires come first, rows last."""
    n, rows = network.n, shares.shape[1]
    identity = torch.eye(n, dtype=shares.dtype, device=shares.device)[:, :, None].expand(n, n, rows)
    q = identity.clone()
    for layer in network.layers:
        q = _exchange(q, layer, targets)
    states = [identity.clone()]
    for layer in network.layers:
        states.append(_exchange(states[-1], layer, shares))
        if not wanted:
            del states[0]
    p = states.pop()
    losses = -(q * p.clamp(min=FLOOR).log()).sum(dim=(0, 1)) / n
    if not wanted:
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
    """One layer's mixing of x [n, n, rows]; lerp keeps the relative precision of small entries."""
    mixed = x.clone() if 2 * layer.size < len(x) else torch.empty_like(x)
    for (a, b, s), (to_a, to_b) in zip(layer.slices(x, shares), layer.slices(mixed), strict=True):
        s = s.unsqueeze(-2)
        torch.lerp(a, b, s, out=to_a)
        torch.lerp(b, a, s, out=to_b)
    return mixed


def _scorer(backend: Backend, device: str, dtype: torch.dtype) -> Scorer:
    """The function that does the work of `score_rows`: on the CPU numba's, on CUDA Triton's, where installed and in float32."""
    compiled = {"cpu": "numba", "cuda": "triton"}.get(device, "torch")
    if backend == "auto":
        backend = compiled if dtype == torch.float32 and _importable(compiled) else "torch"  # type: ignore[assignment]
    if backend == "torch":
        return score_rows
    return importlib.import_module(f"densewalk.ops.soft_sort.{backend}_kernel").score_rows  # type: ignore[no-any-return]


@cache
def _importable(package: str) -> bool:
    found = package == "torch" or importlib.util.find_spec(package) is not None
    if not found:
        log.info("%s is not installed: the sort loss runs in plain torch", package)
    return found
