"""Which class each cluster stands for, from a table of counts. Free of torch."""

from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment

Matching = Literal["hungarian", "many_to_one", "many_to_one_iou"]


def hungarian(counts: Int[np.ndarray, "classes clusters"]) -> Int[np.ndarray, " clusters"]:
    """The class of each cluster in the one-to-one matching of largest total IoU; -1 for a cluster that found none."""
    rows, columns = linear_sum_assignment(pairwise_iou(counts), maximize=True)
    assignment = np.full(counts.shape[1], -1)
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


MATCHINGS = {"hungarian": hungarian, "many_to_one": many_to_one, "many_to_one_iou": many_to_one_iou}
