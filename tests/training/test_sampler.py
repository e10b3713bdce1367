"""Pixels brought to the device ahead of time: the same batches in the same order."""

import pytest
import torch

from densewalk.training.sampler import pixels_ahead
from tests.fixtures.helpers import require_cuda
from tests.fixtures.toy import Toy


def batches():
    return [{"crops": torch.full((2, 3, 4, 4), i, dtype=torch.uint8), "rows": [torch.full((2, 5), float(i))]} for i in range(4)]


def test_on_a_cpu_batches_are_passed_on_one_at_a_time():
    given, asked = batches(), []

    def reading():
        for i, batch in enumerate(given):
            asked.append(i)
            yield batch

    for i, batch in enumerate(pixels_ahead(reading(), torch.device("cpu"))):
        assert batch is given[i]
        assert asked == list(range(i + 1)), "no batch is read before it is needed"


@pytest.mark.gpu
def test_on_a_gpu_only_pixels_are_moved_and_none_is_lost():
    found = list(pixels_ahead(batches(), require_cuda()))
    assert len(found) == 4
    for given, batch in zip(batches(), found, strict=True):
        assert batch["crops"].is_cuda
        assert torch.equal(batch["crops"].cpu(), given["crops"])
        assert not batch["rows"][0].is_cuda
        assert torch.equal(batch["rows"][0], given["rows"][0])


def test_a_method_that_says_nothing_gets_its_batch_as_it_is():
    batch = (torch.rand(2, 3), [torch.arange(2)])
    images, (index,) = Toy(1).prepare(batch, torch.device("cpu"))
    assert torch.equal(images, batch[0])
    assert torch.equal(index, batch[1][0])
