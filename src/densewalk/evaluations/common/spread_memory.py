"""Features that queries are compared with, spread over the processes: each holds a part, and has the nearest of all.

    table = torch.empty(capacity + spare_rows(), dim)               # filled with the rows of this process's batches, `consecutive`
    (rows,), start, count = whole_tiles([table], filled)
    memory = SpreadMemory(rows, start, count)
    similarity, index = memory.nearest(queries, k)                  # all processes call it equally often, perhaps without queries

A process holds whole tiles of the exact search (ops/search/nearest_neighbors.py): similarities then come out of the same products as in
one process, and the nearest of each part are merged by comparison alone. So all are equal to the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from densewalk.core import distributed
from densewalk.ops.search import nearest_neighbors
from densewalk.ops.search.nearest_neighbors import merge


@dataclass(frozen=True)
class SpreadMemory:
    """features: this process's rows. start: number of the first of them among all. count: rows of all processes."""

    features: Float[Tensor, "rows dim"]
    start: int
    count: int

    def nearest(self, queries: Float[Tensor, "queries dim"], k: int) -> tuple[Float[Tensor, "queries found"], Int[Tensor, "queries found"]]:
        """The `k` nearest of all rows, or all if there are fewer, and their numbers."""
        if distributed.world_size() == 1:
            return nearest_neighbors.nearest(self.features, queries, k)
        values, index, counts = [], [], []
        for batch in distributed.gathered_rows(queries):
            own_values, own_index = nearest_neighbors.nearest(self.features, batch, k)
            missing = k - own_values.shape[1]
            values.append(F.pad(own_values, (0, missing), value=-torch.inf))
            index.append(F.pad(own_index + self.start, (0, missing)))
            counts.append(len(batch))
        parts = zip(distributed.gathered(torch.cat(values)), distributed.gathered(torch.cat(index)), strict=True)
        mine = slice(sum(counts[: distributed.rank()]), sum(counts[: distributed.rank() + 1]))
        found, numbers = merge([(v[mine], i[mine]) for v, i in parts], min(k, self.count))
        return found, numbers

    def fetch(self, table: Float[Tensor, "rows width"], index: Int[Tensor, "queries k"]) -> Float[Tensor, "queries k width"]:
        """`whole_table[index]`, of a table of which each process has its rows; all processes call it equally often."""
        parts, counts = [], []
        for wanted in distributed.gathered_rows(index):
            rows = table.new_zeros(*wanted.shape, table.shape[1])
            here = (wanted >= self.start) & (wanted < self.start + len(table))
            rows[here] = table[wanted[here] - self.start]
            parts.append(rows)
            counts.append(len(wanted))
        everything = distributed.all_sum(torch.cat(parts))  # one process has a row, the others zeros
        return everything.split(counts)[distributed.rank()]


def spare_rows() -> int:
    """Rows that a table needs beyond its own, for those of a tile that begins in it and ends in another process's."""
    return nearest_neighbors.TILE if distributed.world_size() > 1 else 0


def whole_tiles(tables: Sequence[Shaped[Tensor, "_ _"]], filled: int) -> tuple[list[Tensor], int, int]:
    """Move rows between the processes so that each has whole tiles of all rows; the last tile may be smaller.

    Args:
        tables: with this process's rows first, and room for `spare_rows()` more.
        filled: number of this process's rows. All rows are those of process 0, then those of process 1, ...

    Returns:
        The tables' rows that are now this process's, as views; the number of the first one; the number of all rows.
    """
    counts, rank, tile = distributed.all_objects(filled), distributed.rank(), nearest_neighbors.TILE
    starts = [0, *accumulate(counts)]
    total = starts[-1]
    if len(counts) == 1:
        return [table[:total] for table in tables], 0, total
    edges = [min(total, -(-start // tile) * tile) for start in starts]
    own_start, own_stop = starts[rank], starts[rank + 1]
    for first in sorted({start // tile * tile for start in starts[1:-1] if start % tile and start < total}):
        last = min(total, first + tile)
        owner = next(i for i, (a, b) in enumerate(pairwise(edges)) if a <= first < b)
        a, b = max(first, own_start), max(first, own_start, min(last, own_stop))
        for table in tables:
            rows = table.new_zeros(last - first, table.shape[1])
            rows[a - first : b - first] = table[a - own_start : b - own_start]
            rows = distributed.all_sum(rows)
            if rank == owner:
                table[first - own_start : last - own_start] = rows
    mine = slice(edges[rank] - own_start, edges[rank + 1] - own_start)
    return [table[mine] for table in tables], edges[rank], total
