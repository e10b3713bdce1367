"""Scores of label maps: one confusion matrix, from which every mIoU of the field follows.

    confusion = Confusion(classes=21, ignore=255)
    for target, prediction in batches:
        confusion.add(target, prediction)
    mean_iou(confusion.matrix)                                  # predictions are classes
    matched = reassign(confusion.matrix, hungarian(confusion.matrix))
    mean_iou(matched)                                           # predictions are clusters, one per class
    matched = reassign(confusion.matrix, many_to_one(confusion.matrix))
    mean_iou(matched)                                           # more clusters than classes

Rows are ground truth, columns predictions. Counts are int64, so that a whole data set adds up exactly, in any order.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from densewalk.evidence import matching
from densewalk.ops.cpu.switch import use_cpu_kernels

COMPILED_FROM = 1 << 17  # pixels at once: with fewer, loading numba (0.3 s) would take longer than it saves


class Confusion:
    """A confusion matrix that grows batch by batch; it lives on the CPU, whatever device the batches are on."""

    def __init__(self, classes: int, clusters: int | None = None, *, ignore: int | None = None) -> None:
        self.ignore = ignore
        self.matrix = torch.zeros(classes, clusters or classes, dtype=torch.int64)

    def add(self, target: Shaped[Tensor, "*shape"], prediction: Shaped[Tensor, "*shape"]) -> None:
        """Count one batch; see `confusion_matrix`."""
        self.matrix += confusion_matrix(target, prediction, *self.matrix.shape, ignore=self.ignore).cpu()


def confusion_matrix(
    target: Shaped[Tensor, "*shape"], prediction: Shaped[Tensor, "*shape"], classes: int, clusters: int, *, ignore: int | None = None
) -> Int[Tensor, "{classes} {clusters}"]:
    """Count the pixels of each class with each predicted label.

        for t, p in zip(target, prediction):
            if t != ignore:
                confusion[t, p] += 1

    Raises:
        ValueError: a target that is not `ignore` lies outside [0, classes), or a prediction outside [0, clusters).
    """
    if use_cpu_kernels(target.device) and target.device == prediction.device and target.numel() >= COMPILED_FROM:
        counts = _count_compiled(target, prediction, (classes, clusters), ignore)
        if counts is not None:
            return counts
    t, p = target.flatten().long(), prediction.flatten().long()
    ignored = torch.zeros_like(t, dtype=torch.bool) if ignore is None else t == ignore
    _require_range("target", t.masked_fill(ignored, 0), classes)
    _require_range("prediction", p, clusters)
    t = t.masked_fill(ignored, classes)  # one more row, cut off below
    counts = torch.bincount(torch.add(p, t, alpha=clusters), minlength=(classes + 1) * clusters)
    return counts.view(classes + 1, clusters)[:classes]


def _count_compiled(target: Tensor, prediction: Tensor, shape: tuple[int, int], ignore: int | None) -> Tensor | None:
    """The same by a compiled loop; None if a label is out of range."""
    from densewalk.evaluations.metrics.confusion_kernel import count_pairs  # late: numba is slow to load

    labels = [x.flatten() if x.dtype == torch.uint8 else x.flatten().long() for x in (target, prediction)]  # no more types to compile for
    counts = torch.zeros(2, *shape, dtype=torch.int64)
    ignored = np.uint64((ignore or 0) % 2**64)  # its bits without a sign
    if not count_pairs(*(x.numpy() for x in labels), ignored, ignore is not None, counts.numpy()):
        return None
    return counts.sum(0)


def _require_range(name: str, labels: Tensor, end: int) -> None:
    if not labels.numel():
        return
    low, high = (int(x) for x in torch.aminmax(labels))
    if low < 0 or high >= end:
        raise ValueError(f"{name} labels run from {low} to {high}, expected 0 to {end - 1}")


def iou(confusion: Int[Tensor, "classes classes"]) -> Float[Tensor, " classes"]:
    """Intersection over union of every class, in [0, 1], float64; NaN where a class is neither there nor predicted."""
    hits = confusion.diagonal().double()
    return hits / (confusion.sum(0) + confusion.sum(1) - hits)


def mean_iou(confusion: Int[Tensor, "classes classes"], *, absent: Literal["skip", "zero"] = "skip", void: int | None = None) -> float:
    """Mean IoU in [0, 1].

    Args:
        absent: classes that are neither there nor predicted are left out of the mean (as mmsegmentation does), or count as 0
            (as open-hummingbird-eval, NeCo and Time-Tuning do: ADE20K's empty class 0 costs them 1/151).
        void: a class that no pixel can have: with `skip` it is left out, too, where it is predicted.

    Raises:
        ValueError: no pixel was counted.
    """
    if not confusion.any():
        raise ValueError("mIoU of no pixel at all")
    values = iou(confusion)
    if absent == "zero":
        return float(values.nan_to_num(0.0).mean())
    if void is not None and void < len(values):
        values[void] = torch.nan
    return float(values.nanmean())


def pixel_accuracy(confusion: Int[Tensor, "classes classes"]) -> float:
    """Share of the counted pixels that carry their own class, in [0, 1]."""
    return float(confusion.diagonal().sum() / confusion.sum())


def hungarian(confusion: Int[Tensor, "classes clusters"]) -> Int[Tensor, " clusters"]:
    """The class of each cluster in the one-to-one matching of largest total IoU; -1 for a cluster that found none."""
    return torch.from_numpy(matching.hungarian(confusion.numpy()))


def many_to_one(confusion: Int[Tensor, "classes clusters"]) -> Int[Tensor, " clusters"]:
    """The class of each cluster by greatest precision: the class that most of the cluster's pixels belong to; -1 if it has none."""
    return torch.from_numpy(matching.many_to_one(confusion.numpy()))


def match_clusters(confusion: Int[Tensor, "classes clusters"], how: matching.Matching, void: int | None = None) -> Int[Tensor, " clusters"]:
    """The class of each cluster by one of the rules of evidence/matching.py; `void` takes none."""
    return torch.from_numpy(matching.match(confusion.numpy(), how, void))


def reassign(
    confusion: Int[Tensor, "classes clusters"], assignment: Int[Tensor, " clusters"], *, unmatched: int = 0
) -> Int[Tensor, "classes classes"]:
    """The confusion matrix after every predicted cluster has taken its class; clusters marked -1 become class `unmatched`."""
    target = torch.where(assignment < 0, unmatched, assignment)
    return confusion.new_zeros(len(confusion), len(confusion)).index_add_(1, target, confusion)
