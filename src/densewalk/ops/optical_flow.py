"""Optical flow of OpenCV (DIS), and points that follow it through a clip.

flow = frame_flow(before, after)                                  # uint8 [h, w, 3] twice -> [h, w, 2], x and y in pixels
points, visible = track_points(frames, grid_points(16, 224))      # uint8 [t, h, w, 3] -> [points, t, 2], [points, t]

Places are x, y in pixels of an image whose first pixel has its middle at 0.5, 0.5.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import cv2
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

Gray = UInt8[np.ndarray, "height width"]
Flow = Float32[np.ndarray, "height width 2"]
Places = Float[np.ndarray, "points 2"]
RELATIVE, ABSOLUTE = 0.01, 0.5  # of `returns`; the published ones
MEDIAN, MOST = 5, 40.0  # of `frame_flow`: side of the median filter, largest component in pixels
STILL = 0.3  # of `is_still`: pixels


@contextmanager
def one_opencv_thread() -> Iterator[None]:
    """Let OpenCV work in one thread, which is faster for small images and leaves the other cores to other processes."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def frame_flow(before: UInt8[np.ndarray, "height width 3"], after: UInt8[np.ndarray, "height width 3"]) -> Flow:
    """Flow from one frame to another by DIS (preset medium, of gray images), with outliers taken off.

        u = DIS(gray(before), gray(after))
        u = median of the 5 x 5 pixels around each, of x and y alone
        u = clip(u, -40, 40)

    Returns:
        x and y in pixels.
    """
    gray = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in (before, after)]
    with one_opencv_thread():
        search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        found = search.calc(*gray, None)  # type: ignore[call-overload]
        filtered = [cv2.medianBlur(np.ascontiguousarray(found[..., axis]), MEDIAN) for axis in (0, 1)]
    return np.clip(np.stack(filtered, axis=-1), -MOST, MOST)


def is_still(flow: Flow) -> bool:
    """True where the median length of the flow is below 0.3 pixels: what moves is not told from noise."""
    return bool(np.median(np.hypot(flow[..., 0], flow[..., 1])) < STILL)


def grid_points(side: int, size: int) -> Places:
    """The middles of side x side equal cells of a square image, row by row."""
    middles = (np.arange(side) + 0.5) * size / side
    return np.stack([np.tile(middles, side), np.repeat(middles, side)], axis=1)


def track_points(
    frames: Sequence[UInt8[np.ndarray, "height width 3"]], points: Places
) -> tuple[Float32[np.ndarray, "points frames 2"], Bool[np.ndarray, "points frames"]]:
    """Follow points of the first frame from frame to frame by dense inverse search flow (DIS, Kroeger et al., ECCV 2016).

        for each frame t after the first:
            q = p + forward(p)                                 flow from frame t - 1 to t, bilinear between pixels
            visible = visible and q inside the frame and returns(forward(p), backward(q))
            p = q

    A point that was lost once stays invisible: nothing says whether it is the same when it seems to come back.
    """
    places, seen = [points], [np.ones(len(points), dtype=bool)]
    gray = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames]
    height, width = gray[0].shape
    with one_opencv_thread():
        search = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        for before, after in pairwise(gray):
            forward, backward = (search.calc(*pair, None) for pair in ((before, after), (after, before)))  # type: ignore[call-overload]
            moved = _flow_at(forward, places[-1])
            found = places[-1] + moved
            inside = (found >= 0).all(axis=1) & (found < (width, height)).all(axis=1)
            seen.append(seen[-1] & inside & returns(moved, _flow_at(backward, found)))
            places.append(found)
    return np.stack(places, axis=1).astype(np.float32), np.stack(seen, axis=1)


def returns(forward: Places, backward: Places) -> Bool[np.ndarray, " points"]:
    """True where the way there and back ends near its beginning: |f + b|^2 < 0.01 (|f|^2 + |b|^2) + 0.5.

    Source: Sundaram, Brox and Keutzer, Dense point trajectories (ECCV 2010), section 4; in pixels.
    """
    lengths = (forward**2).sum(axis=1) + (backward**2).sum(axis=1)
    return ((forward + backward) ** 2).sum(axis=1) < RELATIVE * lengths + ABSOLUTE


def _flow_at(flow: Flow, places: Places) -> Places:
    """The flow at places, bilinear between the middles of pixels; beyond the last middles that of the nearest one."""
    height, width = flow.shape[:2]
    x, y = np.clip(places - 0.5, 0, (width - 1, height - 1)).T
    left, top = np.minimum(x.astype(int), max(0, width - 2)), np.minimum(y.astype(int), max(0, height - 2))
    a, b = (y - top)[:, None], (x - left)[:, None]
    upper, lower = ((1 - b) * flow[row, left] + b * flow[row, left + 1] for row in (top, top + 1))
    return (1 - a) * upper + a * lower
