"""The opponent: relaxed sorting and its loss by the published formula, every layer a handful of dense 0/1 matrices.

Each layer of a network is four matrices: two pick the wires a and b of its comparators, two put the smaller and the larger value
back. A wire without partner is a comparator with itself whose halves are added up again. Scores and permutation matrices
are multiplied through all layers, and autograd keeps what it needs (Petersen et al., https://arxiv.org/abs/2105.04019, section 3).
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


class LayerMatrices(NamedTuple):
    """`pick` [comparators, n] takes wires out, `put` [n, comparators] puts values back."""

    pick_a: Tensor
    pick_b: Tensor
    put_min: Tensor
    put_max: Tensor


def sort_loss(student: Tensor, teacher: Tensor, kind: str, student_steepness: float, teacher_steepness: float) -> Tensor:
    """Mean over rows and inputs of -sum_k Q log P."""
    p, _ = relaxed_sort(student, kind, student_steepness)
    with torch.no_grad():
        q, _ = relaxed_sort(teacher, kind, teacher_steepness)
    return -(q * p.log()).sum(dim=-1).mean()


def relaxed_sort(x: Tensor, kind: str, steepness: float) -> tuple[Tensor, Tensor]:
    """P [rows, input, position] and the sorted scores, ascending, for scores [rows, n]."""
    p = torch.eye(x.shape[1], dtype=x.dtype).expand(len(x), -1, -1)
    for layer in matrices(kind, x.shape[1]):
        pick_a, pick_b, put_min, put_max = (m.to(x.dtype) for m in layer)
        a, b = x @ pick_a.T, x @ pick_b.T
        alpha = torch.atan(steepness * (b - a)) / math.pi + 0.5
        x = (alpha * a + (1 - alpha) * b) @ put_min.T + ((1 - alpha) * a + alpha * b) @ put_max.T
        alpha = alpha.unsqueeze(-2)
        a, b = p @ pick_a.T, p @ pick_b.T
        p = per_row(alpha * a + (1 - alpha) * b, put_min.T) + per_row((1 - alpha) * a + alpha * b, put_max.T)
    return p, x


def per_row(matrices_: Tensor, constant: Tensor) -> Tensor:
    """Each row's matrix times the constant one, as a product of its own (bmm)."""
    return torch.bmm(matrices_, constant.expand(len(matrices_), -1, -1))


@lru_cache
def matrices(kind: str, n: int) -> list[LayerMatrices]:
    """The matrices of each layer."""
    layers = []
    for pairs in odd_even(n) if kind == "odd_even" else bitonic(n):
        alone = sorted(set(range(n)) - {wire for pair in pairs for wire in pair})
        low, high = [a for a, _ in pairs] + alone, [b for _, b in pairs] + alone
        pick_a, pick_b = torch.eye(n)[low], torch.eye(n)[high]
        half = torch.tensor([1.0] * len(pairs) + [0.5] * len(alone))
        layers.append(LayerMatrices(pick_a, pick_b, pick_a.T * half, pick_b.T * half))
    return layers


def odd_even(n: int) -> list[list[tuple[int, int]]]:
    """Pairs (smaller to, larger to) of each layer."""
    return [[(i, i + 1) for i in range(layer % 2, n - 1, 2)] for layer in range(n)]


def bitonic(n: int) -> list[list[tuple[int, int]]]:
    """Batcher's network of the next power of two, without its lowest wires."""
    width = 1 << (n - 1).bit_length()
    spare, layers, block = width - n, [], 2
    while block <= width:
        stride = block // 2
        while stride:
            pairs = [(i, i ^ stride) for i in range(width) if i & stride == 0]
            pairs = [(a, b) if a & block == 0 else (b, a) for a, b in pairs if min(a, b) >= spare]
            layers.append([(a - spare, b - spare) for a, b in pairs])
            stride //= 2
        block *= 2
    return layers
