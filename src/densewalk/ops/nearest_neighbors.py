"""Exact nearest neighbors of many vectors among many others, in little memory.

similarity, index = nearest(memory, queries, k=30)        # by inner product: the cosine if both are normalized
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from densewalk.ops.cpu.linear import linear

BLOCK, TILE = 1_024, 16_384  # queries and memory entries at once: 64 MiB of similarities


def nearest(
    memory: Float[Tensor, "entries dim"], queries: Float[Tensor, "queries dim"], k: int
) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
    """The `k` largest inner products of each query, descending, and their memory entries.

    for q in queries:
        best = sorted(range(len(memory)), key=lambda j: -q @ memory[j])[:k]
    """
    blocks = [_nearest_of_block(memory, block, k) for block in queries.split(BLOCK)]
    return torch.cat([values for values, _ in blocks]), torch.cat([index for _, index in blocks])


def _nearest_of_block(memory: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values = queries.new_empty(len(queries), 0)
    index = torch.empty(len(queries), 0, dtype=torch.int64, device=queries.device)
    for start in range(0, len(memory), TILE):
        tile_values, tile_index = largest(linear(queries, memory[start : start + TILE]), k)
        values, index = torch.cat([values, tile_values], 1), torch.cat([index, tile_index + start], 1)
        values, order = values.topk(min(k, values.shape[1]))
        index = index.gather(1, order)
    return values, index


def largest(x: Float[Tensor, "rows columns"], k: int, group: int = 32) -> tuple[Float[Tensor, "rows k"], Int[Tensor, "rows k"]]:
    """`x.topk(k)` for long rows: sorts only the k groups of columns with the largest maxima."""
    columns = x.shape[1]
    groups = columns // group
    if groups <= k:
        values, index = x.topk(min(k, columns))
        return values, index
    head = x[:, : groups * group].unflatten(1, (groups, group))
    best = head.amax(2).topk(k).indices
    inside = head.gather(1, best[..., None].expand(-1, -1, group)).flatten(1)
    values, order = torch.cat([inside, x[:, groups * group :]], 1).topk(k)
    in_head = best.gather(1, (order // group).clamp(max=k - 1)) * group + order % group
    return values, torch.where(order < k * group, in_head, order - k * group + groups * group)
