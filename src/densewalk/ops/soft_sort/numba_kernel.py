"""The sort loss as a CPU kernel, compiled by numba.

It works on one row of scores at a time: the row's matrices (20 KB for 49 scores) and the numbers for its backward pass (50 KB) stay in
the caches. Inputs that cannot have reached a wire yet are left out. The rows are divided among as many threads as torch uses.
"""

# numba infers the types inside
# mypy: allow-untyped-defs, no-check-untyped-defs

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.polynomial import Chebyshev, Polynomial
from numpy.typing import NDArray
from torch import Tensor

from densewalk.ops.cpu.compiled import compiled, over_rows
from densewalk.ops.soft_sort.loss import FLOOR
from densewalk.ops.soft_sort.networks import SWAPS, Network, Relaxation

# sums may be reordered and multiplications fused with additions; NaN and infinity keep their meaning
_compiled = compiled(fastmath={"reassoc", "contract", "nsz"})
_F = np.float32
_I = np.int32
_PI = _F(math.pi)
_LN2 = _F(math.log(2))
_SQRT_HALF_BITS = _I(np.float32(math.sqrt(0.5)).view(np.int32))
_KINDS = list(SWAPS)
_CAUCHY, _LOGISTIC, _GAUSSIAN, _RECIPROCAL = (_KINDS.index(kind) for kind in ("cauchy", "logistic", "gaussian", "reciprocal"))


class _Wiring(NamedTuple):
    """Of each comparator: wires, sign, and start and length of its part of the matrices.

    The integers are unsigned: signed ones make every access check for counting from the end.
    """

    low: NDArray[np.uint64]
    high: NDArray[np.uint64]
    signs: NDArray[np.float32]
    matrix_low: NDArray[np.uint64]
    matrix_high: NDArray[np.uint64]
    reach: NDArray[np.uint64]
    layers: NDArray[np.uint64]  # first comparator of each layer, and their number


@lru_cache(maxsize=32)
def _wiring(network: Network) -> _Wiring:
    low, high, begin, end = np.ascontiguousarray(network.wiring.T, np.uint64)
    n = np.uint64(network.n)
    layers = [*(layer.first for layer in network.layers), network.comparators]
    return _Wiring(
        low=low,
        high=high,
        signs=np.array(network.signs, _F),
        matrix_low=low * n + begin,
        matrix_high=high * n + begin,
        reach=end - begin,
        layers=np.array(layers, np.uint64),
    )


def score_rows(
    network: Network, relaxation: Relaxation, student: Float[Tensor, "rows n"], teacher: Float[Tensor, "rows n"], with_gradient: bool
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "rows n"] | None]:
    """`loss.score_rows` in float32 on the CPU."""
    order = slice(None, None, -1) if network.reverse else slice(None)
    s, t = (np.ascontiguousarray(x.detach().numpy()[:, order]) for x in (student, teacher))
    losses = np.empty(len(s), dtype=_F)
    grad = np.empty_like(s) if with_gradient else np.empty((0, network.n), dtype=_F)
    wiring, kind = _wiring(network), _KINDS.index(relaxation)

    def work(rows: slice) -> None:
        _score_rows(wiring, kind, s[rows], t[rows], losses[rows], grad[rows])

    over_rows(work, len(s))
    return torch.from_numpy(losses), torch.from_numpy(grad[:, order].copy()) if with_gradient else None


@_compiled
def _score_rows(wiring, kind, student, teacher, losses, grad):
    """Fill `losses` [rows] and `grad` [rows or 0, n]; overwrite the scores. p[k, i] is P[i, k]."""
    n, comparators = student.shape[1], len(wiring.low)
    p, q = np.empty(n * n, _F), np.empty(n * n, _F)
    kept = np.empty(wiring.reach.sum(), _F)
    shares, targets = np.empty(comparators, _F), np.empty(comparators, _F)
    slopes, gaps = np.empty(comparators, _F), np.empty(comparators, _F)
    for row in range(len(student)):
        _compare(wiring, kind, teacher[row], targets, slopes, gaps)
        _compare(wiring, kind, student[row], shares, slopes, gaps)
        p[:], q[:] = _F(0), _F(0)
        p[:: n + 1], q[:: n + 1] = _F(1), _F(1)
        _mix(wiring, shares, targets, p, q, kept)
        losses[row] = _cross_entropy(p, q) / _F(n)
        if len(grad):
            _to_gradient(p, q, _F(n))
            _mix_backward(wiring, shares, p, kept, targets)
            _compare_backward(wiring, shares, slopes, gaps, targets, grad[row])


@_compiled
def _compare(wiring, kind, x, shares, slopes, gaps):
    """Shares, gaps x_b - x_a and slopes d share / d gap for scores x [n] (overwritten)."""
    y = np.empty(len(shares), _F)
    low, high, signs, layers = wiring.low, wiring.high, wiring.signs, wiring.layers
    for layer in range(len(layers) - 1):
        begin, end = layers[layer], layers[layer + 1]
        for c in range(begin, end):
            gaps[c] = x[high[c]] - x[low[c]]
            y[c] = signs[c] * gaps[c]
        _swap(kind, begin, end, y, shares, slopes)
        for c in range(begin, end):
            slopes[c] *= signs[c]
            moved = shares[c] * gaps[c]
            x[low[c]] += moved
            x[high[c]] -= moved


@_compiled
def _compare_backward(wiring, shares, slopes, gaps, grad, g):
    """d loss / d scores g [n] from d loss / d shares."""
    g[:] = _F(0)
    low, high = wiring.low, wiring.high
    for c in range(len(shares) - 1, -1, -1):
        a, b = low[c], high[c]
        e = g[a] - g[b]
        change = shares[c] * e + (grad[c] + gaps[c] * e) * slopes[c]
        g[a] -= change
        g[b] += change


@_compiled
def _swap(kind, begin, end, y, shares, slopes):
    """`networks.SWAPS` and their derivatives for the comparators `begin` to `end`."""
    if kind == _CAUCHY:
        _swap_cauchy(begin, end, y, shares, slopes)
        return
    for i in range(begin, end):
        x, size = y[i], abs(y[i])
        if kind == _LOGISTIC:
            shares[i] = _F(1) / (_F(1) + math.exp(x))
            slopes[i] = -shares[i] * (_F(1) - shares[i])
        elif kind == _GAUSSIAN:
            shares[i] = _F(0.5) * math.erfc(x * _F(math.sqrt(0.5)))
            slopes[i] = -math.exp(_F(-0.5) * x * x) * _F(1 / math.sqrt(2 * math.pi))
        elif kind == _RECIPROCAL:
            shares[i] = _F(0.5) - _F(0.5) * x / (_F(2) + size)
            slopes[i] = _F(-1) / ((_F(2) + size) * (_F(2) + size))
        elif size <= _F(0.25):
            shares[i], slopes[i] = _F(0.5) - x, _F(-1)
        else:
            tail = _F(1) / (_F(16) * size)
            shares[i], slopes[i] = tail if x > 0 else _F(1) - tail, -tail / size


# atan(t) = t * polynomial(t^2) for 0 <= t <= 1, to 1e-7
_ATAN = tuple(
    _F(c) for c in Chebyshev.interpolate(lambda u: np.arctan(np.sqrt(u)) / np.sqrt(u), 8, domain=[0, 1]).convert(kind=Polynomial).coef
)


@_compiled
def _swap_cauchy(begin, end, y, shares, slopes):
    """1/2 - atan(y) / pi; the arc tangent is a polynomial so that it runs in vector registers."""
    c0, c1, c2, c3, c4, c5, c6, c7, c8 = _ATAN
    for i in range(begin, end):
        size = abs(y[i])
        t = min(size, _F(1) / size)
        u = t * t
        series = c0 + u * (c1 + u * (c2 + u * (c3 + u * (c4 + u * (c5 + u * (c6 + u * (c7 + u * c8)))))))
        angle = t * series / _PI
        share = angle if size > _F(1) else _F(0.5) - angle
        shares[i] = share if y[i] >= _F(0) else _F(1) - share
        slopes[i] = _F(-1) / (_PI * (_F(1) + size * size))


@_compiled
def _mix(wiring, shares, targets, p, q, kept):
    """Mix P by the student's shares, keeping differences, and Q by the teacher's."""
    low, high, reaches = wiring.matrix_low, wiring.matrix_high, wiring.reach
    at = np.uint64(0)
    for c in range(len(shares)):
        a, b, reach = low[c], high[c], reaches[c]
        s, t = shares[c], targets[c]
        s_, t_ = _F(1) - s, _F(1) - t
        for i in range(reach):
            x, y = p[a + i], p[b + i]
            kept[at + i] = x - y
            p[a + i] = s_ * x + s * y
            p[b + i] = s * x + s_ * y
        for i in range(reach):
            x, y = q[a + i], q[b + i]
            q[a + i] = t_ * x + t * y
            q[b + i] = t * x + t_ * y
        at += reach


@_compiled
def _mix_backward(wiring, shares, g, kept, grad):
    """d loss / d shares from d loss / d P (overwritten)."""
    low, high, reaches = wiring.matrix_low, wiring.matrix_high, wiring.reach
    at = np.uint64(len(kept))
    for c in range(len(shares) - 1, -1, -1):
        a, b, reach = low[c], high[c], reaches[c]
        at -= reach
        s = shares[c]
        s_ = _F(1) - s
        total = _F(0)
        for i in range(reach):
            x, y = g[a + i], g[b + i]
            total += kept[at + i] * (y - x)
            g[a + i] = s_ * x + s * y
            g[b + i] = s * x + s_ * y
        grad[c] = total


@_compiled
def _cross_entropy(p, q):
    """-sum q log max(p, FLOOR), by a polynomial that runs in vector registers.

    p = 2^e m with sqrt(1/2) <= m < sqrt(2);  log p = e log 2 + 2 (z + z^3/3 + ... + z^9/9),  z = (m - 1) / (m + 1), |z| < 0.172
    """
    floored = np.maximum(p, _F(FLOOR))
    bits = floored.view(np.int32)
    mantissa_bits = np.empty_like(bits)
    for i in range(len(bits)):
        e = _I(_I(bits[i] - _SQRT_HALF_BITS) >> _I(23))
        mantissa_bits[i] = _I(bits[i] - _I(e << _I(23)))
    mantissa = mantissa_bits.view(np.float32)
    total = _F(0)
    for i in range(len(q)):
        e = _F(_I(_I(bits[i] - _SQRT_HALF_BITS) >> _I(23)))
        z = (mantissa[i] - _F(1)) / (mantissa[i] + _F(1))
        z2 = z * z
        series = z * (_F(2) + z2 * (_F(2 / 3) + z2 * (_F(2 / 5) + z2 * (_F(2 / 7) + z2 * _F(2 / 9)))))
        total -= q[i] * (e * _LN2 + series)
    return total


@_compiled
def _to_gradient(p, q, n):
    """P becomes d loss / d P = -q / p / n, zero where P was below FLOOR."""
    for i in range(len(p)):
        x = p[i]
        p[i] = -q[i] / (max(x, _F(FLOOR)) * n) if x >= _F(FLOOR) else _F(0)
