"""Exact search: 1,024 queries among a million entries against a plain search in float64, and its time."""

from collections.abc import Iterator

import torch
from benchmarks.gpu.report import Finding, Setting, seconds_of
from torch.nn import functional as F

from densewalk.ops.search.nearest_neighbors import nearest

K, DIM, CHECKED = 30, 384, 32  # neighbors, width of a ViT-S, queries that are searched in float64


def check(setting: Setting) -> Iterator[Finding]:
    """Similarities, entries, order of equal ones, seconds."""
    entries, count = (5_000, 64) if setting.small else (1_000_000, 1_024)
    memory = F.normalize(torch.randn(entries, DIM, generator=torch.Generator().manual_seed(0)), dim=1)
    memory[entries // 2 :: 1000] = memory[: len(memory[entries // 2 :: 1000])]  # equal ones: the earlier comes first
    queries = memory[torch.randint(entries, (count,), generator=torch.Generator().manual_seed(1))]
    queries = F.normalize(queries + 0.02 * torch.randn(count, DIM, generator=torch.Generator().manual_seed(2)), dim=1)
    there = memory.to(setting.device), queries.to(setting.device)
    values, index = (x[:CHECKED].cpu() for x in nearest(*there, K))
    exact = queries[:CHECKED].double() @ memory.double().T
    expected = exact.topk(K).values
    yield Finding(f"{count} x {entries:,}: similarities against float64", (values.double() - expected).abs().max().item(), at_most=1e-5)
    yield Finding("similarities of the entries it names", (exact.gather(1, index) - expected).abs().max().item(), at_most=1e-5)
    tied = values[:, 1:] == values[:, :-1]
    late = (tied & (index[:, 1:] < index[:, :-1])).sum().item()
    yield Finding("of equal similarities, later entries that come first", late, at_most=0)
    runs = (nearest(*there, K) for _ in range(2 if setting.small else 4))
    yield Finding("seconds of a search", seconds_of(setting, runs), at_most=10, slow=True)
