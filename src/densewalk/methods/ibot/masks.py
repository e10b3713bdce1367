"""Which patches of a view are masked.

shares = view_shares(...) or batch_shares(...)          # of each view, where a process's batch is read
mask = draw_mask(grid, share, rule, random.Random(seed))   # when the grid is known
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

ATTEMPTS = 10
LOWEST_ASPECT = 0.3
Mask = Bool[np.ndarray, "rows columns"]


@runtime_checkable
class Draws(Protocol):
    """Where random numbers come from."""

    def uniform(self, a: float | int, b: float | int) -> float:
        """A number between a and b, which may be the smaller one."""

    def randint(self, a: int, b: int) -> int:
        """A whole number from a to b, both included."""


@dataclass(frozen=True)
class BlockRule:
    """lowest: area that a block is drawn from, in patches. largest: the most that it may add."""

    lowest: float
    largest: float


def ibot_rule(grid: tuple[int, int]) -> BlockRule:
    """Blocks of a ninth of the shorter side's square or more, also where fewer patches are still wanted."""
    return BlockRule(float((min(grid) // 3) ** 2), math.inf)


def dinov2_rule(size: int, patch: int) -> BlockRule:
    """Blocks of 4 patches or more, and of about half of the view at most, by the release's divisions."""
    return BlockRule(4.0, (0.5 * size // patch) * size // patch)


def draw_blocks(grid: tuple[int, int], target: float | int, rule: BlockRule, draws: Draws) -> Mask:
    """Masked blocks until `target` patches are masked, or ten attempts in a row fail.

        room = min(target - masked, rule.largest)
        area ~ U(rule.lowest, room); aspect = exp(U(ln 0.3, ln 1 / 0.3))
        h, w = round(sqrt(area aspect)), round(sqrt(area / aspect))         half to even
        refused unless h < rows, w < columns, and with top and left drawn 0 < newly masked <= room

    Source: iBOT's loader.py, DINOv2's data/masking.py, which differ in `rule` and in the target: a real number, or a whole one.
    """
    mask = np.zeros(grid, dtype=bool)
    masked = 0
    while masked < target:
        new = _one_block(mask, min(target - masked, rule.largest), rule.lowest, draws)
        if not new:
            break
        masked += new
    return mask


def _one_block(mask: Mask, room: float | int, lowest: float, draws: Draws) -> int:
    """Mask a block; how many patches it adds, 0 if no attempt was accepted."""
    rows, columns = mask.shape
    for _ in range(ATTEMPTS):
        area = draws.uniform(lowest, room)
        aspect = math.exp(draws.uniform(math.log(LOWEST_ASPECT), math.log(1 / LOWEST_ASPECT)))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < rows and w < columns:
            top, left = draws.randint(0, rows - h), draws.randint(0, columns - w)
            block = mask[top : top + h, left : left + w]
            new = h * w - int(block.sum())
            if 0 < new <= room:
                block[:] = True
                return new
    return 0


def draw_single(grid: tuple[int, int], count: int, draws: Random) -> Mask:
    """So many random patches."""
    mask = np.zeros(grid[0] * grid[1], dtype=bool)
    mask[draws.sample(range(len(mask)), count)] = True
    return mask.reshape(grid)


def view_shares(count: int, probability: float, ratio: tuple[float, float], draws: Random) -> list[float]:
    """iBOT's: each view is masked by itself, by a share of its own."""
    return [draws.uniform(*ratio) if draws.random() < probability else 0.0 for _ in range(count)]


def batch_shares(count: int, probability: float, ratio: tuple[float, float], draws: Random) -> list[float]:
    """DINOv2's: exactly int(count * probability) views are masked, one in each of as many equal intervals of `ratio`; in random order."""
    edges = intervals(int(count * probability), ratio)
    shares = [draws.uniform(*edge) for edge in edges] + [0.0] * (count - len(edges))
    draws.shuffle(shares)
    return shares


def intervals(count: int, ratio: tuple[float, float]) -> list[tuple[float, float]]:
    """So many equal intervals."""
    edges = np.linspace(*ratio, count + 1).tolist()
    return list(pairwise(edges))
