"""The sort loss against a plain loop in float64, the matrix formula, the release's numbers and itself on other back ends."""

import importlib.util
import json
import logging
import math
import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks import matrix_sort
from hypothesis import given, settings
from hypothesis import strategies as st

from densewalk.ops.soft_sort import loss as sorting
from densewalk.ops.soft_sort.loss import sort_losses
from densewalk.ops.soft_sort.networks import SWAPS, network
from tests.fixtures.helpers import shared

KINDS = ("bitonic", "odd_even")
BACKENDS = [
    "torch",
    pytest.param("numba", marks=pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")),
]


def some_scores(rows: int, n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Student's and teacher's scores like those of a run: cosines that mostly agree."""
    g = torch.Generator().manual_seed(seed)
    student = 0.15 * torch.randn(rows, n, generator=g, dtype=torch.float64)
    return student.to(dtype), (student + 0.05 * torch.randn(rows, n, generator=g, dtype=torch.float64)).to(dtype)


def loss_of(student, teacher, kind="bitonic", steepness=(100.0, 100.0), **options):
    net = network(kind, student.shape[1])
    return sort_losses(student, teacher, network=net, student_steepness=steepness[0], teacher_steepness=steepness[1], **options).mean()


def loss_and_gradient(student, teacher, **options):
    student = student.clone().requires_grad_()
    loss = loss_of(student, teacher, **options)
    return loss.detach(), torch.autograd.grad(loss, student)[0]


# -- oracle: the formula, one row, one comparator, one entry at a time -------------------------------------------------


def plain_share(relaxation: str, y: float) -> float:
    """The share that stays, alpha, of y = steepness (x_b - x_a)."""
    if relaxation == "cauchy":
        return math.atan(y) / math.pi + 0.5
    if relaxation == "logistic":
        return 1 / (1 + math.exp(-y))
    if relaxation == "gaussian":
        return 0.5 * (1 + math.erf(y / math.sqrt(2)))
    if relaxation == "reciprocal":
        return 0.5 * (y / (2 + abs(y)) + 1)
    return y + 0.5 if abs(y) <= 0.25 else (1 - 1 / (16 * y) if y > 0 else -1 / (16 * y))


def plain_sort(x: list[float], kind: str, steepness: float, relaxation: str) -> np.ndarray:
    """P[input, position] of one row."""
    n, x = len(x), list(x)
    p = np.eye(n)
    for layer in matrix_sort.odd_even(n) if kind == "odd_even" else matrix_sort.bitonic(n):
        for a, b in layer:
            alpha = plain_share(relaxation, steepness * (x[b] - x[a]))
            x[a], x[b] = alpha * x[a] + (1 - alpha) * x[b], (1 - alpha) * x[a] + alpha * x[b]
            for i in range(n):
                p[i, a], p[i, b] = alpha * p[i, a] + (1 - alpha) * p[i, b], (1 - alpha) * p[i, a] + alpha * p[i, b]
    return p


@pytest.mark.parametrize("relaxation", SWAPS)
@pytest.mark.parametrize(("kind", "n"), [("bitonic", 5), ("bitonic", 8), ("odd_even", 6), ("bitonic", 11)])
def test_the_loss_is_the_plain_loops(kind, n, relaxation):
    student, teacher = some_scores(3, n, dtype=torch.float64)
    found = loss_of(student, teacher, kind=kind, steepness=(10.0, 30.0), relaxation=relaxation)
    expected = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = plain_sort(s, kind, 10.0, relaxation), plain_sort(t, kind, 30.0, relaxation)
        expected -= sum(q[i, k] * math.log(max(p[i, k], 1e-30)) for i in range(n) for k in range(n)) / n / 3
    assert found.item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("relaxation", SWAPS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind, relaxation):
    student, teacher = some_scores(2, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: loss_of(s, teacher, kind, (7.0, 20.0), relaxation=relaxation), student.requires_grad_())


# -- networks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [*range(1, 12), 16, 33, 49])
def test_networks_sort(kind, n):
    net = network(kind, n)
    inputs = range(2**n) if n < 12 else np.random.default_rng(0).integers(0, 2**n, 300, dtype=np.uint64)
    bits = np.array([[int(i) >> k & 1 for k in range(n)] for i in inputs])  # zero-one principle: who sorts bits sorts anything
    wires = bits[:, ::-1].T.copy() if net.reverse else bits.T.copy()
    for (a, b, *_), sign in zip(net.wiring, net.signs, strict=True):
        small, large = np.minimum(wires[a], wires[b]), np.maximum(wires[a], wires[b])
        wires[a], wires[b] = (small, large) if sign > 0 else (large, small)
    assert (np.diff(wires[::-1] if net.reverse else wires, axis=0) >= 0).all()


def test_the_networks_of_49_scores_have_the_published_sizes():
    assert (len(network("bitonic", 49).layers), network("bitonic", 49).comparators) == (21, 483)
    assert (len(network("odd_even", 49).layers), network("odd_even", 49).comparators) == (49, 1176)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_lies_outside_the_reach(kind):
    net = network(kind, 21)
    reached = np.eye(21)
    for a, b, begin, end in net.wiring:
        reached[a] = reached[b] = reached[a] + reached[b]
        inside = np.zeros(21, dtype=bool)
        inside[begin:end] = True
        assert not reached[a][~inside].any()
        assert reached[a][begin] > 0
        assert reached[a][end - 1] > 0


# -- relaxations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("relaxation", SWAPS)
def test_a_share_is_a_falling_probability(relaxation):
    y = torch.arange(-300, 301, dtype=torch.float64) / 10
    share = SWAPS[relaxation](y)
    torch.testing.assert_close(share + share.flip(0), torch.ones_like(share))
    assert share[300] == 0.5
    assert (share.diff() <= 0).all()
    assert share[0] > 0.93
    for value, s in zip(y[::50].tolist(), share[::50].tolist(), strict=True):
        assert 1 - s == pytest.approx(plain_share(relaxation, value), abs=1e-12)


# -- back ends ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", range(13))
def test_the_releases_numbers(case, backend):
    with np.load(shared("parity/neco_sort.npz")) as file:
        at = {k: file[f"{case}/{k}"] for k in ("kind", "S", "T", "steep_s", "steep_t", "loss", "dS")}
    steepness = (float(at["steep_s"]), float(at["steep_t"]))
    student, teacher = torch.from_numpy(at["S"]), torch.from_numpy(at["T"])
    loss, gradient = loss_and_gradient(student, teacher, kind=str(at["kind"]), steepness=steepness, backend=backend)
    assert loss.item() == pytest.approx(float(at["loss"]), abs=1e-5)
    expected = torch.from_numpy(at["dS"])
    assert (gradient - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("case", range(13))
def test_the_benchmark_s_opponent_equals_the_release(case):
    with np.load(shared("parity/neco_sort.npz")) as file:
        at = {k: file[f"{case}/{k}"] for k in ("kind", "S", "T", "steep_s", "steep_t", "P", "Q", "sorted_s", "sorted_t")}
    for scores, steepness, p, ordered in (("S", "steep_s", "P", "sorted_s"), ("T", "steep_t", "Q", "sorted_t")):
        found = matrix_sort.relaxed_sort(torch.from_numpy(at[scores]).double(), str(at["kind"]), float(at[steepness]))
        for mine, theirs in zip(found, (at[p], at[ordered]), strict=True):
            np.testing.assert_allclose(mine.numpy(), theirs, atol=5e-5)  # theirs is float32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_matrix_formula(kind, backend):
    student, teacher = some_scores(20, 49)
    p, _ = matrix_sort.relaxed_sort(student[:1].double(), kind, 100.0)
    np.testing.assert_allclose(p[0].numpy(), plain_sort(student[0].tolist(), kind, 100.0, "cauchy"), atol=1e-9)
    wide = student.double().requires_grad_()
    expected = matrix_sort.sort_loss(wide, teacher.double(), kind, 100.0, 100.0)
    (expected_gradient,) = torch.autograd.grad(expected, wide)
    loss, gradient = loss_and_gradient(student, teacher, kind=kind, backend=backend)
    assert loss.item() == pytest.approx(expected.item(), abs=2e-6)
    assert (gradient - expected_gradient).norm() < 2e-5 * expected_gradient.norm()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("relaxation", SWAPS)
@pytest.mark.parametrize(("kind", "n"), [("bitonic", 1), ("bitonic", 2), ("odd_even", 3), ("bitonic", 49), ("odd_even", 50)])
def test_back_ends_agree_with_float64(kind, n, relaxation, backend):
    student, teacher = some_scores(4, n)
    options = {"kind": kind, "steepness": (10.0, 15.0), "relaxation": relaxation}
    loss, gradient = loss_and_gradient(student, teacher, backend=backend, **options)
    expected, expected_gradient = loss_and_gradient(student.double(), teacher.double(), **options)
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=2e-6 * max(1e-9, expected_gradient.abs().max()))


INTERPRETED = """
import json, torch
from densewalk.ops.soft_sort import loss as sorting
from densewalk.ops.soft_sort import triton_kernel as sorting_triton
from densewalk.ops.soft_sort.networks import network
torch.set_num_threads(1)
sorting_triton.PROGRAMS = 2  # fewer than the rows
found = []
for kind, n, rows in (("bitonic", 5, 5), ("odd_even", 6, 2), ("bitonic", 17, 1)):
    g = torch.Generator().manual_seed(n)
    student, teacher = 15 * torch.randn(2, rows, n, generator=g)
    comparators = network(kind, n)
    loss, gradient = sorting_triton.score_rows(comparators, "cauchy", student, teacher, True)
    expected, expected_gradient = sorting.score_rows(comparators, "cauchy", student, teacher, True)
    alone, none = sorting_triton.score_rows(comparators, "cauchy", student, teacher, False)
    found.append([(x - y).abs().max().item() for x, y in ((loss, expected), (gradient, expected_gradient), (alone, expected))])
    assert none is None
print(json.dumps(found))
"""


@pytest.mark.slow
def test_triton_agrees_in_its_interpreter():
    pytest.importorskip("triton")
    source = Path(sorting.__file__).parents[3]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(source)}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for differences in json.loads(done.stdout.splitlines()[-1]):
        assert max(differences) < 1e-6


def test_without_numba_torch_takes_over_and_says_so(monkeypatch, caplog):
    student, teacher = some_scores(3, 5)
    sorting._scorer.cache_clear()
    monkeypatch.setattr(sorting.importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.INFO, "densewalk"):
        first, second = loss_of(student, teacher), loss_of(student, teacher)
    sorting._scorer.cache_clear()
    assert torch.equal(first, loss_of(student, teacher, backend="torch"))
    assert torch.equal(first, second)
    assert [record.message for record in caplog.records].count("numba is not installed: the sort loss runs in plain torch") == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_and_chunks_change_nothing(backend):
    student, teacher = some_scores(1500, 9)
    one = loss_and_gradient(student, teacher, backend=backend)
    rows = sort_losses(student, teacher, network=network("bitonic", 9), student_steepness=100.0, teacher_steepness=100.0, backend=backend)
    torch.testing.assert_close(rows.mean(), one[0])
    torch.testing.assert_close(rows[1300:1310].mean(), loss_of(student[1300:1310], teacher[1300:1310], backend=backend))
    torch.set_num_threads(3)
    try:
        torch.testing.assert_close(loss_and_gradient(student, teacher, backend=backend), one)
    finally:
        torch.set_num_threads(1)


# -- precision and memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype, backend):
    student, teacher = some_scores(6, 49, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradient = loss_and_gradient(student, teacher, backend=backend)
    expected, expected_gradient = loss_and_gradient(student.float(), teacher.float(), backend=backend)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    torch.testing.assert_close(gradient, expected_gradient.to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_underflowing_sort_is_finite(backend):
    student, teacher = some_scores(64, 49)
    student, teacher = 3 * student, 3 * teacher.flip(1)
    p, _ = matrix_sort.relaxed_sort(student, "odd_even", 5000.0)
    assert (p == 0).any(), "the matrix formula's logarithm is infinite here"
    loss, gradient = loss_and_gradient(student, teacher, kind="odd_even", steepness=(5000.0, 5000.0), backend=backend)
    assert loss.isfinite()
    assert loss < -math.log(1e-30)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_the_scores_gradient_is_kept(backend):
    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor
            saved.append(weakref.ref(self))

    saved: list[weakref.ref[Saved]] = []
    student, teacher = some_scores(300, 49)
    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda x: x.tensor):
        loss = loss_of(student.requires_grad_(), teacher, backend=backend)
    assert [ref().tensor.numel() for ref in saved if ref() is not None] == [300 * 49]
    assert loss.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_loss_alone_is_the_same(backend):
    student, teacher = some_scores(10, 16)
    loss, _ = loss_and_gradient(student, teacher, backend=backend)
    torch.testing.assert_close(loss_of(student, teacher, backend=backend), loss)


# -- properties --------------------------------------------------------------------------------------------------------


@given(st.integers(2, 20), st.sampled_from(KINDS), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_equal_orders_are_the_minimum(n, kind, seed):
    scores, other = some_scores(2, n, seed, torch.float64)
    loss, gradient = loss_and_gradient(scores, scores, kind=kind)
    assert gradient.abs().max() < 1e-9
    assert loss <= loss_of(other, scores, kind=kind) + 1e-12


@given(st.integers(2, 20), st.sampled_from(KINDS), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_shifting_all_scores_changes_nothing(n, kind, seed):
    student, teacher = some_scores(2, n, seed, torch.float64)
    loss, gradient = loss_and_gradient(student, teacher, kind=kind)
    torch.testing.assert_close(loss_of(student + 0.3, teacher - 2.0, kind=kind), loss)
    assert gradient.sum(dim=1).abs().max() < 1e-9


def test_uninformative_scores_cost_the_logarithm_of_their_number():
    equal = torch.zeros(2, 16)
    assert loss_of(equal, equal).item() == pytest.approx(math.log(16), abs=0.2)


def test_the_wrong_number_of_scores_is_refused():
    with pytest.raises(ValueError, match="a network of 5 wires cannot sort 6 scores"):
        sort_losses(torch.zeros(2, 6), torch.zeros(2, 6), network=network("bitonic", 5), student_steepness=1.0, teacher_steepness=1.0)
