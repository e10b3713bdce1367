"""The inner loop of the confusion matrix: each pixel is looked at once, five times as fast as operations on whole tensors."""

import numpy as np

from densewalk.ops.cpu.compiled import compiled


@compiled()
def count_pairs(target: np.ndarray, prediction: np.ndarray, ignore: np.uint64, ignoring: bool, counts: np.ndarray) -> bool:
    """Add the pixels to `counts`; False if a label is out of range, and `counts` is of no use then.

    Two matrices are filled in turns: neighboring pixels mostly have the same labels, and the second would wait for the first one's sum.

    Args:
        target, prediction: [pixels], of any integers. A negative one is larger than any class when its bits are read without a sign.
        counts: [2, classes, clusters], whose sum is the confusion matrix.
    """
    classes, clusters = np.uint64(counts.shape[1]), np.uint64(counts.shape[2])
    right = True
    for i in range(len(target)):
        t, p = np.uint64(target[i]), np.uint64(prediction[i])
        if p >= clusters:
            right = False
        elif not (ignoring and t == ignore):
            if t >= classes:
                right = False
            else:
                counts[i & 1, t, p] += 1
    return right
