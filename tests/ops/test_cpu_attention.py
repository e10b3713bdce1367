"""Attention by oneDNN's products gives what the formula in matrices gives."""

import pytest
import torch
from torch.nn import functional as F

from densewalk.ops.cpu import attention as module
from densewalk.ops.cpu import linear, switch
from densewalk.ops.cpu.attention import MAX_ROWS, MIN_TOKENS, attention, self_attention
from densewalk.ops.cpu.processor import set_processor
from tests.fixtures.helpers import PROCESSORS

needed = pytest.mark.skipif(not linear.HAS_ONEDNN, reason="torch has no oneDNN here")


@pytest.fixture(autouse=True)
def full_width():
    """As on a processor where the attention here is faster; it is right on all of them."""
    set_processor(PROCESSORS["AMD, AVX-512 in full"])
    yield
    set_processor(None)


@pytest.fixture
def torchs_own(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the calls of torch's attention."""
    calls, own = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: calls.append(1) or own(q, k, v))
    return calls


def tokens(images: int, heads: int, number: int, dim: int, seed: int) -> torch.Tensor:
    """Strided as a layer of queries, keys and values gives them."""
    x = torch.randn(images, number, 2, heads, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x[:, :, 1].transpose(1, 2)


def in_matrices(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5).softmax(dim=-1) @ value


@needed
@pytest.mark.parametrize("sharpness", [1, 30])
@pytest.mark.parametrize(("queries", "keys"), [(MIN_TOKENS, MIN_TOKENS), (MAX_ROWS + 1, MAX_ROWS + 1), (2 * MAX_ROWS + 5, MIN_TOKENS + 3)])
def test_values_and_gradients_are_those_of_the_formula(queries, keys, sharpness, torchs_own):
    """With one block or several, and with shares so uneven that powers of two alone would overflow."""
    parts = [tokens(2, 3, queries, 16, 0) * sharpness, tokens(2, 3, keys, 16, 1), tokens(2, 3, keys, 16, 2)]
    down = tokens(2, 3, queries, 16, 3)
    results = []
    for function, dtype in ((in_matrices, torch.float64), (attention, torch.float32)):
        inputs = [part.to(dtype).requires_grad_() for part in parts]
        y = function(*inputs)
        results.append([y, *torch.autograd.grad(y, inputs, down.to(dtype))])
    assert not torchs_own
    for exact, ours in zip(*results, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=2e-6 * sharpness * exact.abs().max().item())


@needed
def test_scores_of_any_size_are_survived(torchs_own):
    """Exponentials are those of differences to the largest."""
    query, key, value = (tokens(1, 1, MIN_TOKENS, 8, seed).float() for seed in range(3))
    y = attention(1e6 * query, key, value)
    best = (query.double() @ key.double().transpose(-2, -1)).argmax(dim=-1)
    assert not torchs_own
    torch.testing.assert_close(y[0, 0], value[0, 0, best[0, 0]])


@needed
def test_a_gradient_of_all_three_is_one_tensor(torchs_own):
    qkv = torch.randn(2, MIN_TOKENS, 3, 3, 8).permute(2, 0, 3, 1, 4).requires_grad_()
    found = []
    for y in (attention(*qkv), self_attention(qkv)):
        found.append([y, torch.autograd.grad(y.square().sum(), qkv)[0]])
    assert not torchs_own
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert found[1][1].stride() == qkv.stride(), "so that the layer before takes it without a copy"


@needed
def test_no_matrix_is_kept():
    parts = [tokens(1, 2, MIN_TOKENS, 8, seed).float().requires_grad_() for seed in range(3)]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        y = attention(*parts)
    assert sorted(kept) == [2 * MIN_TOKENS] + [y.numel()] * 4


@pytest.mark.parametrize(
    "why", ["double", "few queries", "few keys", "autocast", "many threads", "switched off", "Intel, AVX-512", "AMD, AVX-512 by halves"]
)
def test_all_else_is_torchs_own(why, monkeypatch, torchs_own):
    monkeypatch.setattr(linear, "HAS_ONEDNN", True)
    set_processor(PROCESSORS.get(why, PROCESSORS["AMD, AVX-512 in full"]))
    monkeypatch.setattr(switch, "_enabled", why != "switched off")
    monkeypatch.setattr(module, "MAX_THREADS", 0 if why == "many threads" else 10**6)
    queries, keys = MIN_TOKENS - (why == "few queries"), MIN_TOKENS - (why == "few keys")
    dtype = torch.float64 if why == "double" else torch.float32
    query, key, value = (tokens(1, 2, number, 8, seed).to(dtype) for seed, number in enumerate((queries, keys, keys)))
    with torch.autocast("cpu", enabled=why == "autocast"):
        attention(query, key, value)
        if queries == keys:
            self_attention(torch.stack([query, key, value]))
    assert torchs_own == [1] * (1 + (queries == keys))
