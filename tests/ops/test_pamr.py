"""Pixel-adaptive mask refinement against plain loops in float64, and what must hold of it."""

import math

import pytest
import torch

from densewalk.ops.pamr import affinities, color_deviation, pamr

STEPS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]


def random_case(height, width, labels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(1, 3, height, width, generator=generator, dtype=torch.float64)
    return images, torch.rand(1, labels, height, width, generator=generator, dtype=torch.float64)


def pamr_by_loops(image, scores, iterations, dilations):
    height, width = len(image[0]), len(image[0][0])

    def neighbors(i, j):
        return [(min(max(i + d * a, 0), height - 1), min(max(j + d * b, 0), width - 1)) for d in dilations for a, b in STEPS]

    def deviation(channel, i, j):
        values = [channel[r][c] for r, c in neighbors(i, j)] + [channel[i][j]] * len(dilations)
        mean = sum(values) / len(values)
        return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))

    for _ in range(iterations):
        moved = [[[0.0] * width for _ in range(height)] for _ in scores]
        for i in range(height):
            for j in range(width):
                spread = [deviation(channel, i, j) for channel in image]
                kernel = [
                    -sum(abs(channel[i][j] - channel[r][c]) / (1e-8 + 0.1 * s) for channel, s in zip(image, spread, strict=True)) / 3
                    for r, c in neighbors(i, j)
                ]
                weights = [math.exp(k - max(kernel)) for k in kernel]
                for label, plane in enumerate(scores):
                    total = sum(w * plane[r][c] for w, (r, c) in zip(weights, neighbors(i, j), strict=True))
                    moved[label][i][j] = total / sum(weights)
        scores = moved
    return torch.tensor(scores)


@pytest.mark.parametrize(("iterations", "dilations"), [(1, (1,)), (2, (1, 3)), (1, (2, 9))])
def test_equals_the_plain_loop(iterations, dilations):
    images, scores = random_case(5, 6)
    expected = pamr_by_loops(images[0].tolist(), scores[0].tolist(), iterations, dilations)
    torch.testing.assert_close(pamr(images, scores, iterations=iterations, dilations=dilations)[0].float(), expected, atol=1e-6, rtol=0)


def test_smaller_scores_are_enlarged_with_aligned_corners():
    images, _ = random_case(9, 9)
    scores = torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]], dtype=torch.float64)
    rows = torch.linspace(0, 1, 9, dtype=torch.float64)
    enlarged = (2 * rows[:, None] + rows[None, :])[None, None]
    torch.testing.assert_close(pamr(images, scores, iterations=0, dilations=(1,)), enlarged)
    refined = [pamr(images, s, iterations=2, dilations=(1, 2)) for s in (scores, enlarged)]
    torch.testing.assert_close(*refined)


def test_a_constant_stays_sums_are_kept_and_no_value_leaves_the_range():
    images, scores = random_case(12, 10)
    scores = scores / scores.sum(1, keepdim=True)
    options = {"iterations": 4, "dilations": (1, 2, 24)}
    refined = pamr(images, scores, **options)
    torch.testing.assert_close(refined.sum(1), torch.ones(1, 12, 10, dtype=torch.float64))
    assert (refined.amax((2, 3)) <= scores.amax((2, 3)) + 1e-12).all()
    assert (refined.amin((2, 3)) >= scores.amin((2, 3)) - 1e-12).all()
    constant = torch.full_like(scores, 0.3)
    torch.testing.assert_close(pamr(images, constant, **options), constant)


def test_it_commutes_with_flips_and_ignores_the_scale_of_colors():
    images, scores = random_case(8, 11)
    options = {"iterations": 3, "dilations": (1, 4)}
    refined = pamr(images, scores, **options)
    for axis in (-1, -2):
        torch.testing.assert_close(pamr(images.flip(axis), scores.flip(axis), **options).flip(axis), refined)
    scaled = images * torch.tensor([2.0, -5.0, 0.3]).view(1, 3, 1, 1) + 7
    torch.testing.assert_close(pamr(scaled, scores, **options), refined, atol=1e-5, rtol=0)  # but for the 1e-8


def test_a_constant_image_averages_with_equal_weights():
    images, _ = random_case(6, 6)
    weights = affinities(torch.full_like(images, 0.4), (1, 2))
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 16))
    assert not color_deviation(torch.full_like(images, 0.5), (1, 2)).any()


def test_scores_stop_at_an_edge_of_the_image():
    """Two flat halves: a score on one side stays on that side."""
    images = torch.zeros(1, 3, 16, 16)
    images[..., 8:] = 1
    scores = torch.zeros(1, 1, 16, 16)
    scores[..., 4:8, 4:8] = 1
    refined = pamr(images, scores, iterations=10, dilations=(1, 2, 4))
    assert float(refined[..., 8:].max()) < 1e-3
    assert float(refined[..., :8].min()) > 1e-2
