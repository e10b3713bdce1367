"""The inner loop of resampled average precision, nearly three times as fast as operations on whole arrays."""

import numpy as np

from densewalk.ops.cpu.compiled import compiled


@compiled()
def add_class(
    weights: np.ndarray,
    image: np.ndarray,
    tp: np.ndarray,
    ignored: np.ndarray,
    objects: np.ndarray,
    recalls: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Add the AP of one class, the mean over IoU thresholds, to the `sums` of all multisets that have an object of it.

    Args:
        weights: [resamples, images]. image: [detections], by falling score. tp, ignored: [detections, thresholds].
        objects: [resamples]. recalls: ascending.
    """
    detections, thresholds = tp.shape
    tp, ignored = np.ascontiguousarray(tp.T), np.ascontiguousarray(ignored.T)
    weight, recall, precision = np.empty(detections), np.empty(detections), np.empty(detections)
    for r in range(len(weights)):
        if objects[r] <= 0:
            continue
        for d in range(detections):
            weight[d] = weights[r, image[d]]
        total = 0.0
        for t in range(thresholds):
            hits, seen, n = 0.0, 0.0, 0
            for d in range(detections):
                if ignored[t, d]:
                    continue
                seen += weight[d]
                if tp[t, d] and weight[d] > 0:  # elsewhere recall stays and precision falls: never the best at any recall
                    hits += weight[d]
                    recall[n] = hits / objects[r]
                    precision[n] = hits / seen
                    n += 1
            at, best = n - 1, 0.0
            for k in range(len(recalls) - 1, -1, -1):  # the best precision at this recall or more
                while at >= 0 and recall[at] >= recalls[k]:
                    best = max(best, precision[at])
                    at -= 1
                total += best
        sums[r] += total / (thresholds * len(recalls))
