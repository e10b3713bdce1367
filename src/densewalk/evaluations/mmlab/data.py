"""Training data whose order and augmentation depend on the seed alone, not on workers, resumes or what ran before."""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from densewalk.core import distributed
from densewalk.core.errors import UserError
from densewalk.core.hashing import derive_seed
from densewalk.training.sampler import Item


class SeededDataset(Dataset[Any]):
    """A toolbox's data set, indexed with an `Item`: equal items give equal augmentations."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    @property
    def metainfo(self) -> dict[str, Any]:
        """Classes and the like."""
        return self.dataset.metainfo

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: Item) -> Any:
        seed_everything(item.seed)
        return self.dataset[item.index]


class ItemStream(Sampler[Item]):
    """An endless stream of items: one permutation after the other, epoch e's drawn from (seed, e).

    Args:
        batch_size: images of an update, over all processes; each of them takes its share, the `rank`-th of `processes` equal parts.
        groups: one label per image; every `batch_size` consecutive items then have the same label, e.g. portrait or landscape,
            which saves padding. An image waits until its group fills a batch.

    Raises:
        UserError: the processes cannot share a batch evenly.
        ValueError: there is no image, so that the stream would not begin.
    """

    def __init__(self, length: int, seed: int, *, batch_size: int = 1, groups: Sequence[bool] | None = None) -> None:
        world = distributed.world_size()
        if batch_size % world:
            raise UserError(
                f"batch_size {batch_size} cannot be shared evenly by {world} processes", todo="use a number of GPUs that divides it"
            )
        if length == 0:
            raise ValueError("no training image is left: of COCO's, those below 32 px and those without an object do not count")
        self.length, self.seed, self.batch_size, self.groups = length, seed, batch_size, groups
        self.share, self.rank = batch_size // world, distributed.rank()
        self.first = 0

    def __len__(self) -> int:
        return self.length

    def skip(self, items: int) -> None:
        """Begin with item number `items` of this process: mmengine calls this to resume without reading passed images again."""
        self.first = items

    def __iter__(self) -> Iterator[Item]:
        own = (item for at, item in enumerate(self.numbers()) if at % self.batch_size // self.share == self.rank)
        for epoch, index in islice(own, self.first, None):
            yield Item(index=index, seed=derive_seed(self.seed, "sample", epoch, index))

    def numbers(self) -> Iterator[tuple[int, int]]:
        """Epoch and number of each image, of all processes."""
        waiting: dict[bool, list[tuple[int, int]]] = defaultdict(list)
        for epoch in count():
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", epoch))
            for index in torch.randperm(self.length, generator=generator).tolist():
                if self.groups is None:
                    yield epoch, index
                    continue
                group = waiting[self.groups[index]]
                group.append((epoch, index))
                if len(group) == self.batch_size:
                    yield from group
                    group.clear()


def seed_everything(seed: int) -> None:
    """Seed the three global generators that the toolboxes draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  the toolboxes use numpy's global generator
    torch.manual_seed(seed)
