"""Sorting networks and relaxations of their comparators."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NetworkKind = Literal["bitonic", "odd_even"]
Relaxation = Literal["cauchy", "logistic", "gaussian", "reciprocal", "optimal"]
Swap = Callable[[Tensor], Tensor]  # y -> share


class Layer(NamedTuple):
    """Comparators of wires u and u + stride in blocks of 2 stride wires."""

    offset: int  # wire where the blocks begin
    stride: int
    blocks: int  # number of whole ones
    tail: int  # wires of the incomplete block after them that have a partner
    first: int  # number of this layer's first comparator in the network

    @property
    def size(self) -> int:
        """Number of comparators."""
        return self.blocks * self.stride + self.tail

    def low_wires(self) -> list[int]:
        """The lower wire of each comparator, in order."""
        whole = [self.offset + 2 * self.stride * b + i for b in range(self.blocks) for i in range(self.stride)]
        end = self.offset + 2 * self.stride * self.blocks
        return whole + list(range(end, end + self.tail))

    def slices(self, wires: Tensor, *shares: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Views of `wires` [n, ...] (lower, upper) and `shares` [comparators, ...], blocks and tail."""
        end = self.offset + 2 * self.stride * self.blocks
        split = self.first + self.stride * self.blocks
        if self.blocks:
            pairs = wires[self.offset : end].unflatten(0, (self.blocks, 2, self.stride))
            yield pairs[:, 0], pairs[:, 1], *(s[self.first : split].unflatten(0, (self.blocks, self.stride)) for s in shares)
        if self.tail:
            upper = end + self.stride
            yield wires[end : end + self.tail], wires[upper : upper + self.tail], *(s[split : split + self.tail] for s in shares)


@dataclass(frozen=True, eq=False)
class Network:
    """A sorting network of n wires."""

    n: int
    layers: tuple[Layer, ...]
    signs: tuple[float, ...]  # of each comparator, 1 if its lower wire gets the smaller score, -1 if it gets the larger
    reverse: bool  # wire u carries score n - 1 - u, and the scores come out in descending order

    @property
    def comparators(self) -> int:
        """Number of comparators."""
        return len(self.signs)

    @cached_property
    def wiring(self) -> NDArray[np.int64]:
        """Of each comparator: wires a and b, and the range [from, to) of inputs that reach them.

        Outside that range the columns a and b of P are still zero; in most of bitonic's layers it is half the inputs or fewer.
        """
        reached = np.eye(self.n, dtype=bool)
        rows = []
        for layer in self.layers:
            for a in layer.low_wires():
                b = a + layer.stride
                reached[a] = reached[b] = reached[a] | reached[b]
                inputs = np.flatnonzero(reached[a])
                rows.append((a, b, inputs[0], inputs[-1] + 1))
        return np.array(rows, dtype=np.int64).reshape(-1, 4)


@lru_cache(maxsize=32)
def network(kind: NetworkKind, n: int) -> Network:
    """The sorting network `kind` for n >= 1 scores.

    odd_even: n layers, alternately of wires (0, 1), (2, 3), ... and (1, 2), (3, 4), ... 49 scores take 49 layers, 1176 comparators.
    bitonic: the network of the next power of two without its lowest wires. 49 scores take 21 layers, 483 comparators.
    """
    steps = ((i % 2, 1, lambda u: True) for i in range(n)) if kind == "odd_even" else _bitonic(n)
    layers: list[Layer] = []
    signs: list[float] = []
    for offset, stride, ascending in steps:
        blocks = (n - offset) // (2 * stride)
        tail = max(0, n - offset - 2 * stride * blocks - stride)
        layer = Layer(offset, stride, blocks, tail, first=len(signs))
        layers.append(layer)
        signs += [1.0 if ascending(u) else -1.0 for u in layer.low_wires()]
    return Network(n, tuple(layers), tuple(signs), reverse=kind == "bitonic")


def _bitonic(n: int) -> Iterator[tuple[int, int, Callable[[int], bool]]]:
    """Batcher's network: sort blocks of 2, 4, 8, ... in alternating directions.

    Wires are numbered from the top down: the wires left out come last, and every layer pairs u with u + stride. The last block,
    of all wires, is therefore descending in their numbers.
    """
    width = 1 << (n - 1).bit_length()
    block = 2
    while block <= width:
        stride = block // 2
        while stride:
            yield 0, stride, lambda u, block=block: block < width and u & block == 0  # type: ignore[misc]
            stride //= 2
        block *= 2


def _optimal(y: Tensor) -> Tensor:
    tail = 1 / (16 * y.abs().clamp(min=0.25))
    return torch.where(y.abs() <= 0.25, 0.5 - y, torch.where(y > 0, tail, 1 - tail))


# the share that swaps, of y = steepness (x_b - x_a)
# logistic: https://arxiv.org/abs/2105.04019, section 3; others: https://arxiv.org/abs/2203.09630, section 4, scaled as in diffsort 0.2.0
SWAPS: dict[str, Swap] = {
    "cauchy": lambda y: 0.5 - torch.atan(y) / math.pi,
    "logistic": lambda y: torch.sigmoid(-y),
    "gaussian": lambda y: torch.special.ndtr(-y),
    "reciprocal": lambda y: 0.5 - 0.5 * y / (2 + y.abs()),
    "optimal": _optimal,
}
