"""Colors and blur of many images together, each by its own values, against definitions."""

import math
import platform

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from densewalk.data.augmentation import colors
from densewalk.data.augmentation.draws import NOTHING, Distortion, draw_distortion, draw_jitter, to_rows
from densewalk.data.augmentation.views import draw_flip_and_colors
from densewalk.ops.cpu.switch import set_cpu_kernels
from tests.fixtures import plain_views


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64).view(-1, 1, 1, 1)


def images(count: int, height: int = 20, width: int = 30) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=seeded(0))


TURNS = [-0.5, -0.2, 0.0, 0.03, 0.2]
FACTORS = [0.0, 0.2, 1.0, 1.3, 1.8]


def test_hue_equals_torchvision():
    x = images(5)
    x[:, :, :5] = x[:, :1, :5]  # gray pixels have no hue
    x[:, 0, 5:10] = x[:, 1, 5:10]
    for found, own, turn in zip(colors.adjust_hue(x, values(*TURNS)), x, TURNS, strict=True):
        torch.testing.assert_close(found, tv.adjust_hue(own, turn), rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", ["adjust_brightness", "adjust_contrast", "adjust_saturation"])
def test_a_factor_for_each_image_equals_torchvision(name):
    x = images(5)
    for found, own, factor in zip(getattr(colors, name)(x.clone(), values(*FACTORS)), x, FACTORS, strict=True):
        torch.testing.assert_close(found, getattr(tv, name)(own, factor), rtol=0, atol=1e-6)


def test_a_jitter_of_strength_zero_and_no_distortion_change_nothing():
    x = (images(2) * 255).byte()
    rows = to_rows([Distortion(), draw_jitter(0.0, 0.0, 0.0, 0.0, seeded(0))])
    assert torch.equal(colors.distort_levels(x, rows), x)
    torch.testing.assert_close(colors.distort(x, rows, [0.0] * 3, [1.0] * 3), x / 255, rtol=0, atol=1e-6)


def test_jitter_draws_the_four_factors_in_torchvisions_order():
    drawn = draw_jitter(0.8, 0.8, 0.8, 0.2, seeded(7))
    g = seeded(7)
    order = torch.randperm(4, generator=g).tolist()
    b, c, s, h = (torch.empty(1).uniform_(*span, generator=g).item() for span in ((0.2, 1.8), (0.2, 1.8), (0.2, 1.8), (-0.2, 0.2)))
    assert drawn == Distortion(0.0, *order, b, c, s, h)


@pytest.mark.parametrize("seed", range(8))
def test_changes_come_in_the_drawn_order(seed):
    x = (images(1) * 255).byte()
    found = colors.distort(x, to_rows([draw_jitter(0.8, 0.8, 0.8, 0.2, seeded(seed))]), [0.0] * 3, [1.0] * 3)
    expected = plain_views.jitter(x.double() / 255, (0.8, 0.8, 0.8, 0.2), seeded(seed))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-5)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("change", [colors.distort, colors.distort_levels])
@pytest.mark.parametrize("shape", [(40, 29, 37), (6, 200, 210)])  # a thread has several of the small ones at a time
def test_compiled_loops_equal_torchs_operators(change, count, shape, threads):
    threads(count)
    g = seeded(3)
    images, height, width = shape
    x = torch.randint(0, 256, (images, height, width, 3), dtype=torch.uint8, generator=g).permute(0, 3, 1, 2)
    smooth = torch.rand(images // 2, 3, 5, 6, generator=g)
    x[::2] = torch.nn.functional.interpolate(smooth, (height, width), mode="bicubic").mul(255).clamp(0, 255).byte()
    drawn = [draw_distortion(g) if i % 2 else draw_flip_and_colors(g, blur=0.5, solarize=0.3) for i in range(images)]
    rows = to_rows(drawn)
    found = change(x, rows)
    set_cpu_kernels(False)
    try:
        expected = change(x, rows)
    finally:
        set_cpu_kernels(True)
    if platform.machine() == "x86_64" and torch.backends.cpu.get_cpu_capability() != "DEFAULT":
        assert torch.equal(found, expected)
    else:  # torch rounds a product before it is added where the processor need not
        assert ((found.double() - expected.double()).abs() > 1e-5).double().mean() < 1e-3


def test_gray_is_the_luma():
    x = images(2, 4, 4)
    torch.testing.assert_close(colors.grayscale(x)[:, 0], 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2], rtol=0, atol=1e-3)
    levels = (x * 255).byte()
    found = colors.distort_levels(levels, to_rows([Distortion(gray=1.0)] * 2))
    assert torch.equal(found, tv.rgb_to_grayscale(levels, 3))


def test_blur_is_the_plain_double_sum():
    radii, x = [0.1, 0.7, 2.0], images(3, 9, 11)
    for image, radius, found in zip(x, radii, colors.gaussian_blur(x, values(*radii), reach=6), strict=True):
        reach = math.ceil(3 * radius)
        weight = [math.exp(-0.5 * (o / radius) ** 2) for o in range(-reach, reach + 1)]
        expected = torch.zeros(3, 9, 11, dtype=torch.float64)
        for i, j in np.ndindex(len(weight), len(weight)):
            rows = (torch.arange(9) + i - reach).clamp(0, 8)
            columns = (torch.arange(11) + j - reach).clamp(0, 10)
            expected += weight[i] * weight[j] * image[:, rows][:, :, columns].double() / sum(weight) ** 2
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


def test_flip_and_solarization():
    x = (images(3) * 255).byte()
    found = colors.distort_levels(x, to_rows([Distortion(flip=1.0), Distortion(solarize=1.0), Distortion()]))
    assert torch.equal(found[0], x[0].flip(-1))
    assert torch.equal(found[1], tv.solarize(x[1], 128))
    assert torch.equal(found[2], x[2])


def test_normalization_is_that_of_the_caller():
    x = (images(1) * 255).byte()
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 0.6]
    found = colors.distort(x, to_rows([Distortion()]), mean, std)
    torch.testing.assert_close(found, (x / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])


def test_no_images_are_no_views():
    assert colors.distort(torch.empty(2, 0, 3, 8, 8, dtype=torch.uint8), to_rows([]).expand(2, 0, -1)).shape == (2, 0, 3, 8, 8)


def test_distortion_strikes_as_often_as_it_should():
    g = seeded(0)
    drawn = [draw_distortion(g) for _ in range(3000)]
    radii = [d.blur for d in drawn if d.blur]
    assert abs(np.mean([d.first != NOTHING for d in drawn]) - 0.8) < 0.03
    assert abs(np.mean([d.gray for d in drawn]) - 0.2) < 0.03
    assert abs(len(radii) / 3000 - 0.5) < 0.03
    assert not any(d.flip or d.solarize for d in drawn)
    assert 0.1 <= min(radii) < 0.12
    assert 1.98 < max(radii) <= 2.0
    assert abs(np.mean(radii) - 1.05) < 0.05
