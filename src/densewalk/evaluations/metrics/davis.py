"""DAVIS's region similarity J and contour accuracy F, per object and frame; equal to the official tool bit for bit.

    J = |P and G| / |P or G|                                              (1 where both are empty)
    F = 2 p r / (p + r)                                                   (0 where p + r = 0)
        p = share of P's contour within d pixels of G's contour, r = share of G's within d of P's, d = ceil(0.008 diagonal)
        p = 1, r = 0 where only P's contour is empty, p = 0, r = 1 where only G's is, p = r = 1 where both are

Perazzi et al., CVPR 2016, and the DAVIS-2017 challenge (https://arxiv.org/abs/1704.00675); the details and the reference
values are those of github.com/davisvideochallenge/davis2017-evaluation. That tool goes mask by mask over float stacks; here
an object is one bit of an integer picture, so that one pass finds and dilates the contours of all objects of both label
maps, on the part of the picture that has labels.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from numpy.typing import NDArray

Plane = NDArray[np.unsignedinteger[Any]]  # [height, width]; the bits of a pixel say which objects and predictions cover it
CONTOUR_TOLERANCE = 0.008  # of the picture's diagonal
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
            j[rows, frame], plane = _region_similarity(truth[frame][window], prediction[frame][window], ids)
            f[rows, frame] = _contour_accuracy(plane, _radius(truth[frame].shape), [(bit, bit + len(ids)) for bit in range(len(ids))])
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
        j[..., frame], plane = _all_region_similarities(t[window], p[window], objects, proposals)
        f[..., frame] = _contour_accuracy(plane, _radius(t.shape), pairs).reshape(objects, proposals)
    return j, f


def statistics(values: Float[np.ndarray, "*objects frames"]) -> Float[np.ndarray, "*objects 3"]:
    """Mean, recall and decay of J or F over the frames.

    recall: share of frames above 0.5. decay: mean of the first quarter minus mean of the last; neighbouring quarters share
    a frame, as in the official tool. (It keeps the quarters' frame numbers in 8 bits, which goes wrong beyond 255 frames.)
    """
    edges = np.round(np.linspace(1, values.shape[-1], 5) + 1e-10).astype(np.int64) - 1
    first, last = values[..., : edges[1] + 1], values[..., edges[3] :]
    return np.stack([values.mean(-1), (values > 0.5).mean(-1), first.mean(-1) - last.mean(-1)], axis=-1)


def _radius(shape: tuple[int, ...]) -> int:
    return math.ceil(CONTOUR_TOLERANCE * math.hypot(*shape))


def _window(truth: np.ndarray, prediction: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that hold a label, and one more on each side as far as the picture goes: contours lie one off."""
    slices = []
    for axis in (1, 0):
        used = np.flatnonzero(np.bitwise_or.reduce(truth, axis=axis) | np.bitwise_or.reduce(prediction, axis=axis))
        first, last = (int(used[0]), int(used[-1])) if len(used) else (0, 0)
        slices.append(slice(max(0, first - 1), last + 2))
    return slices[0], slices[1]


def _region_similarity(truth: np.ndarray, prediction: np.ndarray, ids: range) -> tuple[np.ndarray, Plane]:
    """J of each object with its own prediction, and both label maps as one plane: first the objects' bits, then the predictions'."""
    plane, value = _empty_plane(truth.shape, 2 * len(ids))
    region = np.empty(len(ids))
    for bit, number in enumerate(ids):
        t, p = truth == number, prediction == number
        plane |= t.astype(plane.dtype) * value(bit)
        plane |= p.astype(plane.dtype) * value(len(ids) + bit)
        union = np.count_nonzero(t | p)
        region[bit] = np.count_nonzero(t & p) / union if union else 1.0
    return region, plane


def _all_region_similarities(truth: np.ndarray, prediction: np.ndarray, objects: int, proposals: int) -> tuple[np.ndarray, Plane]:
    """J of each object with each proposal, from one joint histogram, and the plane."""
    plane, value = _empty_plane(truth.shape, objects + proposals)
    t, p = np.where(truth > objects, 0, truth).astype(np.int64), np.where(prediction > proposals, 0, prediction).astype(np.int64)
    for number in range(1, objects + 1):
        plane |= (t == number).astype(plane.dtype) * value(number - 1)
    for number in range(1, proposals + 1):
        plane |= (p == number).astype(plane.dtype) * value(objects + number - 1)
    joint = np.bincount((t * (proposals + 1) + p).ravel(), minlength=(objects + 1) * (proposals + 1)).reshape(objects + 1, proposals + 1)
    shared = joint[1:, 1:]
    union = joint.sum(axis=1)[1:, None] + joint.sum(axis=0)[None, 1:] - shared
    return np.where(union > 0, shared / np.maximum(union, 1), 1.0), plane


def _empty_plane(shape: tuple[int, ...], bits: int) -> tuple[Plane, Callable[[int], np.unsignedinteger[Any]]]:
    """A plane with room for `bits`, and the function that gives a bit's value. (Bytes are multiplied ten times faster than shifted.)"""
    dtype = next(d for d in (np.uint8, np.uint16, np.uint32, np.uint64) if np.iinfo(d).bits >= bits)
    return np.zeros(shape, dtype), lambda bit: dtype(1 << bit)


def _contour(plane: Plane, margin: int) -> Plane:
    """Pixels that differ from their right, lower or lower right neighbour; a neighbour outside the picture counts as equal.

    At least `margin` empty columns are added on the right, up to a multiple of 8.
    """
    height, width = plane.shape
    contour = np.zeros((height, -(-(width + margin) // 8) * 8), plane.dtype)
    contour[:, : width - 1] = plane[:, 1:] ^ plane[:, :-1]
    contour[:-1, :width] |= plane[1:] ^ plane[:-1]
    contour[:-1, : width - 1] |= plane[1:, 1:] ^ plane[:-1, :-1]
    return contour


def _dilate(plane: Plane, radius: int) -> Plane:
    """Every bit spread over the Euclidean disk { (y, x): y^2 + x^2 <= radius^2 }.

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
            run, reach = _spread(run, step), reach + step
        for y in range(radius + 1):
            if half_widths[y] == half_width:
                _add_moved(result, run, y * width)
    return result.reshape(plane.shape)


def _spread(line: Plane, step: int) -> Plane:
    """line | line moved to the left | line moved to the right."""
    wider = line.copy()
    _add_moved(wider, line, step)
    return wider


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
    length = {bit: _count(_bit(contour, bit)) for bit in {bit for pair in pairs for bit in pair}}
    found = [(_count(_bit(contour, p) & _bit(near, t)), _count(_bit(contour, t) & _bit(near, p))) for t, p in pairs]
    return np.array([_f_measure(a, length[p], b, length[t]) for (t, p), (a, b) in zip(pairs, found, strict=True)])


def _bit(plane: Plane, bit: int) -> NDArray[np.bool_]:
    return plane & plane.dtype.type(1 << bit) != 0


def _count(mask: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero(mask))


def _f_measure(prediction_right: int, prediction: int, truth_found: int, truth: int) -> float:
    """2 p r / (p + r) from counted contour pixels, with the official rules for empty contours."""
    if prediction == 0 or truth == 0:
        return float(prediction == truth)
    precision, recall = prediction_right / prediction, truth_found / truth
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
