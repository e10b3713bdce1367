"""COCO's average precision of any multiset of images, from detections that were matched once. Free of torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from densewalk.evidence.statistics import Scores, Statistic, Weights

RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class AveragePrecision(Statistic):
    """AP: precision at 101 recalls, its envelope from the right, mean over IoU thresholds and over the classes that have objects.

        for each class and IoU threshold t:
            sort detections by score, descending; leave out those that are ignored at t
            precision[k] = tp[:k].sum() / k, recall[k] = tp[:k].sum() / objects
            AP = mean over r in 0, .01 .. 1 of max precision[k] with recall[k] >= r; 0 where no recall reaches r

    image, category, score, tp, ignored: of each detection, at most 100 of an image and class; the matching of one image does not depend on
    others. objects: that count (no crowds) of each image and class. classes: their names; none in older files. An image that is drawn
    twice is two images: its detections stand next to each other in the order by score, so that weights in the running sums do the same
    as copies.
    """

    KIND = "average_precision"
    number: int
    image: Int[np.ndarray, " detections"]
    category: Int[np.ndarray, " detections"]
    score_of_detection: Float[np.ndarray, " detections"]
    tp: Bool[np.ndarray, "detections thresholds"]
    ignored: Bool[np.ndarray, "detections thresholds"]
    objects: Int[np.ndarray, "images categories"]
    scale: float = 100.0
    classes: Sequence[str] = ()

    def at(self, threshold: int) -> "AveragePrecision":
        """AP at one of the IoU thresholds, by its place."""
        one = slice(threshold, threshold + 1)
        return replace(self, tp=self.tp[:, one], ignored=self.ignored[:, one])

    @property
    def units(self) -> int:
        """The number of images."""
        return self.number

    def of_weights(self, weights: Weights) -> Scores:
        """The AP of each multiset of images; NaN where it has no object at all."""
        from densewalk.evidence.average_precision_kernel import add_class

        totals = weights @ self.objects.astype(np.float64)  # [resamples, categories]
        sums = np.zeros(len(weights))
        order = np.argsort(-self.score_of_detection, kind="stable")
        for category in range(self.objects.shape[1]):
            rows = order[self.category[order] == category]
            add_class(weights, self.image[rows], self.tp[rows], self.ignored[rows], totals[:, category], RECALLS, sums)
        counted = (totals > 0).sum(1)
        with np.errstate(invalid="ignore"):
            return self.scale * sums / np.where(counted > 0, counted, np.nan)

    def of_classes(self) -> Float[np.ndarray, " categories"]:
        """The AP of each class on all images; NaN of one without any object."""
        found = np.full(self.objects.shape[1], np.nan)
        for category in np.flatnonzero(self.objects.sum(0)).tolist():
            rows = np.flatnonzero(self.category == category)
            found[category] = self._part(rows, self.image[rows], [category], slice(None)).score
        return found

    def of_images(self) -> Float[np.ndarray, " images"]:
        """The AP of each image alone, over the classes that it holds; NaN of one without any object."""
        found = np.full(self.number, np.nan)
        order = np.argsort(self.image, kind="stable")
        starts = np.searchsorted(self.image[order], np.arange(self.number + 1))
        for image in np.flatnonzero(self.objects.sum(1)).tolist():
            rows, held = order[starts[image] : starts[image + 1]], np.flatnonzero(self.objects[image])
            rows = rows[np.isin(self.category[rows], held)]
            found[image] = self._part(rows, np.zeros_like(rows), held.tolist(), slice(image, image + 1)).score
        return found

    def _part(self, rows: Int[np.ndarray, " rows"], image: Int[np.ndarray, " rows"], held: list[int], images: slice) -> "AveragePrecision":
        """Some detections, which are of the classes `held`, with the objects of these classes in some images."""
        objects = self.objects[images][:, held]
        columns = (self.score_of_detection[rows], self.tp[rows], self.ignored[rows])
        return AveragePrecision(len(objects), image, np.searchsorted(held, self.category[rows]), *columns, objects, scale=self.scale)

    def parts(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Options and arrays, for a file."""
        names = ("image", "category", "score_of_detection", "tp", "ignored", "objects")
        named = {"classes": list(self.classes)} if self.classes else {}
        return {"number": self.number, "scale": self.scale, **named}, {k: getattr(self, k) for k in names}
