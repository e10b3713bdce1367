"""The exact search against sorting."""

import pytest
import torch

from densewalk.ops.nearest_neighbors import largest, nearest


@pytest.mark.parametrize("columns", [5, 30, 64, 1000, 1023, 1024, 4097])
@pytest.mark.parametrize("k", [1, 7, 30])
def test_largest_equals_topk(columns, k):
    x = torch.randn(20, columns, generator=torch.Generator().manual_seed(columns))
    expected = x.topk(min(k, columns))
    values, index = largest(x, k)
    assert torch.equal(values, expected.values)
    assert torch.equal(index, expected.indices)


@pytest.mark.parametrize("entries", [7, 900, 40_000])
def test_nearest_equals_sorting(entries):
    """40,000 entries are three tiles, 1,100 queries two blocks."""
    rng = torch.Generator().manual_seed(entries)
    memory, queries = torch.randn(entries, 8, generator=rng), torch.randn(1_100, 8, generator=rng)
    values, index = nearest(memory, queries, 30)
    order = (queries[::50] @ memory.T).argsort(dim=1, descending=True)[:, :30]
    torch.testing.assert_close(values[::50], (queries[::50] @ memory.T).gather(1, order))
    assert (index[::50] == order).float().mean() > 0.999  # a tie in float32 may fall either way
