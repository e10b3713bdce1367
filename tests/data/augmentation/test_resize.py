"""Boxes cut and resized by matrix products, against torch's kernels and the definition of the weights."""

import math

import pytest
import torch
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode

from densewalk.data.augmentation.resize import resize_by_products, resized_crops, resizing_weights

BILINEAR, BICUBIC = InterpolationMode.BILINEAR, InterpolationMode.BICUBIC
BOXES = torch.tensor(
    [[[0, 0, 60, 80], [3, 10, 40, 33], [20, 5, 16, 16], [59, 79, 1, 1]], [[1, 2, 50, 70], [0, 0, 16, 16], [7, 0, 11, 80], [9, 9, 9, 31]]]
)


def plain_weights(start: int, length: int, size: int, full: int, cubic: bool) -> torch.Tensor:
    def kernel(x: float) -> float:
        x = abs(x)
        if not cubic:
            return max(0.0, 1 - x)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    weights = torch.zeros(size, full, dtype=torch.float64)
    stretch = max(length / size, 1.0)
    reach = (2 if cubic else 1) * stretch
    for k in range(size):
        center = (k + 0.5) * length / size
        for j in range(max(math.floor(center - reach + 0.5), 0), min(math.floor(center + reach + 0.5), length)):
            weights[k, start + j] = kernel((j + 0.5 - center) / stretch)
        weights[k] /= weights[k].sum()
    return weights


@pytest.mark.parametrize("mode", [BILINEAR, BICUBIC])
@pytest.mark.parametrize(("start", "length"), [(0, 40), (5, 30), (12, 16), (3, 7), (39, 1)])
def test_weights_equal_the_plain_loop_and_torchs_float_kernel(mode, start, length):
    found = resizing_weights(torch.tensor(start), torch.tensor(length), 16, 40, mode)
    torch.testing.assert_close(found.double(), plain_weights(start, length, 16, 40, mode is BICUBIC), rtol=0, atol=1e-6)
    row = torch.rand(1, 1, 1, 40, generator=torch.Generator().manual_seed(0))
    expected = F.interpolate(row[..., start : start + length], (1, 16), mode=mode.value, antialias=True)
    torch.testing.assert_close(row[0, 0] @ found.T, expected[0, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", [BILINEAR, BICUBIC])
def test_products_equal_torchs_kernel_for_uint8(mode):
    g = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(2, 3, 8, 8, generator=g), (60, 80), mode="bicubic").clamp(0, 1) * 255
    noise = torch.rand(2, 3, 60, 80, generator=g) * 255  # with black and white beyond which a cubic overshoots
    for images in (smooth.byte(), noise.byte()):
        found, expected = (way(images, BOXES, 16, mode) for way in (resize_by_products, resized_crops))
        assert found.shape == expected.shape == (2, 4, 3, 16, 16)
        apart = (found.int() - expected.int()).abs()
        assert apart.max() <= 1
        assert (apart > 0).float().mean() < 0.05


def test_a_box_of_the_size_itself_is_copied():
    images = torch.randint(0, 256, (1, 3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for way in (resize_by_products, resized_crops):
        assert torch.equal(way(images, torch.tensor([[[2, 5, 16, 16]]]), 16, BICUBIC)[0, 0], images[0, :, 2:18, 5:21])
