"""RASA against recorded values, a loop of Gram-Schmidt, and what follows from the definition."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.utils.data import Dataset

from densewalk.core.errors import UserError
from densewalk.methods.rasa.augmentation import TurnedCrops
from densewalk.methods.rasa.method import Rasa
from densewalk.methods.rasa.planes import orthonormal_rows, place_targets, removal_matrix, round_loss
from densewalk.methods.rasa.settings import RasaSettings
from densewalk.models.export import export_backbone
from densewalk.models.loading import create, load
from densewalk.models.timm_models import named_architecture
from densewalk.training.optimizer import make_optimizer, set_schedules
from densewalk.training.sampler import Item
from densewalk.training.schedules import cosine
from tests.fixtures.helpers import shared


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small(**changes):
    return RasaSettings(**{"rounds": 3, "steps": 6, "size": 64, "batch_size": 2, **changes})


def method(**changes):
    torch.manual_seed(0)
    settings = small(**changes)
    return Rasa(settings, create("vit_nano_patch16", seed=1).eval(), settings.steps, 1, seed=0)


def train(rasa, steps):
    optimizer, batch = make_optimizer(rasa), noise(2, 3, 64, 64)
    for step in steps:
        set_schedules(optimizer, step)
        optimizer.zero_grad(set_to_none=True)
        loss, _ = rasa.step(batch, step, torch.Generator())
        loss.backward()
        rasa.after_backward(step)
        optimizer.step()
    return rasa


@pytest.fixture(scope="module")
def recorded():
    return {name: torch.from_numpy(array) for name, array in np.load(shared("parity/rasa.npz")).items()}


def test_planes_equal_the_recorded_ones(recorded):
    features, weights = recorded["features"], [recorded[f"rounds/{t}/weight"] for t in range(4)]
    for t in range(4):
        matrix = removal_matrix(weights[: t + 1], 12, orthogonal=False).float()
        torch.testing.assert_close(features @ matrix.T, recorded[f"rounds/{t}/left"], atol=1e-5, rtol=1e-5)
        before = removal_matrix(weights[:t], 12, orthogonal=False).float()
        rows = orthonormal_rows(weights[t]).float()
        torch.testing.assert_close(features @ before.T @ rows.T @ rows, recorded[f"rounds/{t}/positional"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features @ matrix.T, recorded["all"], atol=1e-5, rtol=1e-5)
    alone = orthonormal_rows(recorded["one_dimensional/weight"]).float()
    torch.testing.assert_close(features - features @ alone.T @ alone, recorded["one_dimensional/left"], atol=1e-5, rtol=1e-5)


def test_the_training_of_a_round_equals_the_recorded_one(recorded):
    steps, lr = int(recorded["training/steps"]), float(recorded["training/lr"])
    weight = torch.nn.Parameter(recorded["training/weight_before"].clone())
    targets = place_targets(5, 5)
    torch.testing.assert_close(targets.expand(3, -1, -1), recorded["target"], atol=1e-6, rtol=0)
    optimizer, losses = torch.optim.AdamW([weight], lr, weight_decay=0), []
    for step, rate in enumerate(cosine(lr, 0.0, steps)):
        optimizer.param_groups[0]["lr"] = float(rate)
        loss = round_loss(weight, recorded["before_last"], targets)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            torch.testing.assert_close(weight.grad, recorded["training/grad_first"], atol=1e-6, rtol=1e-4)
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(losses, recorded["training/losses"], rtol=1e-5)
    torch.testing.assert_close(weight.data, recorded["training/weight_after"], atol=1e-4, rtol=0)


def test_orthogonal_planes_are_one_projector_and_the_released_ones_are_none():
    weights = [noise(2, 12, seed=t) for t in range(3)]
    matrix = removal_matrix(weights, 12, orthogonal=True)
    torch.testing.assert_close(matrix @ matrix, matrix, atol=1e-12, rtol=0)
    assert float(matrix.trace()) == pytest.approx(12 - 6)
    released = removal_matrix(weights, 12, orthogonal=False)
    assert float((released @ released - released).abs().max()) > 1e-2
    rotation = torch.linalg.qr(noise(12, 12, seed=9).double()).Q
    turned = removal_matrix([w.double() @ rotation.T for w in weights], 12, orthogonal=True)
    torch.testing.assert_close(turned, rotation @ matrix @ rotation.T, atol=1e-10, rtol=0)


def test_a_refit_on_what_is_left_of_a_plane_predicts_no_better_than_a_constant():
    """Tokens that are a place's row and column in two directions, and noise in others."""
    targets = place_targets(6, 6)
    features = torch.cat([(targets - 0.5) * 8, noise(36, 6)], dim=1)[None].double()
    exact = torch.zeros(2, 8, dtype=torch.float64)
    exact[0, 0] = exact[1, 1] = 1.0
    before = float(round_loss(exact, features, targets))
    left = features @ removal_matrix([exact], 8, orthogonal=True).T
    constant = (6 + 1) / (12 * (6 - 1))
    assert before < 0.2 * constant
    assert float(round_loss(exact, left, targets)) == pytest.approx(constant, rel=1e-6)


def test_only_a_round_s_own_directions_learn_and_the_rates_are_a_cosine_each():
    rasa = method()
    groups = rasa.param_groups()
    lr = 2e-3
    assert [g.lr.tolist() for g in groups] == [[lr, lr / 2, 0, 0, 0, 0], [0, 0, lr, lr / 2, 0, 0], [0, 0, 0, 0, lr, lr / 2]]
    before = [w.detach().clone() for w in rasa.directions]
    train(rasa, [2, 3])
    assert [torch.equal(old, new) for old, new in zip(before, rasa.directions, strict=True)] == [True, False, True]
    assert not any(p.grad is not None for p in rasa.backbone.parameters())


def test_a_direction_that_depends_on_the_first_takes_nothing_out():
    row = noise(1, 12, seed=3)
    matrix = removal_matrix([torch.cat([row, 1.7 * row])], 12, orthogonal=True)
    assert float(matrix.trace()) == pytest.approx(11)
    torch.testing.assert_close(matrix, removal_matrix([torch.cat([row, 0 * row])], 12, orthogonal=True), atol=1e-12, rtol=0)


def test_planes_are_taken_out_in_float32_under_bfloat16():
    rasa, batch = train(method(), range(4)), noise(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = rasa.step(batch, 4, torch.Generator())
        features = rasa.backbone.tokens(batch).patches.float()
    assert loss.dtype == torch.float32
    left = features.double() @ removal_matrix([w.detach() for w in rasa.directions][:2], 48, orthogonal=True).T
    expected = round_loss(rasa.directions[2].double(), left, place_targets(4, 4).double())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("compat", ["paper", "released"])
def test_the_exported_map_is_the_initial_one_times_the_matrix(compat, tmp_path):
    rasa = train(method(compat=compat), range(6))
    export_backbone(rasa.export(), tmp_path / "b.safetensors", run="r", config_hash="0")
    loaded, images = load(tmp_path / "b.safetensors").eval(), noise(1, 3, 32, 48)
    expected = torch.einsum("ed,bdhw->behw", rasa.removal(3).float(), rasa.backbone.dense(images))
    torch.testing.assert_close(loaded.dense(images), expected)
    assert "levels" not in loaded.abilities
    with pytest.raises(UserError, match="needs maps of several layers"):
        loaded.require_abilities({"levels"}, "a linear head")


def test_crops_are_turned_by_their_seed_alone():
    class Images(Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            return torch.randint(0, 255, (3, 80, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(index))

    settings, images = small(), Images()
    data = TurnedCrops(images, settings)
    one, same, other = (data[Item(0, seed)] for seed in (1, 1, 2))
    assert torch.equal(one["crops"], same["crops"])
    assert one["crops"].shape == (3, 64, 64)
    assert not torch.equal(one["crops"], other["crops"])
    batch = {k: torch.stack([one[k], other[k]]) for k in one}
    assert method().prepare(batch, torch.device("cpu")).shape == (2, 3, 64, 64)


def test_rounds_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match="6 steps for 7 rounds"):
        method(rounds=7)
    with pytest.raises(UserError, match="take out 50 of 48 dimensions"):
        method(rounds=25, steps=30)
    with pytest.raises(ValidationError, match="no range"):
        small(scale=(0.5, 0.2))


def test_what_the_settings_tell_is_refused_by_the_study():
    assert RasaSettings(steps=2, rounds=9).obstacle() == "2 steps for 9 rounds; to do: raise epochs or steps, or lower rounds"
    assert RasaSettings(epochs=1, rounds=9).obstacle() is None
    obstacle = RasaSettings(steps=9, size=518).obstacle_to_network(named_architecture("vit_nano_patch16"))
    assert obstacle == "size 518 is not a multiple of the patch size 16; allowed: e.g. 512"
