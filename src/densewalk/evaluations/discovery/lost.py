"""LOST (https://arxiv.org/abs/2109.14279, section 3): the patches that are similar to those least like all others."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

STRIP = 512  # patches whose similarities to all others exist at once


def lost(x: Float[Tensor, "patches dim"], k: int) -> tuple[Bool[np.ndarray, " patches"], int]:
    """LOST's mask and its seed.

    A = x @ x.T
    degree = [(A[p] > 0).sum() - (A[p, p] > 0) for p in patches]
    order = stable argsort(degree);  seed = order[0]
    similar = [q for q in order[:k] if A[seed, q] > 0]
    mask = [sum(A[q, p] for q in similar) > 0 for p in patches]
    """
    order = degrees(x).argsort(stable=True)
    seed, candidates = order[0], order[:k]
    similar = candidates[x[candidates] @ x[seed] > 0]
    mask = x @ x[similar].sum(0) > 0
    return mask.cpu().numpy(), int(seed)


def degrees(x: Float[Tensor, "patches dim"]) -> Int[Tensor, " patches"]:
    """How many other patches each one is positively similar to, in strips of the matrix of similarities."""
    counts = torch.cat([(strip @ x.T > 0).sum(1) for strip in x.split(STRIP)])
    return counts - (x.square().sum(1) > 0).long()
