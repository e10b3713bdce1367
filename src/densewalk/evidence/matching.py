"""Which class each cluster stands for, from a table of counts. Free of torch."""

import numpy as np
from jaxtyping import Int
from scipy.optimize import linear_sum_assignment


def hungarian(counts: Int[np.ndarray, "classes clusters"]) -> Int[np.ndarray, " clusters"]:
    """The class of each cluster in the one-to-one matching of largest total IoU; -1 for a cluster that found none."""
    overlap = counts.astype(np.float64)
    union = overlap.sum(1, keepdims=True) + overlap.sum(0, keepdims=True) - overlap
    rows, columns = linear_sum_assignment(overlap / np.maximum(union, 1), maximize=True)
    assignment = np.full(counts.shape[1], -1)
    assignment[columns] = rows
    return assignment


def many_to_one(counts: Int[np.ndarray, "classes clusters"]) -> Int[np.ndarray, " clusters"]:
    """The class of each cluster by greatest precision: the class that most of the cluster's pixels belong to; -1 if it has none."""
    return np.where(counts.sum(0) > 0, counts.argmax(0), -1)
