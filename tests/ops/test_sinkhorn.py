"""Sinkhorn-Knopp against a plain loop in float64, the released implementations' values, and inputs that used to break it."""

import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densewalk.core import distributed
from densewalk.ops.sinkhorn import NonFiniteScores, linear_sinkhorn, sinkhorn
from tests.fixtures.helpers import shared


def plain_loop(scores: np.ndarray, epsilon: float, iterations: int) -> np.ndarray:
    """The formula, entry by entry, as products of float64 numbers."""
    rows, cols = scores.shape
    x = [[math.exp((scores[r, c] - scores.max()) / epsilon) for c in range(cols)] for r in range(rows)]
    for _ in range(iterations):
        for c in range(cols):
            total = sum(x[r][c] for r in range(rows))
            for r in range(rows):
                x[r][c] *= 1 / cols / total
        for r in range(rows):
            total = sum(x[r])
            for c in range(cols):
                x[r][c] *= 1 / rows / total
    return rows * np.array(x)


@pytest.mark.parametrize(("rows", "cols", "iterations"), [(7, 3, 1), (16, 3, 30), (40, 6, 10), (1, 4, 5), (5, 1, 3)])
def test_equals_the_plain_loop(rows: int, cols: int, iterations: int) -> None:
    scores = torch.randn(rows, cols, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))
    ours = sinkhorn(scores, epsilon=0.05, iterations=iterations)
    np.testing.assert_allclose(ours, plain_loop(scores.numpy(), 0.05, iterations), rtol=1e-10, atol=1e-14)


def test_leading_indices_are_separate_problems() -> None:
    scores = torch.randn(2, 4, 9, 3, generator=torch.Generator().manual_seed(0))
    whole = sinkhorn(scores, epsilon=0.1, iterations=4)
    for i in range(2):
        for j in range(4):
            torch.testing.assert_close(whole[i, j], sinkhorn(scores[i, j], epsilon=0.1, iterations=4))


def test_columns_share_the_rows_evenly_in_the_limit() -> None:
    scores = torch.rand(60, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = sinkhorn(scores, epsilon=0.5, iterations=200)
    torch.testing.assert_close(result.sum(0), torch.full((5,), 12.0, dtype=torch.float64))
    torch.testing.assert_close(result.sum(1), torch.ones(60, dtype=torch.float64))


@pytest.mark.parametrize("case", ["small", "one"])
def test_released_dora(case: str) -> None:
    values = np.load(shared("parity/dora_step.npz"))
    scores, expected = (torch.from_numpy(values[f"sinkhorn_cases/{case}_{part}"]) for part in ("in", "out"))
    torch.testing.assert_close(sinkhorn(scores, epsilon=0.05, iterations=30), expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(linear_sinkhorn(scores, epsilon=0.05, iterations=30), expected, atol=1e-6, rtol=0)


def test_finite_where_the_released_dora_is_not() -> None:
    values = np.load(shared("parity/dora_step.npz"))
    assert np.isnan(values["sinkhorn_cases/large_out"]).all()
    scores = torch.from_numpy(values["sinkhorn_cases/large_in"])
    assert linear_sinkhorn(scores, epsilon=0.05, iterations=30).isnan().all()
    ours = sinkhorn(scores, epsilon=0.05, iterations=30)
    torch.testing.assert_close(ours.sum(-1), torch.ones(2, 196))
    torch.testing.assert_close(ours, sinkhorn(scores.double(), epsilon=0.05, iterations=30).float(), atol=1e-3, rtol=0)


def test_released_timetuning() -> None:
    values = np.load(shared("parity/timetuning_sinkhorn.npz"))
    cases = sorted({name.split("/")[0] for name in values.files})
    assert cases
    for case in cases:
        scores = torch.from_numpy(values[f"{case}/scores"])
        ours = sinkhorn(scores, epsilon=float(values[f"{case}/eps"]), iterations=int(values[f"{case}/iters"]))
        np.testing.assert_allclose(ours, values[f"{case}/q"], atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_any_finite_input_gives_finite_shares(data: st.DataObject) -> None:
    rows, cols = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
    values = data.draw(st.lists(finite, min_size=rows * cols, max_size=rows * cols))
    result = sinkhorn(torch.tensor(values).view(rows, cols), epsilon=0.05, iterations=30)
    assert torch.isfinite(result).all()
    assert (result >= 0).all()
    torch.testing.assert_close(result.sum(-1), torch.ones(rows))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(-50, 50))
def test_order_of_rows_and_columns_and_a_shift_do_not_matter(seed: int, shift: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(11, 4, dtype=torch.float64, generator=generator)
    rows, cols = torch.randperm(11, generator=generator), torch.randperm(4, generator=generator)
    result = sinkhorn(scores, epsilon=0.1, iterations=7)
    torch.testing.assert_close(sinkhorn(scores[rows][:, cols] + shift, epsilon=0.1, iterations=7), result[rows][:, cols])


def test_a_common_offset_of_all_scores_costs_no_precision() -> None:
    scores = 60 + 0.5 * torch.randn(64, 8, generator=torch.Generator().manual_seed(4))
    exact = sinkhorn(scores.double(), epsilon=0.05, iterations=10)
    torch.testing.assert_close(sinkhorn(scores, epsilon=0.05, iterations=10).double(), exact, atol=2e-6, rtol=0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_refuses_what_is_not_finite(bad: float) -> None:
    scores = torch.zeros(4, 3)
    scores[2, 1] = bad
    with pytest.raises(NonFiniteScores, match="1 of 12"):
        sinkhorn(scores, epsilon=0.05, iterations=3)


@pytest.mark.parametrize(("epsilon", "iterations"), [(0.0, 3), (-1.0, 3), (0.05, 0)])
def test_refuses_meaningless_parameters(epsilon: float, iterations: int) -> None:
    with pytest.raises(ValueError, match="Sinkhorn needs"):
        sinkhorn(torch.zeros(4, 3), epsilon=epsilon, iterations=iterations)


def test_half_precision_is_computed_in_float32() -> None:
    scores = torch.randn(8, 3, generator=torch.Generator().manual_seed(2)).bfloat16()
    result = sinkhorn(scores, epsilon=0.05, iterations=30)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, sinkhorn(scores.float(), epsilon=0.05, iterations=30))


def test_rows_shared_by_two_processes_equal_one_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(14, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    barrier, sent = threading.Barrier(2), {}

    def gathered(x: torch.Tensor) -> torch.Tensor:
        sent[threading.current_thread().name] = x.clone()
        barrier.wait(timeout=30)
        result = torch.stack([sent[name] for name in ("rank 0", "rank 1")])
        barrier.wait(timeout=30)
        return result

    monkeypatch.setattr(distributed, "gathered", gathered)
    parts: dict[str, torch.Tensor] = {}

    def work(share: torch.Tensor) -> None:
        parts[threading.current_thread().name] = sinkhorn(share, epsilon=0.1, iterations=5, across_processes=True)

    threads = [threading.Thread(target=work, args=(share,), name=f"rank {i}") for i, share in enumerate(scores.split([9, 5]))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    together = torch.cat([parts["rank 0"], parts["rank 1"]])
    torch.testing.assert_close(together, sinkhorn(scores, epsilon=0.1, iterations=5))


def test_leaves_its_input_alone() -> None:
    scores = torch.randn(8, 3, dtype=torch.float64)
    before = scores.clone()
    sinkhorn(scores, epsilon=1.0, iterations=3)
    assert torch.equal(scores, before)
