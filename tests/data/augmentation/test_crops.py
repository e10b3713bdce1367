"""Crops: boxes against the released code and plain loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densewalk.core.errors import UserError
from densewalk.data.augmentation import crops as views
from densewalk.data.augmentation.colors import distort_levels
from densewalk.data.augmentation.crops import Crop
from tests.fixtures.helpers import shared

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
NECO = [Crop(224, (0.25, 1.0), True)] * 2 + [Crop(98, (0.05, 0.25), False)] * 4


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(height: int, width: int, frames: int | None = None) -> torch.Tensor:
    """A smooth random picture, uint8."""
    coarse = torch.rand(1, 3, 8, 8, generator=seeded(1))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    image = (smooth[0] * 255).to(torch.uint8)
    return image if frames is None else image.expand(frames, -1, -1, -1).contiguous()


# -- crops -----------------------------------------------------------------------------------------------------------


@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 2**31))
@settings(max_examples=200, deadline=None)
def test_a_crop_lies_inside_the_image(height, width, seed):
    top, left, h, w = views.random_resized_crop_box(height, width, (0.05, 1.0), (3 / 4, 4 / 3), seeded(seed))
    assert min(h, w) >= 1
    assert 0 <= top <= height - h
    assert 0 <= left <= width - w


def test_crops_have_the_asked_shares_and_aspect_ratios():
    g = seeded(0)
    boxes = np.array([views.random_resized_crop_box(900, 900, (0.1, 0.4), (0.5, 2.0), g) for _ in range(2000)])
    share = boxes[:, 2] * boxes[:, 3] / 900**2
    ratio = np.log(boxes[:, 3] / boxes[:, 2])
    assert 0.099 < share.min() < 0.11
    assert 0.39 < share.max() < 0.401
    assert abs(share.mean() - 0.25) < 0.01
    assert abs(ratio.mean()) < 0.03
    assert abs(ratio.std() - 2 * math.log(2) / math.sqrt(12)) < 0.03
    assert abs((boxes[:, 0] / (900 - boxes[:, 2])).mean() - 0.5) < 0.03


def test_a_thin_image_gives_its_central_crop():
    assert views.random_resized_crop_box(10, 1000, (0.5, 1.0), (3 / 4, 4 / 3), seeded(0)) == (0, 493, 10, 13)
    assert views.random_resized_crop_box(1000, 10, (0.5, 1.0), (3 / 4, 4 / 3), seeded(0)) == (493, 0, 13, 10)


def test_resized_crop_of_everything_at_its_own_size_changes_nothing():
    image = picture(40, 30)
    assert torch.equal(views.resized_crop(image, (0, 0, 40, 30), (40, 30)), image)
    assert views.resized_crop(image[None], (5, 5, 20, 20), 16).shape == (1, 3, 16, 16)


def test_recorded_views_follow_from_the_seed():
    recorded = np.load(shared("parity/neco_views.npz"))
    image = torch.from_numpy(recorded["cases/0/image"]).permute(2, 0, 1).contiguous()
    sides = [int(s) for s in recorded["cases/0/size"]]
    crops = [Crop(sides[0], (0.25, 1.0), True)] * 2 + [Crop(sides[1], (0.05, 0.25), False)] * 4
    cut, rows, boxes = views.multi_crop(image, crops, 0.01, seeded(int(recorded["cases/0/seed"])))
    in_global, in_view = views.intersections(boxes, [c.size for c in crops], 2)
    assert torch.equal(in_global, torch.from_numpy(recorded["cases/0/gc"]))
    assert torch.equal(in_view, torch.from_numpy(recorded["cases/0/all"]))
    for i, crop in enumerate(distort_levels(one[None], row[None])[0] for one, row in zip(cut, rows, strict=True)):
        expected = torch.from_numpy(recorded[f"cases/0/crops/{i}"]) * STD[:, None, None] + MEAN[:, None, None]
        # the release rounds to 8 bits after every change, blurs by boxes, and draws the radius elsewhere
        assert (crop.float() / 255 - expected).abs().mean() < 2.5 / 255


@pytest.mark.parametrize("case", range(3))
def test_recorded_box_arithmetic(case):
    recorded = np.load(shared("parity/neco_views.npz"))
    boxes = torch.from_numpy(recorded[f"box_arithmetic/{case}/crop_bboxes"])
    large, small = (int(s) for s in recorded[f"box_arithmetic/{case}/size_crops"])
    in_global, in_view = views.intersections(boxes, [large] * 2 + [small] * 4, 2)
    assert torch.equal(in_global, torch.from_numpy(recorded[f"box_arithmetic/{case}/gc"]))
    assert torch.equal(in_view, torch.from_numpy(recorded[f"box_arithmetic/{case}/all"]))


@given(st.integers(0, 2**31), st.integers(60, 300), st.integers(60, 300))
@settings(max_examples=30, deadline=None)
def test_every_crop_overlaps_the_global_ones(seed, height, width):
    crops = [Crop(8, (0.25, 1.0), True)] * 2 + [Crop(4, (0.15, 0.25), False)] * 2
    *_, boxes = views.multi_crop(picture(height, width), crops, 0.1, seeded(seed))
    for i in range(2):
        for v in range(4):
            x = min(boxes[i, 2], boxes[v, 2]) - max(boxes[i, 0], boxes[v, 0])
            y = min(boxes[i, 3], boxes[v, 3]) - max(boxes[i, 1], boxes[v, 1])
            assert x > 0
            assert y > 0
            assert x * y > int(height * width * 0.1) * (2 if v < 2 else 1)


def test_intersections_are_the_plain_loop():
    *_, boxes = views.multi_crop(picture(120, 150), NECO, 0.01, seeded(3))
    sizes = [c.size for c in NECO]
    in_global, in_view = views.intersections(boxes, sizes, 2)
    for i in range(2):
        for v in range(6):
            a, b = boxes[i].double(), boxes[v].double()
            common = [max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])]
            for own, size, found in ((a, sizes[i], in_global[i, v]), (b, sizes[v], in_view[v, i])):
                side = [own[2] - own[0], own[3] - own[1]] * 2
                expected = [(common[k] - own[k % 2]) / side[k] * size for k in range(4)]
                torch.testing.assert_close(found.double(), torch.stack(expected), rtol=0, atol=1e-4)


def test_an_image_without_overlapping_crops_is_a_clear_error(monkeypatch):
    monkeypatch.setattr(views, "MAX_DRAWS", 50)
    with pytest.raises(UserError, match="thin strips"):
        views.multi_crop(torch.zeros(3, 1, 5000, dtype=torch.uint8), NECO, 0.01, seeded(0))


def test_crops_depend_on_the_generator_alone():
    image = picture(64, 64)
    torch.manual_seed(1)
    first = views.multi_crop(image, NECO, 0.01, seeded(4))
    after = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(after, torch.rand(1))  # the global state was not used
    second = views.multi_crop(image, NECO, 0.01, seeded(4))
    assert all(torch.equal(a, b) for a, b in zip(first[0], second[0], strict=True))
    assert torch.equal(first[1], second[1])
    assert torch.equal(first[2], second[2])
