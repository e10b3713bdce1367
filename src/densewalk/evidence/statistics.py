"""Statistics of single units (images, objects, pairs), from which the score of any multiset of units follows. Free of torch.

    statistic.of_weights(weights)       # weights [resamples, units]: how often each unit was drawn -> scores [resamples]

A unit that is drawn twice counts twice. `of_weights` of ones is the score that a table shows.
Counts are added in float64: exact up to 2^53.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.sparse import csr_array

from densewalk.evidence.matching import Matching, match, pairwise_iou

Weights = Float[np.ndarray, "resamples units"]
Scores = Float[np.ndarray, " resamples"]
Tables = Float[np.ndarray, "resamples classes clusters"]
TABLE_BYTES = 2**26  # of the tables of counts that exist at once


class Statistic(ABC):
    """What one metric is made of, unit by unit; `scale` turns the score into the metric's unit (100 for percent).

    INTERVAL: the default one. BCa where the score is a mean of units. For the mIoU of 200 images BCa's interval holds the truth less often
    than it says, the percentile interval as often (benchmarks/interval_coverage.py).
    """

    KIND: ClassVar[str]
    INTERVAL: ClassVar[Literal["BCa", "percentile"]] = "BCa"

    @property
    @abstractmethod
    def units(self) -> int:
        """The number of units."""

    @property
    def known(self) -> Bool[np.ndarray, " units"]:
        """Which units the score is made of."""
        return np.ones(self.units, bool)

    @abstractmethod
    def of_weights(self, weights: Weights) -> Scores:
        """The score of each multiset of units; NaN where it is not defined."""

    def changed_classes(self, weights: Weights) -> Bool[np.ndarray, " resamples"]:
        """Which multisets are scored over other classes than all units are."""
        return np.zeros(len(weights), bool)

    @property
    def score(self) -> float:
        """The score of all units, each once."""
        return float(self.of_weights(np.ones((1, self.units)))[0])

    @abstractmethod
    def parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Options and arrays, for a file."""

    @classmethod
    def from_parts(cls, options: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Self:
        """The statistic of these options and arrays."""
        return cls(**options, **arrays)


@dataclass(frozen=True)
class MeanOfUnits(Statistic):
    """Mean of one number a unit: J of an object, 0 or 1 of an image, AP of a query. NaN: the unit is left out."""

    KIND = "mean"
    values: Float[np.ndarray, " units"]
    scale: float = 1.0

    @property
    def units(self) -> int:
        """The number of units."""
        return len(self.values)

    @property
    def known(self) -> Bool[np.ndarray, " units"]:
        """Which units have a value."""
        return ~np.isnan(self.values)

    def of_weights(self, weights: Weights) -> Scores:
        """sum_i w_i x_i / sum_i w_i over the units that have a value."""
        known = self.known
        with np.errstate(invalid="ignore"):
            return self.scale * (weights @ np.where(known, self.values, 0)) / (weights @ known.astype(np.float64))

    def parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Options and arrays, for a file."""
        return {"scale": self.scale}, {"values": self.values}


@dataclass(frozen=True)
class RatioOfSums(Statistic):
    """sum_i correct_i / sum_i total_i, such as PCK by point."""

    KIND = "ratio"
    correct: Shaped[np.ndarray, " units"]
    total: Shaped[np.ndarray, " units"]
    scale: float = 1.0

    @property
    def units(self) -> int:
        """The number of units."""
        return len(self.total)

    @property
    def known(self) -> Bool[np.ndarray, " units"]:
        """Which units have anything to be correct."""
        return np.asarray(self.total) > 0

    def of_weights(self, weights: Weights) -> Scores:
        """See the class."""
        with np.errstate(invalid="ignore"):
            return self.scale * (weights @ self.correct.astype(np.float64)) / (weights @ self.total.astype(np.float64))

    def parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Options and arrays, for a file."""
        return {"scale": self.scale}, {"correct": self.correct, "total": self.total}


@dataclass(frozen=True)
class MeanIoU(Statistic):
    """Mean over classes of sum_i intersection_ic / sum_i union_ic, from the classes that each unit holds.

    unit, category, intersection, union: one entry for each class that occurs in a unit, in truth or prediction.
    absent: a class without union in the multiset is skipped, or counts as 0 (`mean_iou` of evaluations/metrics/segmentation.py).
    """

    KIND = "mean_iou"
    INTERVAL = "percentile"
    number: int  # of units
    classes: int
    unit: Int[np.ndarray, " entries"]
    category: Int[np.ndarray, " entries"]
    intersection: Int[np.ndarray, " entries"]
    union: Int[np.ndarray, " entries"]
    absent: Literal["skip", "zero"] = "skip"
    scale: float = 100.0

    @classmethod
    def of_confusions(
        cls, confusions: Int[np.ndarray, "units classes classes"], absent: Literal["skip", "zero"] = "skip", scale: float = 100.0
    ) -> "MeanIoU":
        """From the confusion matrix of each unit, truth in rows."""
        intersection = np.einsum("ucc->uc", confusions)
        union = confusions.sum(1) + confusions.sum(2) - intersection
        unit, category = union.nonzero()
        number, classes = union.shape
        return cls(number, classes, unit, category, intersection[unit, category], union[unit, category], absent, scale)

    @property
    def units(self) -> int:
        """The number of units."""
        return self.number

    def dense(self) -> tuple[Float[np.ndarray, "units classes"], Float[np.ndarray, "units classes"]]:
        """Intersections and unions of all units and classes."""
        intersection, union = np.zeros((2, self.number, self.classes))
        intersection[self.unit, self.category] = self.intersection
        union[self.unit, self.category] = self.union
        return intersection, union

    def of_weights(self, weights: Weights) -> Scores:
        """See the class; one matrix product for all multisets."""
        sums = weights @ np.concatenate(self.dense(), axis=1)  # [resamples, 2 classes]
        intersection, union = sums[:, : self.classes], sums[:, self.classes :]
        iou = intersection / np.maximum(union, 1)
        if self.absent == "zero":
            return self.scale * iou.mean(1)
        with np.errstate(invalid="ignore"):
            return self.scale * iou.sum(1) / (union > 0).sum(1)

    def changed_classes(self, weights: Weights) -> Bool[np.ndarray, " resamples"]:
        """Multisets that lack a class which all units together have."""
        union = self.dense()[1]
        present = union.sum(0) > 0
        return ((weights @ union[:, present]) == 0).any(1)

    def parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Options and arrays, for a file."""
        options = {"number": self.number, "classes": self.classes, "absent": self.absent, "scale": self.scale}
        return options, {k: getattr(self, k) for k in ("unit", "category", "intersection", "union")}


@dataclass(frozen=True)
class MatchedIoU(Statistic):
    """mIoU of clusters, each taken for a class: the matching is made for each multiset, unless `fixed`.

    unit, category, cluster, count: pixels of a class in a cluster, one entry for each pair that occurs in a unit. The clusters are those
    that were fitted once. fixed: keep the matching of all units, which asks a narrower question.
    unmatched: the class of a cluster that found none. void: a class that no pixel can have: it takes no cluster (matching.py), and is left
    out of the mean with `absent: skip`.
    """

    KIND = "matched_iou"
    INTERVAL = "percentile"
    number: int
    classes: int
    clusters: int
    unit: Int[np.ndarray, " entries"]
    category: Int[np.ndarray, " entries"]
    cluster: Int[np.ndarray, " entries"]
    count: Int[np.ndarray, " entries"]
    matching: Matching = "hungarian"
    absent: Literal["skip", "zero"] = "skip"
    unmatched: int = 0
    fixed: bool = False
    void: int | None = None
    scale: float = 100.0

    @classmethod
    def of_counts(cls, counts: Int[np.ndarray, "units classes clusters"], **options: Any) -> "MatchedIoU":
        """From the pixels of each class in each cluster, unit by unit."""
        unit, category, cluster = counts.nonzero()
        number, classes, clusters = counts.shape
        return cls(number, classes, clusters, unit, category, cluster, counts[unit, category, cluster], **options)

    @property
    def units(self) -> int:
        """The number of units."""
        return self.number

    def match(self, counts: Int[np.ndarray, "classes clusters"]) -> Int[np.ndarray, " clusters"]:
        """The class of each cluster."""
        return match(counts, self.matching, self.void)

    @cached_property
    def _entries(self) -> tuple[Int[np.ndarray, " places"], csr_array]:
        """The places of a table, flattened, that occur; the counts of all units there."""
        places, column = np.unique(self.category.astype(np.int64) * self.clusters + self.cluster, return_inverse=True)
        counts = (self.count.astype(np.float64), (self.unit, column))
        return places, csr_array(counts, shape=(self.number, len(places)))

    def of_weights(self, weights: Weights) -> Scores:
        """See the class; counts of whole pixels are exact in float64."""
        places, counts = self._entries
        size, block = self.classes * self.clusters, max(1, TABLE_BYTES // (8 * self.classes * self.clusters))
        scores, kept = [], None
        if self.fixed:
            kept = self._matches(self._tables(np.ones((1, self.number)), places, counts, size))
        for start in range(0, len(weights), block):
            tables = self._tables(weights[start : start + block], places, counts, size)
            assignment = self._matches(tables) if kept is None else np.repeat(kept, len(tables), axis=0)
            scores.append(self._mean_iou(tables, assignment))
        return self.scale * np.concatenate(scores)

    def _tables(self, weights: Weights, places: Int[np.ndarray, " places"], counts: csr_array, size: int) -> Tables:
        tables = np.zeros((len(weights), size))
        tables[:, places] = (counts.T @ weights.T).T
        return tables.reshape(-1, self.classes, self.clusters)

    def _matches(self, tables: Tables) -> Int[np.ndarray, "resamples clusters"]:
        """The class of each cluster in each table."""
        if self.matching in ("hungarian", "hungarian_pixels"):
            return np.stack([self.match(table) for table in tables])
        void = self.void if self.void is not None and self.void < self.classes else None
        tables = tables if void is None else np.delete(tables, void, axis=1)
        preferred = tables if self.matching == "many_to_one" else pairwise_iou(tables)
        found = np.where(tables.any(1), preferred.argmax(1), -1)
        return found if void is None else np.where(found >= void, found + 1, found)

    def _mean_iou(self, tables: Tables, assignment: Int[np.ndarray, "resamples clusters"]) -> Scores:
        """The score of each table, 0 to 1, after every cluster has taken its class."""
        target = np.where(assignment < 0, self.unmatched, assignment)
        hits = np.take_along_axis(tables, target[:, None], axis=1)[:, 0]
        place = (np.arange(len(tables))[:, None] * self.classes + target).ravel()
        by_class = (len(tables), self.classes)
        right, found = (np.bincount(place, x.ravel(), len(tables) * self.classes).reshape(by_class) for x in (hits, tables.sum(1)))
        union = tables.sum(2) + found - right
        iou = right / np.maximum(union, 1)
        if self.absent == "zero":
            return iou.mean(1)
        if self.void is not None and self.void < self.classes:
            union[:, self.void] = 0
        with np.errstate(invalid="ignore"):
            return iou.sum(1) / (union > 0).sum(1)

    def parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Options and arrays, for a file."""
        options = {
            k: getattr(self, k) for k in ("number", "classes", "clusters", "matching", "absent", "unmatched", "fixed", "void", "scale")
        }
        return options, {k: getattr(self, k) for k in ("unit", "category", "cluster", "count")}
