"""DAVIS's region similarity J and contour accuracy F, per object and frame; equal to the official tool bit for bit.

    J = |P and G| / |P or G|                                              (1 where both are empty)
    F = 2 p r / (p + r)                                                   (0 where p + r = 0)
        p = share of P's contour within d pixels of G's contour, r = share of G's within d of P's, d = ceil(0.008 diagonal)
        p = 1, r = 0 where only P's contour is empty, p = 0, r = 1 where only G's is, p = r = 1 where both are

Perazzi et al., CVPR 2016, and the DAVIS-2017 challenge (https://arxiv.org/abs/1704.00675); the details and the reference
values are those of github.com/davisvideochallenge/davis2017-evaluation. That tool processes mask by mask; here an object is one
bit of an integer plane, so that one pass finds and dilates the contours of all objects of both label maps.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from numpy.typing import NDArray

Plane = NDArray[np.unsignedinteger[Any]]  # [height, width]; each bit of a pixel is an object or prediction that covers it
CONTOUR_TOLERANCE = 0.008  # of the image's diagonal
MOST_AT_ONCE = 64  # objects and predictions: one bit for each


def jf(
    truth: Integer[np.ndarray, "frames height width"], prediction: Integer[np.ndarray, "frames height width"], objects: int
) -> tuple[Float[np.ndarray, "objects frames"], Float[np.ndarray, "objects frames"]]:
    """J and F in 0..1 of the objects 1..`objects` on each frame, each with the prediction of its number; any other id is background."""
    j, f = np.empty((2, objects, len(truth)))
    for frame in range(len(truth)):
        for first in range(1, objects + 1, MOST_AT_ONCE // 2):
            ids = range(first, min(first + MOST_AT_ONCE // 2, objects + 1))
            rows = slice(ids.start - 1, ids.stop - 1)
            window = _window(truth[frame], prediction[frame])
            t, p = ([labels[frame][window] == number for number in ids] for labels in (truth, prediction))
            j[rows, frame] = [_jaccard(*pair) for pair in zip(t, p, strict=True)]
            pairs = [(bit, bit + len(ids)) for bit in range(len(ids))]
            f[rows, frame] = _contour_accuracy(_plane([*t, *p], t[0].shape), _radius(truth[frame].shape), pairs)
    return j, f


def jf_pairs(
    truth: Integer[np.ndarray, "frames height width"], prediction: Integer[np.ndarray, "frames height width"], objects: int, proposals: int
) -> tuple[Float[np.ndarray, "objects proposals frames"], Float[np.ndarray, "objects proposals frames"]]:
    """J and F of every object 1..`objects` with every proposal 1..`proposals`; together at most 64.

    Raises:
        ValueError: there are more.
    """
    if objects + proposals > MOST_AT_ONCE:
        raise ValueError(f"{objects} objects and {proposals} proposals are more than {MOST_AT_ONCE}")
    j, f = np.empty((2, objects, proposals, len(truth)))
    pairs = [(o, objects + p) for o in range(objects) for p in range(proposals)]
    for frame, (t, p) in enumerate(zip(truth, prediction, strict=True)):
        window = _window(t, p)
        j[..., frame] = _pairwise_jaccard(t[window], p[window], objects, proposals)
        masks = [labels[window] == i + 1 for labels, count in ((t, objects), (p, proposals)) for i in range(count)]
        f[..., frame] = _contour_accuracy(_plane(masks, t[window].shape), _radius(t.shape), pairs).reshape(objects, proposals)
    return j, f


def statistics(values: Float[np.ndarray, "*objects frames"]) -> Float[np.ndarray, "*objects 3"]:
    """Mean, recall and decay of J or F over the frames.

    recall: share of frames above 0.5. decay: mean of the first quarter minus mean of the last; neighboring quarters share
    a frame, as in the official tool. (It keeps the quarters' frame numbers in 8 bits, which goes wrong beyond 255 frames.)
    """
    edges = np.round(np.linspace(1, values.shape[-1], 5) + 1e-10).astype(np.int64) - 1
    first, last = values[..., : edges[1] + 1], values[..., edges[3] :]
    return np.stack([values.mean(-1), (values > 0.5).mean(-1), first.mean(-1) - last.mean(-1)], axis=-1)


def _radius(shape: tuple[int, ...]) -> int:
    return math.ceil(CONTOUR_TOLERANCE * math.hypot(*shape))


def _window(truth: np.ndarray, prediction: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that hold a label, and one more on each side within the image: contours lie one pixel outside."""
    slices = []
    for axis in (1, 0):
        used = np.flatnonzero(np.bitwise_or.reduce(truth, axis=axis) | np.bitwise_or.reduce(prediction, axis=axis))
        first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
        slices.append(slice(max(0, first - 1), last + 2))
    return slices[0], slices[1]


def _jaccard(truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> float:
    union = np.count_nonzero(truth | prediction)
    return np.count_nonzero(truth & prediction) / union if union else 1.0


def _pairwise_jaccard(truth: np.ndarray, prediction: np.ndarray, objects: int, proposals: int) -> np.ndarray:
    """J of each object with each proposal, from one joint histogram."""
    t, p = np.where(truth > objects, 0, truth).astype(np.int64), np.where(prediction > proposals, 0, prediction).astype(np.int64)
    joint = np.bincount((t * (proposals + 1) + p).ravel(), minlength=(objects + 1) * (proposals + 1)).reshape(objects + 1, proposals + 1)
    shared = joint[1:, 1:]
    union = joint.sum(axis=1)[1:, None] + joint.sum(axis=0)[None, 1:] - shared
    return np.where(union > 0, shared / np.maximum(union, 1), 1.0)


def _plane(masks: Sequence[NDArray[np.bool_]], shape: tuple[int, ...]) -> Plane:
    """A bit for each mask. (Bytes are multiplied ten times faster than shifted.)"""
    dtype: Any = next(d for d in (np.uint8, np.uint16, np.uint32, np.uint64) if np.iinfo(d).bits >= len(masks))
    plane: Plane = np.zeros(shape, dtype)
    for bit, mask in enumerate(masks):
        plane |= mask.astype(dtype) * dtype(1 << bit)
    return plane


def _contour(plane: Plane, margin: int) -> Plane:
    """Pixels that differ from their right, lower or lower right neighbor; a neighbor outside the image counts as equal.

    At least `margin` empty columns are added on the right, up to a multiple of 8.
    """
    height, width = plane.shape
    contour = np.zeros((height, -(-(width + margin) // 8) * 8), plane.dtype)
    contour[:, : width - 1] = plane[:, 1:] ^ plane[:, :-1]
    contour[:-1, :width] |= plane[1:] ^ plane[:-1]
    contour[:-1, : width - 1] |= plane[1:, 1:] ^ plane[:-1, :-1]
    return contour


def _dilate(plane: Plane, radius: int) -> Plane:
    """Spread every bit over the Euclidean disk { (y, x): y^2 + x^2 <= radius^2 }.

    Equals, for each row offset y of the disk:
        result |= rows moved by y of (plane spread over the columns -w..w), w = floor(sqrt(radius^2 - y^2))

    The last `radius` columns must be empty: rows are moved as one long line, and what leaves one must not reach the next.
    """
    half_widths = [math.isqrt(radius**2 - y**2) for y in range(radius + 1)]
    width = plane.shape[1]
    run, reach = plane.ravel(), 0  # spread over -reach..reach
    result = np.zeros_like(run)
    for half_width in sorted(set(half_widths)):
        while reach < half_width:
            step = min(half_width - reach, 2 * reach + 1)  # a longer one would leave a gap
            narrower, run, reach = run, run.copy(), reach + step
            _add_moved(run, narrower, step)
        for y in range(radius + 1):
            if half_widths[y] == half_width:
                _add_moved(result, run, y * width)
    return result.reshape(plane.shape)


def _add_moved(target: Plane, line: Plane, step: int) -> None:
    """target |= line moved by `step` to either side; what leaves the line is lost."""
    rest = max(0, len(line) - step)
    target[len(line) - rest :] |= line[:rest]
    target[:rest] |= line[len(line) - rest :]


def _contour_accuracy(plane: Plane, radius: int, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """F of each pair (bit of the object, bit of the prediction)."""
    contour = _contour(plane, radius)
    near = _dilate(contour, radius)
    words = contour.view(np.uint64)
    used = words != 0  # most words are empty
    contour, near = words[used].view(plane.dtype), near.view(np.uint64)[used].view(plane.dtype)
    length = {bit: np.count_nonzero(_bit(contour, bit)) for bit in {bit for pair in pairs for bit in pair}}
    f = []
    for t, p in pairs:
        prediction_right = np.count_nonzero(_bit(contour, p) & _bit(near, t))
        truth_found = np.count_nonzero(_bit(contour, t) & _bit(near, p))
        f.append(_f_measure(prediction_right, length[p], truth_found, length[t]))
    return np.array(f)


def _bit(plane: Plane, bit: int) -> NDArray[np.bool_]:
    return plane & plane.dtype.type(1 << bit) != 0


def _f_measure(prediction_right: np.int64, prediction: np.int64, truth_found: np.int64, truth: np.int64) -> float:
    """2 p r / (p + r) from counted contour pixels, with the official rules for empty contours."""
    if prediction == 0 or truth == 0:
        return float(prediction == truth)
    precision, recall = prediction_right / prediction, truth_found / truth
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
