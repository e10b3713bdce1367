"""A score that is the mean over groups of units, such as PCK over categories. Free of torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from densewalk.evidence.statistics import Scores, Statistic, Weights


@dataclass(frozen=True)
class MeanOfGroups(Statistic):
    """Mean over groups of sum_i correct_i / sum_i total_i of the group's units; a group without a unit is skipped.

    group: of each unit, from 0. PCK over categories, by point: correct and all keypoints of a pair; by image: the pair's share, and 1.
    """

    KIND = "mean_of_groups"
    group: Int[np.ndarray, " units"]
    correct: Shaped[np.ndarray, " units"]
    total: Shaped[np.ndarray, " units"]
    scale: float = 1.0

    @property
    def units(self) -> int:
        """The number of units."""
        return len(self.group)

    @property
    def known(self) -> Bool[np.ndarray, " units"]:
        """Which units have anything to be correct."""
        return np.asarray(self.total) > 0

    def _totals(self, weights: Weights) -> Float[np.ndarray, "resamples groups"]:
        return weights @ self._by_group(self.total)

    def _by_group(self, values: Shaped[np.ndarray, " units"]) -> Float[np.ndarray, "units groups"]:
        """Each unit's value in its group's column."""
        table = np.zeros((self.units, int(self.group.max()) + 1))
        table[np.arange(self.units), self.group] = values
        return table

    def of_weights(self, weights: Weights) -> Scores:
        """See the class."""
        correct, total = weights @ self._by_group(self.correct), self._totals(weights)
        shares = np.divide(correct, total, out=np.zeros_like(total), where=total > 0)
        with np.errstate(invalid="ignore"):
            return self.scale * shares.sum(1) / (total > 0).sum(1)

    def changed_classes(self, weights: Weights) -> Bool[np.ndarray, " resamples"]:
        """Multisets without a unit of some group."""
        present = self._by_group(self.total).any(0)
        return (self._totals(weights)[:, present] == 0).any(1)

    def parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Options and arrays, for a file."""
        return {"scale": self.scale}, {"group": self.group, "correct": self.correct, "total": self.total}
