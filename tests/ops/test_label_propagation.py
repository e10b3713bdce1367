"""Label propagation against the plain loop of its formula, and against the two released implementations."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from densewalk.ops import label_propagation as propagation
from densewalk.ops.label_propagation import Rule, best_sources, follow, propagate
from tests.fixtures.helpers import shared


@pytest.fixture(autouse=True, params=["compiled", "torch"])
def search(request):
    """Both ways to the best sources, whatever the size."""
    usual, propagation.COMPILED_FROM = propagation.COMPILED_FROM, 0 if request.param == "compiled" else 1 << 62
    yield request.param
    propagation.COMPILED_FROM = usual


def plain_loop(context, labels, target, rule):
    """The formula, one target of one item at a time, in float64."""
    height, width = rule.grid
    result = torch.zeros(*labels[0].shape, dtype=torch.float64)
    reach = rule.radius or max(rule.grid)
    for item, row, column in product(range(len(target)), range(height), range(width)):
        affinities, sources = [], []
        for frame, (f, s) in enumerate(product(range(len(context)), range(height * width))):
            inside = abs(s // width - row) <= reach and abs(s % width - column) <= reach
            if rule.circle and rule.radius:
                inside = (s // width - row) ** 2 + (s % width - column) ** 2 <= rule.radius**2
            dot = context[f][item, s].double() @ target[item, row * width + column].double()
            affinities.append(math.exp(dot / rule.temperature) if inside else 0.0)
            sources.append((f, s))
            assert frame == f * height * width + s
        threshold = sorted(affinities)[-rule.top_k]
        kept = [(a, f, s) for a, (f, s) in zip(affinities, sources, strict=True) if a >= threshold]
        mixture = sum(a * labels[f][item, :, s].double() for a, f, s in kept) / sum(a for a, _, _ in kept)
        result[item, :, row * width + column] = mixture
    return result


def random_problem(rule, *, batch=2, frames=3, classes=3, dim=8, seed=0, tied=False):
    """Features and labels. `tied`: small integers, so that equal similarities are frequent and exact."""
    generator = torch.Generator().manual_seed(seed)
    patches = rule.grid[0] * rule.grid[1]
    shape = (frames + 1, batch, patches, dim)
    features = (
        torch.randint(-1, 2, shape, generator=generator).float() / 4
        if tied
        else F.normalize(torch.randn(shape, generator=generator), dim=-1)
    )
    labels = torch.rand(frames, batch, classes, patches, generator=generator)
    return list(features[:-1]), list(labels), features[-1]


@settings(max_examples=25, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 5), st.integers(1, 6)),
    radius=st.none() | st.integers(0, 4),
    top_k=st.integers(1, 4),
    frames=st.integers(1, 3),
    tied=st.booleans(),
    circle=st.booleans(),
    seed=st.integers(0, 9),
)
def test_equals_the_plain_loop(grid, radius, top_k, frames, tied, circle, seed):
    rule = Rule(grid, radius, min(top_k, frames * grid[0] * grid[1]), context=7, temperature=0.2, circle=circle)
    context, labels, target = random_problem(rule, frames=frames, seed=seed, tied=tied)
    assert torch.allclose(propagate(context, labels, target, rule).double(), plain_loop(context, labels, target, rule), atol=2e-6)


def test_tiles_and_split_batches_change_nothing(monkeypatch):
    rule = Rule((7, 8), radius=1, top_k=3, context=7)
    context, labels, target = random_problem(rule, batch=3)
    whole = propagate(context, labels, target, rule)
    monkeypatch.setattr(propagation, "TILE", (2, 3))
    monkeypatch.setattr(propagation, "BLOCK", 1)
    monkeypatch.setattr(propagation, "BUDGET", 1)
    assert torch.allclose(propagate(context, labels, target, rule), whole, atol=1e-6)
    assert torch.allclose(whole.double(), plain_loop(context, labels, target, rule), atol=2e-6)


def test_a_constant_picture_averages_its_window():
    """Every similarity ties: far more sources than top_k must be kept, and those outside the window must not."""
    rule = Rule((6, 7), radius=1, top_k=2, context=7)
    context, labels, target = random_problem(rule)
    flat = torch.ones_like(target) / 3
    result = propagate([flat for _ in context], labels, flat, rule)
    corner = torch.stack(labels)[:, :, :, [0, 1, 7, 8]].mean(dim=(0, 3))
    assert torch.allclose(result[..., 0], corner, atol=1e-6)


def test_best_sources_are_numbered_frame_after_frame():
    rule = Rule((4, 5), radius=1, top_k=2, context=7)
    context, _, target = random_problem(rule, batch=1)
    similarity, source = best_sources(context, target, rule)
    assert similarity.shape == (1, 20, 4)
    everything = torch.cat([target[0] @ f[0].T for f in context], dim=1)
    assert torch.allclose(everything.gather(1, source[0]), similarity[0], atol=1e-6)
    assert (similarity.diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("circle", [False, True])
def test_the_compiled_search_finds_what_torch_finds(circle, search):
    """In several tiles; of equal similarities it takes those of earlier sources, which torch's does not promise."""
    rule = Rule((23, 29), radius=4, top_k=3, context=7, circle=circle)
    for tied in (False, True):
        context, _, target = random_problem(rule, dim=16, tied=tied)
        similarity, source = best_sources(context, target, rule)
        for item, row in ((0, 0), (0, 11 * 29 + 14), (1, 23 * 29 - 1)):
            row_distance, column_distance = (abs(torch.arange(23 * 29) // 29 - row // 29), abs(torch.arange(23 * 29) % 29 - row % 29))
            inside = row_distance**2 + column_distance**2 <= 16 if circle else torch.maximum(row_distance, column_distance) <= 4
            all_pairs = torch.cat([(f[item] @ target[item, row]).masked_fill(~inside, -math.inf) for f in context])
            values, order = all_pairs.sort(descending=True, stable=True)
            torch.testing.assert_close(similarity[item, row], values[:6], rtol=1e-5, atol=1e-6)
            if not tied or search == "compiled":
                assert source[item, row].tolist() == order[:6].tolist()


def test_windows_smaller_than_top_k_keep_what_there_is():
    rule = Rule((3, 3), radius=1, top_k=12, context=7)
    context, labels, target = random_problem(rule, frames=2)
    assert torch.allclose(propagate(context, labels, target, rule).double(), plain_loop(context, labels, target, rule), atol=2e-6)


@pytest.mark.parametrize("grid", [(3, 4), (30, 27)])
def test_radius_zero_is_no_window_as_in_the_releases(grid):
    """Their code restricts a target's window only where its size is above 0."""
    context, labels, target = random_problem(Rule(grid, None, 5, 7), frames=2)
    zero, none, one = (propagate(context, labels, target, Rule(grid, radius, 5, 7)) for radius in (0, None, 1))
    assert torch.equal(zero, none)
    assert not torch.equal(zero, one)


@pytest.mark.parametrize(("grid", "radius", "top_k"), [((34, 1), 2, 7), ((40, 3), 2, 20), ((30, 12), 3, 60)])
def test_tiles_at_the_border_may_have_fewer_sources_than_are_kept(grid, radius, top_k):
    rule = Rule(grid, radius=radius, top_k=top_k, context=7)
    context, labels, target = random_problem(rule, batch=1, frames=1)
    torch.testing.assert_close(
        propagate(context, labels, target, rule).double(), plain_loop(context, labels, target, rule), atol=1e-5, rtol=0
    )


def test_follow_remembers_the_first_and_the_last_frames():
    rule = Rule((4, 4), radius=2, top_k=3, context=2)
    frames = [3 * x for x in random_problem(rule, frames=5)[0]]  # not normalized
    first = random_problem(rule)[1][0]
    unit = [F.normalize(f, dim=-1) for f in frames]
    labels = [first]
    for t in range(1, 5):
        context = [0, *range(max(1, t - 2), t)]
        labels.append(propagate([unit[c] for c in context], [labels[c] for c in context], unit[t], rule))
    assert torch.equal(torch.stack(list(follow(frames, first, rule))), torch.stack(labels[1:]))


def test_labels_stay_distributions_and_keep_their_type():
    rule = Rule((7, 5), radius=2, top_k=5, context=7)
    context, labels, target = random_problem(rule)
    result = propagate(context, [s.double().softmax(dim=1) for s in labels], target, rule)
    assert result.dtype == torch.float64
    assert torch.allclose(result.sum(dim=1), torch.ones(2, 35, dtype=torch.float64), atol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Notes the size of the largest tensor that any operation returns."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.largest = max(self.largest, tensor.numel())
        return result


def test_memory_grows_with_the_window_not_with_the_square_of_the_grid():
    rule = Rule((60, 104), radius=12, top_k=5, context=7)
    context, labels, target = random_problem(rule, batch=1, frames=8, dim=4)
    with LargestTensor() as seen:
        propagate(context, labels, target, rule)
    assert seen.largest < 8 * 6240 * 6240 / 100


@pytest.mark.parametrize("case", ["p0", "p1", "p2"])
def test_parity_with_dino(case):
    values = np.load(shared("parity/davis_propagation.npz"))
    height, width, radius, top_k = values[f"{case}/hwrk"].tolist()
    features = F.normalize(torch.from_numpy(values[f"{case}/feats"]), dim=-1)[:, None]
    labels = torch.from_numpy(values[f"{case}/segs"]).flatten(2)[:, None]
    expected = torch.from_numpy(values[f"{case}/out"])
    result = propagate(list(features[:-1]), list(labels), features[-1], Rule((height, width), radius, top_k, 7))[0].view_as(expected)
    assert torch.allclose(result, expected, atol=2e-5, rtol=0)
    assert torch.equal(result.argmax(0), expected.argmax(0))


def test_parity_with_time_tuning():
    values = np.load(shared("parity/timetuning_propagation.npz"))
    rule = Rule((14, 14), *(int(values[f"0/{n}"]) for n in ("size_mask_neighborhood", "topk", "n_last_frames")))
    frames = torch.from_numpy(values["0/features"])[:, None]
    result = torch.cat(list(follow(frames, torch.from_numpy(values["0/q"]).T[None], rule)))
    expected = torch.from_numpy(values["0/propagated"]).flatten(2)
    assert torch.allclose(result.double(), expected, atol=1e-6, rtol=0)
    assert torch.equal(result.argmax(1), expected.argmax(1))
