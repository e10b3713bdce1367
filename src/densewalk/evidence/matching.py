"""Which class each cluster stands for, from a table of counts. Free of torch."""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

Matching = Literal["hungarian", "hungarian_pixels", "many_to_one", "many_to_one_iou"]


def hungarian(counts: Int[np.ndarray, "classes clusters"]) -> Int[np.ndarray, " clusters"]:
    """The class of each cluster in the one-to-one matching of largest total IoU; -1 for a cluster that found none."""
    return _one_to_one(pairwise_iou(counts))


def hungarian_pixels(counts: Int[np.ndarray, "classes clusters"]) -> Int[np.ndarray, " clusters"]:
    """The same in the matching of the most pixels that carry their own class (STEGO)."""
    return _one_to_one(counts)


def _one_to_one(worth: np.ndarray) -> Int[np.ndarray, " clusters"]:
    """The class of each cluster in the one-to-one matching of largest total worth; -1 for a cluster that found none."""
    rows, columns = linear_sum_assignment(worth, maximize=True)
    assignment = np.full(worth.shape[1], -1)
    assignment[columns] = rows
    return assignment


def many_to_one(counts: Int[np.ndarray, "classes clusters"]) -> Int[np.ndarray, " clusters"]:
    """The class of each cluster by greatest precision: the class that most of the cluster's pixels belong to; -1 if it has none."""
    return np.where(counts.sum(0) > 0, counts.argmax(0), -1)


def many_to_one_iou(counts: Int[np.ndarray, "classes clusters"]) -> Int[np.ndarray, " clusters"]:
    """The class of each cluster with which it has the largest IoU, the first of several; -1 if it has no pixel.

        for cluster in clusters:
            assignment[cluster] = argmax over classes of |cluster and class| / |cluster or class|

    A large class is seldom the one of a small cluster, as it is by precision.
    """
    return np.where(counts.sum(0) > 0, pairwise_iou(counts).argmax(0), -1)


def pairwise_iou(counts: Int[np.ndarray, "*tables classes clusters"]) -> Float[np.ndarray, "*tables classes clusters"]:
    """IoU of each class with each cluster; 0 where both are empty."""
    overlap = counts.astype(np.float64)
    union = overlap.sum(-1, keepdims=True) + overlap.sum(-2, keepdims=True) - overlap
    return overlap / np.maximum(union, 1)


MATCHINGS = {
    "hungarian": hungarian,
    "hungarian_pixels": hungarian_pixels,
    "many_to_one": many_to_one,
    "many_to_one_iou": many_to_one_iou,
}


def match(counts: Int[np.ndarray, "classes clusters"], how: Matching, void: int | None = None) -> Int[np.ndarray, " clusters"]:
    """The class of each cluster; -1 for a cluster that found none.

    Args:
        void: a class that no pixel can have, if there is one among the rows: it takes no cluster, so that its place in the table is of no
            matter.
    """
    if void is None or void >= len(counts):
        return MATCHINGS[how](counts)
    found = MATCHINGS[how](np.delete(counts, void, axis=0))
    return np.where(found >= void, found + 1, found)
