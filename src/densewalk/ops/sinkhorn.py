"""Sinkhorn-Knopp: assign rows to columns so that every column gets the same share.

DoRA (https://arxiv.org/abs/2310.08584, section 3.2) assigns the patches of a frame to its objects, Time-Tuning
(https://arxiv.org/abs/2308.11796, section 3.2) the patches of a batch to its prototypes. Their releases exponentiate and divide: 0 / 0 if
all scores of a column lie some 100 epsilon below the largest one. Here every step is a subtraction of logarithms.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from densewalk.core import distributed

LARGEST = 1e30  # keeps the difference of two logarithms finite if scores / epsilon overflows float32


class NonFiniteScores(ArithmeticError):
    """Scores with NaN or infinity: there is no assignment to compute."""


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "*batch rows cols"], *, epsilon: float, iterations: int, across_processes: bool = False
) -> Float[Tensor, "*batch rows cols"]:
    """Soft assignment exp(scores / epsilon): columns share the rows evenly, rows sum to 1.

        X = exp(scores / epsilon)
        repeat `iterations` times:
            X[:, c] *= (1 / cols) / sum_r X[r, c]          for every column c
            X[r, :] *= (1 / rows) / sum_c X[r, c]          for every row r
        return rows * X

    Rows sum to 1 exactly, columns to rows / cols only in the limit: for peaked scores, `iterations` is part of a method.
    The constants 1 / cols and 1 / rows cancel. Half precision is computed in float32.

    across_processes: columns share the rows of all processes; all must call it.

    Raises:
        NonFiniteScores: a score is NaN or infinite.
    """
    if epsilon <= 0 or iterations < 1:
        raise ValueError(f"Sinkhorn needs epsilon > 0 and iterations >= 1, got {epsilon} and {iterations}")
    bad = int((~torch.isfinite(scores)).sum())
    if bad:
        raise NonFiniteScores(f"{bad} of {scores.numel()} Sinkhorn scores are NaN or infinite")
    x = scores if scores.dtype == torch.float64 else scores.float()
    largest = x.amax(dim=(-2, -1), keepdim=True) if x.numel() else x.new_full((*x.shape[:-2], 1, 1), -torch.inf)
    x = (x - (distributed.gathered(largest).amax(dim=0) if across_processes else largest)) / epsilon  # first, for its precision
    x = x.clamp(min=-LARGEST)
    for _ in range(iterations):
        columns = x.logsumexp(dim=-2, keepdim=True)
        x -= distributed.gathered(columns).logsumexp(dim=0) if across_processes else columns
        x -= x.logsumexp(dim=-1, keepdim=True)
    return x.exp()


@torch.no_grad()
def linear_sinkhorn(scores: Float[Tensor, "*batch rows cols"], *, epsilon: float, iterations: int) -> Float[Tensor, "*batch rows cols"]:
    """`sinkhorn` by multiplication, as in DoRA's release, for comparison with it.

    All NaN if all exponentials of a column underflow: in float32 from scores about 103 epsilon below the largest on.
    """
    rows, cols = scores.shape[-2:]
    x = scores / epsilon
    x = (x - x.amax(dim=(-2, -1), keepdim=True)).exp()
    x = x / x.sum(dim=(-2, -1), keepdim=True)
    for _ in range(iterations):
        x = x / x.sum(dim=-2, keepdim=True) / cols
        x = x / x.sum(dim=-1, keepdim=True) / rows
    return x * rows
