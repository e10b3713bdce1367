"""Exact nearest neighbors of many vectors among many others, in little memory.

similarity, index = nearest(memory, queries, k=30)        # by inner product: the cosine if both are normalized

The memory may be spread over several processes: `nearest` in each part, then `merge`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from densewalk.ops.cpu.linear import linear
from densewalk.ops.cpu.switch import use_cpu_kernels

BLOCK = 1_024  # queries at once: with fewer, MKL would copy the memory's entries into its own order more often
TILE, CPU_TILE = 16_384, 4_096  # memory entries at once, a multiple of those on a CPU: 64 and 16 MiB of similarities
COMPILED_FROM = 1 << 22  # similarities: with fewer, loading numba (0.3 s) would take longer than it saves
MOST_COMPILED = 512  # neighbors: the compiled loop's insertions grow with their square
Found = tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]


@torch.no_grad()
def nearest(memory: Float[Tensor, "entries dim"], queries: Float[Tensor, "queries dim"], k: int) -> Found:
    """The `k` largest inner products of each query, descending, and their memory entries; of equal ones the earlier entry comes first.

    for q in queries:
        best = sorted(range(len(memory)), key=lambda j: -q @ memory[j])[:k]

    On a CPU, little more than the products takes time (benchmarks/inner_loops.py).
    """
    on_cpu = use_cpu_kernels(queries.device)
    large = len(memory) * len(queries) >= COMPILED_FROM and k <= MOST_COMPILED
    search = _compiled_search if on_cpu and large and queries.dtype == torch.float32 else _search
    blocks = queries.tensor_split(max(1, -(-len(queries) // BLOCK))) if on_cpu else queries.split(BLOCK)
    tile = min(TILE, CPU_TILE) if on_cpu else TILE
    found = [search(memory, block, k, tile) for block in blocks]
    return torch.cat([values for values, _ in found]), torch.cat([index for _, index in found])


def _search(memory: Tensor, queries: Tensor, k: int, tile: int) -> Found:
    found = queries.new_empty(len(queries), 0), torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(memory), tile):
        values, index = largest(linear(queries, memory[start : start + tile]), k)
        found = merge([found, (values, index + start)], k)
    return found


def _compiled_search(memory: Tensor, queries: Tensor, k: int, tile: int) -> Found:
    """`_search` by a compiled loop, equal to the last bit."""
    from densewalk.ops.cpu.compiled import over_rows  # late: numba is slow to load
    from densewalk.ops.search.nearest_kernel import take_in

    values = queries.new_full((len(queries), min(k, len(memory))), -torch.inf)
    index = torch.zeros(values.shape, dtype=torch.int64)
    for start in range(0, len(memory), tile):
        similarity = linear(queries, memory[start : start + tile])

        def work(rows: slice, similarity: Tensor = similarity, start: int = start) -> None:
            take_in(similarity[rows].numpy(), start, min(k, start), values[rows].numpy(), index[rows].numpy())

        over_rows(work, len(queries))
    return values, index


def merge(parts: Sequence[tuple[Tensor, Tensor]], k: int) -> Found:
    """The nearest in all parts of a memory, from the nearest in each; the parts come in the order of their entries.

    Similarities are compared, nothing is computed: the result is exactly that of one search, equal similarities included.
    """
    values, order = torch.cat([values for values, _ in parts], 1).sort(dim=1, descending=True, stable=True)
    index = torch.cat([index for _, index in parts], 1)
    return values[:, :k], index.gather(1, order[:, :k])


def largest(x: Float[Tensor, "rows columns"], k: int, group: int = 32) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """The k largest of each long row, descending, and their columns; of equal ones the first columns, which `topk` does not promise.

    Sorts only the groups of columns with the largest maxima. One value more than k is looked at: where it equals the last one, some of
    the values equal to it may not have been among those that were sorted.
    """
    columns = x.shape[1]
    if columns <= k:
        values, index = x.sort(dim=1, descending=True, stable=True)
        return values, index
    values, index = _topk(x, k + 1, group)
    tied = (values[:, 1:] == values[:, :-1]).any(1).nonzero()[:, 0]
    values, index = values[:, :k], index[:, :k]
    if len(tied):
        first = _first_of_equal(x[tied], values[tied, k - 1 :], k)
        _, order = x[tied].gather(1, first).sort(dim=1, descending=True, stable=True)  # the values stay as they are
        index[tied] = first.gather(1, order)
    return values, index


def _topk(x: Tensor, k: int, group: int) -> tuple[Tensor, Tensor]:
    """`x.topk(k)` but for the choice among equal values."""
    groups = x.shape[1] // group
    if groups <= k:
        values, index = x.topk(k)
        return values, index
    head = x[:, : groups * group].unflatten(1, (groups, group))
    best = head.amax(2).topk(k).indices
    inside = head.gather(1, best[..., None].expand(-1, -1, group)).flatten(1)
    values, order = torch.cat([inside, x[:, groups * group :]], 1).topk(k)
    in_head = best.gather(1, (order // group).clamp(max=k - 1)) * group + order % group
    return values, torch.where(order < k * group, in_head, order - k * group + groups * group)


def _first_of_equal(x: Tensor, last: Float[Tensor, "rows 1"], k: int) -> Int[Tensor, "rows k"]:
    """Ascending columns of the k largest values of each row: those above `last`, the k-th, and the first ones of those equal to it."""
    above, equal = x > last, x == last
    chosen = above | (equal & (equal.cumsum(1) <= k - above.sum(1, keepdim=True)))
    return chosen.nonzero()[:, 1].view(len(x), k)
