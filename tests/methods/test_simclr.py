"""SimCLR against plain loops, over processes, and what every method promises."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from densewalk.core.errors import UserError
from densewalk.data import sources
from densewalk.data.sources import SpacedImages
from densewalk.methods.simclr.method import Simclr, SimclrViews, nt_xent
from densewalk.methods.simclr.settings import SimclrSettings
from densewalk.models.heads import BatchNormOverProcesses
from densewalk.models.loading import create
from densewalk.training.method import Method
from densewalk.training.sampler import Item
from tests.fixtures.methods.runs import Images, require_equal_processes, require_exact_resume
from tests.fixtures.processes import in_processes

SMALL = {"size": 32, "projector_hidden": 32, "out_dim": 16, "warmup_epochs": 0, "batch_size": 4, "steps": 3, "lr": 0.1}


def settings(**changes):
    return SimclrSettings(**{**SMALL, **changes})


def simclr(**changes) -> Method:
    return Simclr(settings(**changes), create("vit_nano_patch16", seed=1), 3, 2, seed=0)


def views(**changes):
    return SimclrViews(SpacedImages([Images(3, 48, 64)], 1.0), settings(**changes))


def plain_nt_xent(z, temperature):
    """Float64 loop over all views; z [2, b, d]."""
    rows = [x / np.linalg.norm(x) for x in np.asarray(z, dtype=np.float64).reshape(-1, z.shape[-1])]
    total, count = 0.0, len(rows)
    for i in range(count):
        exponentials = {j: math.exp(float(rows[i] @ rows[j]) / temperature) for j in range(count) if j != i}
        total -= math.log(exponentials[(i + count // 2) % count] / sum(exponentials.values())) / count
    return total


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_loss_equals_the_plain_loop(temperature):
    z = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    assert nt_xent(*z, temperature).item() == pytest.approx(plain_nt_xent(z, temperature), rel=1e-5)
    assert nt_xent(*z.flip(0), temperature).item() == pytest.approx(plain_nt_xent(z, temperature), rel=1e-5), "views are alike"
    assert nt_xent(*(3 * z), temperature).item() == pytest.approx(plain_nt_xent(z, temperature), rel=1e-5), "lengths do not matter"
    assert nt_xent(*z[:, :1], temperature).item() == 0, "one image has no negatives"


def test_gradients_are_orthogonal_to_the_views():
    z = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0), requires_grad=True)
    (gradient,) = torch.autograd.grad(nt_xent(*z, 0.2), z)
    assert (gradient * z).sum(-1).abs().max() < 1e-6
    assert gradient.norm() > 0.01


def share_of(z, x, temperature):
    """Loss and gradient of this process's part of views, and batch normalization of its part of rows."""
    rank = torch.distributed.get_rank()
    own = z[:, 2 * rank : 2 * rank + 2].clone().requires_grad_()
    loss = nt_xent(*own, temperature)
    loss.backward()
    norm, rows = BatchNormOverProcesses(3), x[2 * rank : 2 * rank + 2].clone().requires_grad_()
    y = norm(rows)
    (y * torch.arange(6.0).view(2, 3) * (rank + 1)).sum().backward()
    return [t.detach().numpy().copy() for t in (loss, own.grad, y, rows.grad, norm.running_mean, norm.running_var)]


def test_two_processes_have_the_loss_and_gradient_of_one(tmp_path):
    """Averaged, the gradients of both are those of the mean of both losses, which is that of one process on all views."""
    z, x = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0)), torch.randn(4, 3) * 2 + 1
    whole = z.clone().requires_grad_()
    loss = nt_xent(*whole, 0.2)
    loss.backward()
    norm, rows = nn.BatchNorm1d(3), x.clone().requires_grad_()
    y = norm(rows)
    (y * torch.cat([torch.arange(6.0).view(2, 3) * n for n in (1, 2)])).sum().backward()
    found = in_processes(share_of, 2, tmp_path, z, x, 0.2)
    assert np.mean([one[0] for one in found]) == pytest.approx(loss.item(), rel=1e-6)
    np.testing.assert_allclose(np.concatenate([one[1] for one in found], axis=1) / 2, whole.grad, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([one[2] for one in found]), y.detach(), atol=1e-5)
    np.testing.assert_allclose(np.concatenate([one[3] for one in found]), rows.grad, atol=1e-4)
    for one in found:
        np.testing.assert_allclose(one[4], norm.running_mean, atol=1e-6)
        np.testing.assert_allclose(one[5], norm.running_var, rtol=1e-5)


def test_a_step_is_the_loss_of_projected_cls_tokens():
    method = simclr().train()
    batch = torch.randn(4, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loss, logs = method.step(batch, 0, torch.Generator())
    z = method.projector(torch.cat([method.backbone.cls(batch[:, v]) for v in (0, 1)])).detach().view(2, 4, 16)
    assert loss.item() == pytest.approx(plain_nt_xent(z, 0.1), rel=1e-4)
    assert 1 <= logs["feature_rank"] <= 8
    twice, _ = simclr(compat="released").train().step(batch, 0, torch.Generator())
    assert twice.item() == pytest.approx(2 * loss.item(), rel=1e-5)


def test_a_video_gives_one_random_frame_of_each_stretch(monkeypatch):
    class Frames(Images):
        fps, starts = 10.0, np.array([*range(25, 50), *range(60, 71)])

        def __len__(self):
            return len(self.starts)

        def __getitem__(self, index):
            return torch.full((1, 3, 2, 2), int(self.starts[index]), dtype=torch.uint8)

    monkeypatch.setattr(sources, "VideoClips", Frames)
    spaced = SpacedImages([Frames(1), Frames(1)], 1.0)
    stretches = [range(25, 30), range(30, 40), range(40, 50), range(60, 70), range(70, 71)]
    assert len(spaced) == 2 * len(stretches)
    drawn = [{int(spaced.draw(i, torch.Generator().manual_seed(seed))[0, 0, 0]) for seed in range(40)} for i in range(len(spaced))]
    assert all(frames <= set(stretch) for frames, stretch in zip(drawn, 2 * stretches, strict=True))
    assert all(len(frames) > 1 for frames, stretch in zip(drawn, 2 * stretches, strict=True) if len(stretch) > 1)
    assert len(SpacedImages([Frames(1)], 0.0)) == 36


def test_recipe_and_refusals():
    method = Simclr(SimclrSettings(size=32, projector_hidden=8), create("vit_nano_patch16", seed=0), 1000, 10, seed=0)
    decayed, plain = method.param_groups()
    assert decayed.lr[99] == pytest.approx(2e-4 * 16)
    assert (decayed.weight_decay[0], plain.weight_decay[0]) == (0.1, 0)
    assert [type(layer).__name__ for layer in method.projector][-2:] == ["Linear", "BatchNormOverProcesses"]
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        settings(batch_size=1)
    with pytest.raises(UserError, match="size 40 is not a multiple"):
        simclr(size=40)
    assert "negatives" in settings().obstacle_to_parts(2)


def test_views_depend_on_the_item_alone():
    first, again, other = (views()[Item(1, seed=seed)] for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["views"], other["views"])
    assert not torch.equal(first["views"][0], first["views"][1])


def test_resume_is_bitwise_equal_and_processes_equal_one(tmp_path):
    require_exact_resume(simclr, views(), tmp_path)
    require_equal_processes(simclr, views(), tmp_path / "processes")


def test_pictures_show_neighbors(tmp_path):
    method = simclr().eval()
    with torch.no_grad():
        method.pictures(views(), tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.stem in SimclrSettings.PICTURES
    assert Image.open(file).size == (6 * 32, 4 * 32)
