"""The samples of each optimizer step."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
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
