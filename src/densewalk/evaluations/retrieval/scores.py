"""Average precision of rankings, as the revisited benchmark defines it (https://arxiv.org/abs/1803.11285).

for j, r in enumerate(positions of the positives, from 0, junk removed):
    AP += ((j / r if r > 0 else 1) + (j + 1) / (r + 1)) / 2 / number of positives
P@k = positives among the first k' / k',   k' = min(k, position of the last positive, from 1)
"""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

CUTS = (1, 5, 10)
Numbers = Int[np.ndarray, " _"]
# difficulty -> which images are positives, and which are removed from the ranking
DIFFICULTIES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


def rank(database: Float[Tensor, "images dim"], query: Float[Tensor, " dim"]) -> Int[np.ndarray, " images"]:
    """Numbers of the images by falling similarity; of equally similar ones the earlier is first."""
    return torch.argsort(database @ query, descending=True, stable=True).cpu().numpy()


def positions(ranking: Int[np.ndarray, " images"], positives: Numbers, junk: Numbers) -> Numbers:
    """Positions of the positives in a ranking without the junk, from 0, rising."""
    kept = ranking[~np.isin(ranking, junk)]
    return np.flatnonzero(np.isin(kept, positives))


def average_precision(found: Numbers) -> float:
    """AP (0..1) of the positives at these positions; NaN if there is none."""
    if not len(found):
        return float("nan")
    before = np.arange(len(found), dtype=np.float64)
    left = np.where(found > 0, before / np.maximum(found, 1), 1.0)
    right = (before + 1) / (found + 1)
    return float(((left + right) / 2).mean())


def precision_at(found: Numbers, cut: int) -> float:
    """Share of positives (0..1) among the first images, not looking beyond the last positive; NaN if there is none."""
    if not len(found):
        return float("nan")
    first = min(cut, int(found[-1]) + 1)
    return float((found < first).sum() / first)
