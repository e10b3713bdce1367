"""Position in maps: sums against recorded values and plain loops, and the properties that follow from the definitions."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from densewalk.ops.position import (
    PlaceSums,
    RidgeSums,
    coordinates,
    fixed_code,
    position_basis,
    total_squares,
    without_mean,
    without_subspace,
)
from tests.fixtures.helpers import shared

EXACT = {"rtol": 0, "atol": 1e-9}


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def r2(fitted, held_out, ridge=1e-3):
    """R2 of y and of x, batch by batch."""
    sums = RidgeSums()
    for batch in fitted.split(2):
        sums.add(batch)
    errors = sums.fit(ridge).squared_errors(held_out).sum(0)
    return 1 - errors / (len(held_out) * total_squares(*held_out.shape[-2:]))


@pytest.mark.parametrize("case", ["0", "1"])
def test_shares_and_r2_equal_the_recorded_ones(case):
    recorded = np.load(shared("parity/eval_position.npz"))
    maps, places = torch.from_numpy(recorded[f"debias/{case}/feats"]), PlaceSums()
    for image in maps:
        places.add(image[None])
    np.testing.assert_allclose(places.shares(), [recorded[f"xray/{case}/{name}"] for name in ("eta2", "omega2")], **EXACT)
    np.testing.assert_allclose(r2(maps[:-1], maps[-1:]), recorded[f"xray/{case}/r2_y_x"], **EXACT)


@pytest.mark.parametrize(("file", "prefix"), [("eval_position", "debias/0/"), ("eval_position", "debias/1/"), ("rasa", "svd/")])
def test_debias_equals_the_released_one(file, prefix):
    recorded = np.load(shared(f"parity/{file}.npz"))
    names = (
        ("zero_image", "feats", "projector", "out")
        if file == "eval_position"
        else ("blank_features", "features", "basis_projector", "debiased")
    )
    blank, maps, projector, expected = (torch.from_numpy(recorded[prefix + name]) for name in names)
    basis = position_basis(blank, int(recorded[f"{prefix}components"]))
    torch.testing.assert_close(basis @ basis.T, projector, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(without_subspace(maps, basis), expected, rtol=1e-3, atol=1e-4)


def test_shares_and_r2_equal_plain_loops():
    maps = noise(4, 5, 2, 3) + 2 * noise(1, 5, 2, 3, seed=1)
    f = maps.double().numpy()
    b, _, h, w = f.shape
    center, between, total = f.mean((0, 2, 3)), 0.0, 0.0
    for i in range(h):
        for j in range(w):
            between += b * ((f[:, :, i, j].mean(0) - center) ** 2).sum()
            total += sum(((f[k, :, i, j] - center) ** 2).sum() for k in range(b))
    within = (total - between) / (b * h * w - h * w)
    places = PlaceSums()
    places.add(maps[:1])
    places.add(maps[1:])
    np.testing.assert_allclose(places.shares(), [between / total, (between - (h * w - 1) * within) / (total + within)], **EXACT)
    np.testing.assert_allclose(places.mean, f.mean(0), **EXACT)
    x = np.array([f[k, :, i, j] for k in range(3) for i in range(h) for j in range(w)])
    y = np.array([[-1 + 2 * i / (h - 1), -1 + 2 * j / (w - 1)] for _ in range(3) for i in range(h) for j in range(w)])
    centered = x - x.mean(0)
    weights = np.linalg.solve(centered.T @ centered + 1e-3 * len(x) * np.eye(5), centered.T @ (y - y.mean(0)))
    test, target = f[3].reshape(5, -1).T, y[: h * w]
    errors = ((target - ((test - x.mean(0)) @ weights + y.mean(0))) ** 2).sum(0)
    np.testing.assert_allclose(r2(maps[:3], maps[3:]), 1 - errors / ((target - target.mean(0)) ** 2).sum(0), **EXACT)


def test_a_position_code_is_all_position_and_noise_is_none():
    code = fixed_code(6, 6).expand(4, -1, -1, -1)
    places = PlaceSums()
    places.add(code)
    assert places.shares() == pytest.approx((1, 1))
    assert (r2(code, code[:1]) > 0.99).all()
    maps, places = noise(64, 8, 6, 6), PlaceSums()
    places.add(maps)
    eta2, omega2 = places.shares()
    assert eta2 == pytest.approx(1 / 64, rel=0.1)
    assert abs(omega2) < 2e-3
    assert (r2(maps[:48], maps[48:]) < 0.01).all()


def test_the_fixed_code_equals_the_formula():
    code = fixed_code(3, 5)
    assert code.shape == (32, 3, 5)
    y, x = 1.5 / 3, 2.5 / 5  # row 1, column 2
    expected = [f(np.pi * 2**k * place) for f in (np.sin, np.cos) for place in (y, x) for k in range(8)]
    np.testing.assert_allclose(code[:, 1, 2], expected, atol=1e-6)


def test_one_row_of_places_has_a_finite_code_and_one_image_no_share():
    assert coordinates(1, 2).tolist() == [[0, -1], [0, 1]]
    places = PlaceSums()
    places.add(noise(1, 2, 2, 2))
    assert np.isnan(places.shares()).all()


def test_a_debias_is_a_projector_and_leaves_nothing_of_what_it_spans():
    blank = noise(16, 5, 5)
    basis = position_basis(blank, 6)
    rest = torch.eye(16) - basis @ basis.T
    assert float(rest.trace()) == pytest.approx(10, abs=1e-4)
    maps = noise(2, 16, 3, 3, seed=1)
    once = without_subspace(maps, basis)
    torch.testing.assert_close(without_subspace(once, basis), once, atol=1e-5, rtol=0)
    torch.testing.assert_close(once.norm(dim=1), torch.ones(2, 3, 3))
    inside = torch.einsum("dk,bkhw->bdhw", basis, noise(2, 6, 3, 3, seed=2))
    assert not without_subspace(inside, basis).any(), "zeros, not the direction of rounding errors"
    assert without_subspace(torch.zeros(1, 16, 2, 2), basis).isfinite().all()


def test_without_its_mean_a_map_keeps_its_lengths():
    maps, mean = noise(3, 4, 2, 2), noise(4, 2, 2, seed=1)
    left = without_mean(maps, mean)
    torch.testing.assert_close(left.norm(dim=1), maps.norm(dim=1))
    torch.testing.assert_close(F.normalize(left, dim=1), F.normalize(maps - mean, dim=1))
    assert not without_mean(mean[None], mean).any()
