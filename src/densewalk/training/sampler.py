"""The samples of each optimizer step, and how they reach the device.

Pixels travel as uint8, a quarter of float32; methods make views of them on the device (`Method.prepare`).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.data import Sampler

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.core.hashing import derive_seed


@dataclass(frozen=True)
class Item:
    """An index into a data set; equal items give equal samples in any process and resume."""

    index: int
    seed: int  # of this sample: derived from the run's seed, the epoch and the index


class StepSampler(Sampler[list[Item]]):
    """The items of each step, from step `first` on, for this process.

    Each process gets its slice of the global batch. Epoch e is a permutation drawn from (seed, e); its last incomplete batch is dropped.
    """

    def __init__(self, length: int, batch_size: int, seed: int, first: int, total: int) -> None:
        world = distributed.world_size()
        if batch_size % world:
            raise UserError(f"batch_size {batch_size} cannot be shared evenly by {world} processes", todo="choose a multiple")
        if length < batch_size:
            raise UserError(f"batch_size {batch_size} is larger than the data set ({length} samples)", todo="lower batch_size")
        self.length, self.batch_size, self.seed, self.first, self.total = length, batch_size, seed, first, total
        share = batch_size // world
        self.share = slice(distributed.rank() * share, (distributed.rank() + 1) * share)

    def __len__(self) -> int:
        return self.total - self.first

    def __iter__(self) -> Iterator[list[Item]]:
        per_epoch = self.length // self.batch_size
        epoch, order = -1, torch.empty(0)
        for step in range(self.first, self.total):
            if step // per_epoch != epoch:
                epoch = step // per_epoch
                order = torch.randperm(self.length, generator=torch.Generator().manual_seed(derive_seed(self.seed, "epoch", epoch)))
            begin = step % per_epoch * self.batch_size
            chosen = order[begin : begin + self.batch_size][self.share].tolist()
            yield [Item(index=i, seed=derive_seed(self.seed, "sample", epoch, i)) for i in chosen]


def pixels_ahead(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """Yield the batches in order, their uint8 tensors on the device; what is small is read on the CPU and stays there.

    On a GPU the next batch is asked for, and its copy started on a stream of its own, before the current one is given out.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    waiting: tuple[Any, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = tree_map_only(Tensor, lambda x: x.to(device, non_blocking=True) if x.dtype == torch.uint8 else x, batch)
            started = stream.record_event()
        if waiting is not None:
            yield _received(*waiting)
        waiting = copied, started
    if waiting is not None:
        yield _received(*waiting)


def _received(batch: Any, copied: torch.cuda.Event) -> Any:
    """The batch, for work on the current stream: it waits for the copy, and the memory is not given away before that work is done."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for x in tree_leaves(batch):
        if isinstance(x, Tensor) and x.is_cuda:
            x.record_stream(current)
    return batch
