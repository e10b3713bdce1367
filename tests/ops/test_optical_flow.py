"""Points that follow optical flow: on images that are moved by known steps, and on the generated city, whose points are known."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from densewalk.ops.optical_flow import grid_points, one_opencv_thread, returns, track_points
from densewalk.synthetic.city.correspondence import follow, rigid_things, sight_of
from densewalk.synthetic.city.walk import Walk


def texture(height, width, seed=0):
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(height, width, 3)), (2, 2, 0))
    return np.uint8(np.clip(128 + 60 * noise / noise.std(), 0, 255))


def test_the_check_is_the_published_one():
    forward, backward = np.array([[3.0, 4], [3, 4], [0, 0], [30, 0]]), np.array([[-3.0, -4], [-3, -3], [0.8, 0], [-29, 0]])
    expected = [
        (f[0] + b[0]) ** 2 + (f[1] + b[1]) ** 2 < 0.01 * (f[0] ** 2 + f[1] ** 2 + b[0] ** 2 + b[1] ** 2) + 0.5
        for f, b in zip(forward, backward, strict=True)
    ]
    assert returns(forward, backward).tolist() == expected == [True, False, False, True]


def test_points_move_as_the_image_does():
    """A window of a large texture that goes 2 to the right and 1 down in each frame: what is in it goes the other way."""
    large = texture(120, 140)
    frames = [large[t : t + 96, 2 * t : 2 * t + 96] for t in range(5)]
    start = grid_points(6, 96)
    assert start[:2].tolist() == [[8.0, 8.0], [24.0, 8.0]]
    points, visible = track_points(frames, start)
    assert points.shape == (36, 5, 2)
    for t in range(5):
        expected = start - [2 * t, t]
        assert np.abs(points[visible[:, t], t] - expected[visible[:, t]]).max() < 0.5
    inside = ((start - [8, 4]) >= 8).all(axis=1)
    assert visible[inside].all()
    assert visible[:, 0].all()
    assert (visible[:, 1:] <= visible[:, :-1]).all(), "what is lost once stays lost"


def test_a_point_that_leaves_is_lost():
    large = texture(96, 200)
    leaving = [large[:, 10 * t : 10 * t + 96] for t in range(3)]
    points, visible = track_points(leaving, np.array([[12.0, 48.0], [80.0, 48.0]]))
    assert visible.tolist() == [[True, True, False], [True, True, True]]
    assert points[1, 2] == pytest.approx([60, 48], abs=0.5)


def test_points_of_the_generated_city():
    """Median error and share of visible points kept, over four frames a quarter of a second apart; docs/more_methods.md has more."""
    walk = Walk((1,), seconds=64.0, fps=4.0, width=256, height=160)
    frames = [walk.frame(number) for number in range(32, 36)]
    places, found, seen = [], [], []
    for identity in rigid_things(walk, frames[0]):
        first, last = (sight_of(walk, number, frames[number - 32], identity) for number in (32, 35))
        for values, own in zip((places, found, seen), follow(first, last), strict=True):
            values.append(own[::7])
    start, end, shown = (np.concatenate(values) for values in (places, found, seen))
    points, visible = track_points([frame.rgb for frame in frames], start.astype(float))
    kept = visible[:, -1]
    error = np.linalg.norm(points[:, -1] - end, axis=1)[kept & shown]
    assert shown.sum() > 300
    assert np.median(error) < 0.8
    assert (error < 3).mean() > 0.95
    assert kept[shown].mean() > 0.75
    assert kept[~shown].mean() < 0.25, "points that something hides"
    assert np.median(np.linalg.norm(end - start, axis=1)[shown]) > 20, "they have moved"


def test_opencv_has_its_threads_again():
    cv2 = pytest.importorskip("cv2")
    before = cv2.getNumThreads()
    with one_opencv_thread():
        assert cv2.getNumThreads() == 1
    assert cv2.getNumThreads() == before
