"""Confusion matrices of single images: what an mIoU is made of, for the file of unit statistics.

    counts = ImageCounts.of([counted(target, prediction, 21, 21, ignore=255) for target, prediction in images], 21, 21)
    counts.matrix                                    # of all images, exact
    counts.mean_iou(), counts.matched_iou(matching="hungarian")             # statistics of evidence/statistics.py

Only entries above 0 are kept: a few hundred of an image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from densewalk.evaluations.metrics.segmentation import confusion_matrix
from densewalk.evidence.statistics import MatchedIoU, MeanIoU, RatioOfSums

Counted = tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]  # places in one image's flattened matrix, and pixels there


def counted(
    target: Shaped[Tensor, "*shape"], prediction: Shaped[Tensor, "*shape"], classes: int, clusters: int, *, ignore: int | None = None
) -> Counted:
    """The entries of one image's confusion matrix that are above 0."""
    return entries(confusion_matrix(target, prediction, classes, clusters, ignore=ignore))


def entries(matrix: Int[Tensor, "classes clusters"]) -> Counted:
    """The entries of a matrix that are above 0."""
    flat = matrix.cpu().flatten().numpy()
    places = flat.nonzero()[0]
    return places.astype(np.int32), flat[places]


@dataclass(frozen=True)
class ImageCounts:
    """Pixels of each class (rows) with each predicted label (columns) in each image.

    image, target, predicted, count: of each entry that is above 0.
    """

    images: int
    classes: int
    clusters: int
    image: Int[np.ndarray, " entries"]
    target: Int[np.ndarray, " entries"]
    predicted: Int[np.ndarray, " entries"]
    count: Int[np.ndarray, " entries"]

    @classmethod
    def of(cls, found: Sequence[Counted], classes: int, clusters: int) -> "ImageCounts":
        """From the entries of all images in order."""
        image = np.repeat(np.arange(len(found)), [len(places) for places, _ in found])
        places, counts = (np.concatenate([part[kind] for part in found]) if found else np.zeros(0, np.int64) for kind in (0, 1))
        return cls(len(found), classes, clusters, image, places // clusters, places % clusters, counts.astype(np.int64))

    @property
    def matrix(self) -> Int[Tensor, "classes clusters"]:
        """The confusion matrix of all images."""
        total = np.zeros((self.classes, self.clusters), np.int64)
        np.add.at(total, (self.target, self.predicted), self.count)
        return torch.from_numpy(total)

    def mean_iou(self, absent: Literal["skip", "zero"] = "skip", void: int | None = None) -> MeanIoU:
        """The statistic of an mIoU in percent, predictions being classes. void: a class that no pixel can have, left out of the mean."""
        truth, found, hits = self._sums()
        union = truth + found - hits
        if void is not None and void < self.classes:
            union[:, void] = 0
        return self._by_class(hits, union, absent)

    def mean_accuracy(self) -> MeanIoU:
        """The statistic of the mean over classes of the share of their pixels that is found, in percent."""
        truth, _, hits = self._sums()
        return self._by_class(hits, truth, "skip")

    def pixel_accuracy(self) -> RatioOfSums:
        """The statistic of the share of pixels that carry their own class, in percent."""
        truth, _, hits = self._sums()
        return RatioOfSums(hits.sum(1), truth.sum(1), scale=100.0)

    def matched_iou(self, **options: Any) -> MatchedIoU:
        """The statistic of an mIoU in percent, predictions being clusters that are matched to classes. options: of MatchedIoU."""
        return MatchedIoU(self.images, self.classes, self.clusters, self.image, self.target, self.predicted, self.count, **options)

    def _sums(self) -> tuple[Int[np.ndarray, "images classes"], Int[np.ndarray, "images classes"], Int[np.ndarray, "images classes"]]:
        """Pixels of each class in truth, in prediction, and in both."""
        truth, found, hits = np.zeros((3, self.images, self.classes), np.int64)
        right = self.target == self.predicted
        np.add.at(truth, (self.image, self.target), self.count)
        np.add.at(found, (self.image, self.predicted), self.count)
        np.add.at(hits, (self.image[right], self.target[right]), self.count[right])
        return truth, found, hits

    def _by_class(self, intersection: np.ndarray, union: np.ndarray, absent: Literal["skip", "zero"]) -> MeanIoU:
        image, category = union.nonzero()
        parts = image, category, intersection[image, category], union[image, category]
        return MeanIoU(self.images, self.classes, *parts, absent=absent)
