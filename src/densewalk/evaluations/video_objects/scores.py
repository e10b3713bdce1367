"""Which frames count, and how, in YouTube-VOS's, DAVIS's and MOSE's scores of video objects.

J and F of a frame are DAVIS's (metrics/davis.py) except for MOSE's J = (I + 1) / (U + 1). Sources: YouTube-VOS
(https://arxiv.org/abs/1809.03327), the organizers' tool of MOSEv2, vos-benchmark.
"""

import numpy as np
from jaxtyping import Float

from densewalk.data.benchmarks.video_objects import Masks
from densewalk.evaluations.metrics.davis import jf

ObjectScores = Float[np.ndarray, "objects 2"]


def score_objects(rule: str, truth: Masks, prediction: Masks, first: list[int]) -> ObjectScores:
    """J and F (0..1) of the objects 1, 2, ..., each a mean over the frames that count; NaN where none does.

    Args:
        first: number of the frame in which each object is given.
    """
    if rule == "youtube_vos":
        j, f = jf(truth, prediction, len(first))
        counts = np.arange(len(truth)) > np.array(first)[:, None]
        return np.stack([mean_where(j, counts), mean_where(f, counts)], axis=1)
    truth, prediction = truth[1:-1], prediction[1:-1]
    j, f = jf(truth, prediction, len(first))
    counts = np.ones_like(j, dtype=bool)
    if rule == "mose":
        j = smoothed_jaccard(truth, prediction, len(first))
    if rule == "vos_benchmark":
        shown = np.stack([((truth == n) | (prediction == n)).any((1, 2)) for n in range(1, len(first) + 1)])
        in_truth = np.stack([(truth == n).any() for n in range(1, len(first) + 1)])
        counts = np.logical_or.accumulate(shown, axis=1) & in_truth[:, None]
    return np.stack([mean_where(j, counts), mean_where(f, counts)], axis=1)


def smoothed_jaccard(truth: Masks, prediction: Masks, objects: int) -> Float[np.ndarray, "{objects} frames"]:
    """(I + 1) / (U + 1) of each object on each frame: 1 where both are empty."""
    values = []
    for number in range(1, objects + 1):
        t, p = truth == number, prediction == number
        values.append(((t & p).sum((1, 2)) + 1) / ((t | p).sum((1, 2)) + 1))
    return np.stack(values)


def mean_where(values: Float[np.ndarray, "objects frames"], counts: np.ndarray) -> Float[np.ndarray, " objects"]:
    """Mean of each row over the frames that count; NaN where none does."""
    with np.errstate(invalid="ignore"):
        return np.where(counts, values, 0).sum(1) / counts.sum(1)
