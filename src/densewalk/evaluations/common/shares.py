"""The work of an evaluation, shared among its processes: each result is that of one process, to the last bit.

    found = shared_map(score, sequences, cost=len)      # [score(s) for s in sequences], in all processes
    batches = own_batches(batches_of(images, 8))        # those that this process computes
    matrix = distributed.all_sum(confusion.matrix)      # whole numbers add up in any order

Batches are dealt as they are: in which batch an image is decides about the last bits of its features. What is added up in floating
point is added up in the order of one process.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from densewalk.core import distributed

T = TypeVar("T")
R = TypeVar("R")


def owned(costs: Sequence[int]) -> list[int]:
    """Numbers of the items that this process works on: the costliest first, each goes to the process with the least so far."""
    loads = [(0, process) for process in range(distributed.world_size())]
    mine = []
    for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
        load, process = heapq.heappop(loads)
        heapq.heappush(loads, (load + costs[i], process))
        if process == distributed.rank():
            mine.append(i)
    return sorted(mine)


def shared_map(compute: Callable[[T], R], items: Sequence[T], cost: Callable[[T], int] = lambda _: 1) -> list[R]:
    """`[compute(item) for item in items]` in all processes, each of which computes a part of it."""
    return in_order({i: compute(items[i]) for i in owned([cost(item) for item in items])})


def in_order(found: dict[int, R]) -> list[R]:
    """What all processes have found, each a part of it, by number."""
    everything: dict[int, R] = {}
    for part in distributed.all_objects(found):
        everything |= part
    return [everything[i] for i in sorted(everything)]


def by_first(compute: Callable[[], Any]) -> Any:
    """What process 0 computes, in all processes."""
    return distributed.all_objects(compute() if distributed.rank() == 0 else None)[0]


def batches_of(images: int, size: int) -> list[list[int]]:
    """Numbers of the images of each batch; the last one may be smaller."""
    return [list(range(images))[start : start + size] for start in range(0, images, size)]


def own_batches(batches: Sequence[T]) -> list[T]:
    """Every n-th batch: round r of all processes is n consecutive batches."""
    return list(batches[distributed.rank() :: distributed.world_size()])


def consecutive(batches: Sequence[T]) -> list[T]:
    """As many consecutive batches as any other process has, up to one."""
    rank, processes = distributed.rank(), distributed.world_size()
    return list(batches[len(batches) * rank // processes : len(batches) * (rank + 1) // processes])


def rounds(batches: int) -> int:
    """The largest number of batches that a process has of `own_batches`."""
    return -(-batches // distributed.world_size())
