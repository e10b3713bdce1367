"""The exact search against sorting."""

import pytest
import torch

from densewalk.ops.search import nearest_neighbors
from densewalk.ops.search.nearest_neighbors import largest, merge, nearest


@pytest.mark.parametrize("columns", [5, 30, 64, 1000, 1023, 1024, 4097])
@pytest.mark.parametrize("k", [1, 7, 30])
def test_largest_equals_topk(columns, k):
    x = torch.randn(20, columns, generator=torch.Generator().manual_seed(columns))
    expected = x.topk(min(k, columns))
    values, index = largest(x, k)
    assert torch.equal(values, expected.values)
    assert torch.equal(index, expected.indices)


@pytest.fixture(params=["compiled", "plain"])
def way(request, monkeypatch):
    """Both searches."""
    monkeypatch.setattr(nearest_neighbors, "COMPILED_FROM", 0 if request.param == "compiled" else 1 << 62)


@pytest.mark.parametrize("entries", [7, 900, 40_000])
def test_nearest_equals_sorting(way, entries):
    """40,000 entries are three tiles, 1,100 queries two blocks."""
    rng = torch.Generator().manual_seed(entries)
    memory, queries = torch.randn(entries, 8, generator=rng), torch.randn(1_100, 8, generator=rng)
    values, index = nearest(memory, queries, 30)
    order = (queries[::50] @ memory.T).argsort(dim=1, descending=True)[:, :30]
    torch.testing.assert_close(values[::50], (queries[::50] @ memory.T).gather(1, order))
    assert (index[::50] == order).float().mean() > 0.999  # a tie in float32 may fall either way


@pytest.mark.parametrize("columns", [6, 40, 1000, 4097])
@pytest.mark.parametrize("k", [1, 7, 30])
def test_of_equal_values_the_first_columns_are_taken(columns, k):
    x = torch.randint(9, (20, columns), generator=torch.Generator().manual_seed(columns)).float()
    x[0] = 3
    values, index = largest(x, k)
    for row, own_values, own_index in zip(x.tolist(), values.tolist(), index.tolist(), strict=True):
        expected = sorted(range(columns), key=lambda j, row=row: -row[j])[:k]
        assert own_index == expected
        assert own_values == [row[j] for j in expected]


@pytest.mark.parametrize("sizes", [(64, 64, 22), (64, 86), (0, 128, 0, 22)])
def test_parts_of_a_memory_merged_equal_one_search_also_where_similarities_are_equal(way, monkeypatch, sizes):
    monkeypatch.setattr(nearest_neighbors, "TILE", 64)
    rng = torch.Generator().manual_seed(0)
    memory = torch.randint(-1, 2, (150, 3), generator=rng).float()  # 27 different entries
    queries = torch.randint(-1, 2, (40, 3), generator=rng).float()
    whole = nearest(memory, queries, 30)
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    parts = [nearest(part, queries, 30) for part in memory.split(sizes)]
    merged = merge([(values, index + start) for (values, index), start in zip(parts, starts, strict=True)], 30)
    assert torch.equal(merged[0], whole[0])
    assert torch.equal(merged[1], whole[1])
    for q, own in zip(queries, whole[1].tolist(), strict=True):
        assert own == sorted(range(150), key=lambda j, q=q: -float(q @ memory[j]))[:30]


@pytest.mark.parametrize("k", [1, 30, 200, 400])
@pytest.mark.parametrize("entries", [37, 600, 3_000, 17_000])
def test_the_compiled_search_is_the_plain_one_to_the_last_bit(monkeypatch, entries, k):
    """600 entries are fewer than twice the lanes; some features occur several times; 17,000 entries are two tiles."""
    rng = torch.Generator().manual_seed(k)
    memory, queries = torch.randn(entries, 6, generator=rng), torch.randn(300, 6, generator=rng)
    memory[entries // 2 :] = memory[torch.randint(entries // 2, (entries - entries // 2,), generator=rng)]
    queries[5] = 0  # all similarities are equal
    found = []
    for least in (0, 1 << 62):
        monkeypatch.setattr(nearest_neighbors, "COMPILED_FROM", least)
        found.append(nearest(memory, queries, k))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_threads_change_nothing(monkeypatch):
    monkeypatch.setattr(nearest_neighbors, "COMPILED_FROM", 0)
    rng = torch.Generator().manual_seed(0)
    memory, queries = torch.randn(700, 6, generator=rng), torch.randn(11, 6, generator=rng)
    alone = nearest(memory, queries, 9)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert all(torch.equal(a, b) for a, b in zip(alone, nearest(memory, queries, 9), strict=True))
