"""Shared features: a hit is what a miss was, and nothing else is ever hit."""

import os

import pytest
import torch
from torch.nn import functional as F

from densewalk.models.feature_cache import FeatureCache, read_entry


class Counting:
    """A backbone that counts its calls."""

    def __init__(self, factor=1.0):
        self.calls, self.factor = 0, factor

    def __call__(self, images):
        self.calls += 1
        return self.factor * F.avg_pool2d(images, 4)


def pictures(seed=0, size=16):
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_a_hit_is_bit_for_bit_a_miss(tmp_path):
    cache, dense = FeatureCache(tmp_path, 2**20), Counting()
    first = cache.wrap(dense, "a")(pictures())
    again = cache.wrap(dense, "a")(pictures())
    assert dense.calls == 1
    assert torch.equal(first, again)
    assert torch.equal(first, F.avg_pool2d(pictures(), 4))


@pytest.mark.parametrize("images", [pictures(1), pictures(size=32), pictures() * 1.001, pictures().flip(0), pictures()[:1]])
def test_other_images_sizes_normalizations_and_batches_miss(tmp_path, images):
    cache, dense = FeatureCache(tmp_path, 2**20), Counting()
    cache.wrap(dense, "a")(pictures())
    assert torch.equal(cache.wrap(dense, "a")(images), F.avg_pool2d(images, 4))
    assert dense.calls == 2


def test_another_backbone_misses(tmp_path):
    cache, other = FeatureCache(tmp_path, 2**20), Counting(2.0)
    cache.wrap(Counting(), "a")(pictures())
    assert torch.equal(cache.wrap(other, "b")(pictures()), 2 * F.avg_pool2d(pictures(), 4))


def test_another_number_of_threads_misses(tmp_path):
    """The order in which sums are taken changes the last bits."""
    cache, before = FeatureCache(tmp_path, 2**20), torch.get_num_threads()
    one = cache.path(pictures(), "a")
    torch.set_num_threads(before + 1)
    try:
        assert cache.path(pictures(), "a") != one
    finally:
        torch.set_num_threads(before)


def test_the_same_shape_in_other_order_of_pixels_misses(tmp_path):
    cache = FeatureCache(tmp_path, 2**20)
    flat = torch.arange(2 * 3 * 4 * 16.0)
    assert cache.path(flat.view(2, 3, 4, 16), "a") != cache.path(flat.view(2, 3, 16, 4), "a")


def entries(folder):
    return sorted(folder.glob("??/*.safetensors"))


def test_the_limit_removes_what_was_not_used_for_longest(tmp_path):
    dense = Counting()
    FeatureCache(tmp_path, 2**20).wrap(dense, "a")(pictures(0))
    size = entries(tmp_path)[0].stat().st_size
    cache = FeatureCache(tmp_path, 2 * size)
    cached = cache.wrap(dense, "a")
    cached(pictures(1))
    for age, seed in enumerate((0, 1)):  # explicit ages: file systems keep coarse times
        path = cache.path(pictures(seed), "a")
        os.utime(path, (1000 + age, 1000 + age))
    cached(pictures(0))  # a hit makes it the newer one
    cached(pictures(2))
    assert sum(path.stat().st_size for path in entries(tmp_path)) <= cache.limit
    assert cache.path(pictures(0), "a").exists()
    assert not cache.path(pictures(1), "a").exists()


def test_a_limit_of_nothing_keeps_nothing(tmp_path):
    dense = Counting()
    for limit in (0, 10):
        for _ in range(2):
            FeatureCache(tmp_path, limit).wrap(dense, "a")(pictures())
    assert dense.calls == 4
    assert not entries(tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "one bit", "empty", "another format"])
def test_a_damaged_entry_is_computed_again(tmp_path, caplog, damage):
    cache, dense = FeatureCache(tmp_path, 2**20), Counting()
    expected = cache.wrap(dense, "a")(pictures())
    (path,) = entries(tmp_path)
    content = bytearray(path.read_bytes())
    content[-5] ^= 16
    path.write_bytes({"truncated": content[:-40], "one bit": content, "empty": b"", "another format": b"x" * 200}[damage])
    assert read_entry(path) is None
    assert "is damaged" in caplog.text
    assert torch.equal(cache.wrap(dense, "a")(pictures()), expected)
    assert dense.calls == 2
    assert torch.equal(cache.wrap(dense, "a")(pictures()), expected)
    assert dense.calls == 2


def test_features_that_are_no_numbers_are_not_kept(tmp_path):
    FeatureCache(tmp_path, 2**20).wrap(lambda images: images * torch.nan, "a")(pictures())
    assert not entries(tmp_path)


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    dense = Counting()
    assert torch.equal(FeatureCache(tmp_path / "file" / "cache", 2**20).wrap(dense, "a")(pictures()), F.avg_pool2d(pictures(), 4))
    assert "not kept" in caplog.text


def test_what_nobody_will_read_is_not_written_but_found(tmp_path):
    cache, dense = FeatureCache(tmp_path, 2**20), Counting()
    cache.wrap(dense, "a", keep=False)(pictures())
    assert not entries(tmp_path)
    cache.wrap(dense, "a")(pictures())
    cache.wrap(dense, "a", keep=False)(pictures())
    assert dense.calls == 2
