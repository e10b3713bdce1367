"""TokenCut (https://arxiv.org/abs/2202.11539): the patches on one side of a normalized cut of the graph of their similarities.

graph = build_graph(similarities(x), tau, "binary")
vector, gap = second_eigenvector(graph)
mask, seed = partition(vector)                       # then the 4-connected component of the mask with the seed
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import scipy.linalg
from jaxtyping import Bool, Float
from scipy.linalg.blas import dsymv
from scipy.sparse import csr_array
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor
from torch.nn import functional as F

WEAK = 1e-5  # weight of patches that are not similar
DENSE = 64  # patches up to which the dense solver is used: it is exact, and as fast
REPEATED = 1e-6  # a smaller distance of the second and the third eigenvalue leaves the vector undefined
TIED = 1e-9  # entries that differ by less, relatively, are equal but for rounding
SPARSE = 0.1  # share of similar pairs up to which products with these pairs alone are faster
ROUGH = 1e-2  # accuracy of the third eigenvalue where it is not near the second
Graph = Float[np.ndarray, "patches patches"]
Vector = Float[np.ndarray, " patches"]


def similarities(x: Float[Tensor, "patches dim"]) -> Graph:
    """Cosines of all pairs, in float64."""
    unit = F.normalize(x.double(), dim=1)
    return (unit @ unit.T).cpu().numpy()


def build_graph(cosines: Graph, tau: float, kind: Literal["binary", "weighted"]) -> Graph:
    """Weights of the edges: 1, or the cosine, of pairs above the threshold, else WEAK; the diagonal likewise.

    binary:   W[i, j] = 1 if A[i, j] > tau else 1e-5
    weighted: W[i, j] = A[i, j] if A[i, j] >= tau else 1e-5
    """
    if kind == "binary":
        return np.where(cosines > tau, 1.0, WEAK)
    return np.where(cosines >= tau, cosines.clip(min=WEAK), WEAK)  # tau 0: no edge without weight


def second_eigenvector(graph: Graph) -> tuple[Vector, float]:
    """The second-smallest eigenvector v of (D - W) v = lambda D v, D = diag(W.sum(1)), and lambda_3 - lambda_2.

    With S = D^-1/2 W D^-1/2 and S u = mu u: v = D^-1/2 u and lambda = 1 - mu. All weights are positive, so that the largest mu is 1,
    alone, with u = D^1/2 1. S - 2 u u^T has -1 in its place, and Lanczos' method gives its largest pair: products with W instead of a
    decomposition, more than ten times as fast at 1,024 patches (benchmarks/tokencut.py). Where few patches are similar, the eigenvalues lie
    close together and more products are needed, but each is quicker. Started at fixed random vectors, it gives the same vector every time.
    A gap that is not below REPEATED is a rough value. The vector's sign is arbitrary.
    """
    degree = graph.sum(axis=1)
    scale = 1 / np.sqrt(degree)
    if len(graph) <= DENSE:
        return _dense(graph, scale)
    largest = np.sqrt(degree / degree.sum())
    multiply = multiplier(graph)
    start = np.random.default_rng(0).standard_normal((2, len(graph)))

    def without(*known: Vector) -> LinearOperator:
        def product(x: Vector) -> Vector:
            x = x.ravel()
            y: Vector = scale * multiply(scale * x)
            for vector in known:
                y -= 2 * vector * (vector @ x)
            return y

        return LinearOperator(graph.shape, matvec=product, dtype=np.float64)

    try:
        (second,), found = eigsh(without(largest), k=1, which="LA", tol=1e-12, v0=start[0])
        rest = without(largest, found[:, 0])
        third = eigsh(rest, k=1, which="LA", tol=ROUGH, ncv=8, v0=start[1], return_eigenvectors=False)[0]
        if third + 2 * ROUGH * abs(third) > second - REPEATED:
            third = eigsh(rest, k=1, which="LA", tol=1e-10, v0=start[1], return_eigenvectors=False)[0]
    except ArpackNoConvergence:  # very many nearly equal eigenvalues
        return _dense(graph, scale)
    return scale * found[:, 0], float(second - third)


def multiplier(graph: Graph) -> Callable[[Vector], Vector]:
    """A function that multiplies the graph with a vector.

    Where few pairs are similar, W x = WEAK sum(x) + V x, V the sparse matrix of what their weights have more than WEAK.
    """
    strong = graph > WEAK
    if np.count_nonzero(strong) > SPARSE * graph.size:
        columns = graph.T  # the same, in the order that BLAS takes without a copy
        return lambda x: dsymv(1.0, columns, x)
    place, patches = np.flatnonzero(strong), len(graph)
    rows = np.searchsorted(place, patches * np.arange(patches + 1))
    more = csr_array((graph.ravel()[place] - WEAK, place % patches, rows), shape=graph.shape)
    return lambda x: more @ x + WEAK * x.sum()


def _dense(graph: Graph, scale: Vector) -> tuple[Vector, float]:
    """The same by a decomposition."""
    patches = len(graph)
    if patches == 1:
        return np.ones(1), float("inf")
    values, vectors = scipy.linalg.eigh(scale[:, None] * graph * scale, subset_by_index=[max(0, patches - 3), patches - 2])
    return scale * vectors[:, -1], float(values[-1] - values[0]) if patches > 2 else float("inf")


def partition(vector: Vector) -> tuple[Bool[np.ndarray, " patches"], int]:
    """The patches above the vector's mean, or those that are not: whichever has the seed, the entry of the largest size.

    Of several seeds that are equal but for rounding, the first.
    """
    size = np.abs(vector)
    seed = int((size >= size.max() * (1 - TIED)).argmax())
    above = vector > vector.mean()
    return (above if above[seed] else ~above), seed


def is_isolated(graph: Graph, seed: int) -> bool:
    """True if the seed is similar to no other patch: then the vector is little more than that patch."""
    return int((graph[seed] > WEAK).sum()) <= 1
