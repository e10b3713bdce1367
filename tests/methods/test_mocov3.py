"""MoCo v3 against plain loops, over processes, and what every method promises."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.data.sources import SpacedImages
from densewalk.methods.mocov3.method import ByolViews, MocoV3, contrast
from densewalk.methods.mocov3.settings import MocoV3Settings
from densewalk.models.loading import create
from densewalk.ops.positions import sincos_positions
from tests.fixtures.methods.runs import Images, require_equal_processes, require_exact_resume
from tests.fixtures.processes import in_processes

SMALL = {
    "size": 32,
    "projector_hidden": 32,
    "predictor_hidden": 24,
    "out_dim": 16,
    "warmup_epochs": 0,
    "batch_size": 4,
    "steps": 3,
    "lr": 0.1,
}


def settings(**changes):
    return MocoV3Settings(**{**SMALL, **changes})


def moco(**changes):
    return MocoV3(settings(**changes), create("vit_nano_patch16", seed=1), 3, 2, seed=0)


def views(**changes):
    return ByolViews(SpacedImages([Images(3, 48, 64)], 1.0), settings(**changes))


def plain_contrast(q, k, temperature):
    """Float64 loop over queries and keys."""
    q, k = ([x / np.linalg.norm(x) for x in np.asarray(rows, dtype=np.float64)] for rows in (q, k))
    total = 0.0
    for i, query in enumerate(q):
        exponentials = [math.exp(float(query @ key) / temperature) for key in k]
        total -= 2 * temperature * math.log(exponentials[i] / sum(exponentials)) / len(q)
    return total


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_loss_equals_the_plain_loop(temperature):
    q, k = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0)).unbind()
    assert contrast(q, k, temperature).item() == pytest.approx(plain_contrast(q, k, temperature), rel=1e-5)
    assert contrast(q, q, 1e-3).item() == pytest.approx(0, abs=1e-6), "every key is found"
    zero = torch.ones(5, 7)
    assert contrast(zero, zero, temperature).item() == pytest.approx(2 * temperature * math.log(5), rel=1e-5)


def share_of(q, k):
    """This process's part of the loss, and the gradient of its queries."""
    part = slice(2 * torch.distributed.get_rank(), 2 * torch.distributed.get_rank() + 2)
    own = q[part].clone().requires_grad_()
    loss = contrast(own, k[part], 0.2)
    loss.backward()
    return loss.item(), own.grad.numpy().copy()


def test_two_processes_share_their_keys(tmp_path):
    q, k = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0)).unbind()
    whole = q.clone().requires_grad_()
    loss = contrast(whole, k, 0.2)
    loss.backward()
    found = in_processes(share_of, 2, tmp_path, q, k)
    assert np.mean([one[0] for one in found]) == pytest.approx(loss.item(), rel=1e-6)
    np.testing.assert_allclose(np.concatenate([one[1] for one in found]) / 2, whole.grad, atol=1e-6)


def test_a_step_moves_the_momentum_network_before_the_keys():
    method = moco(teacher_momentum=0.5).train()
    for p in method.student.parameters():
        p.data += 0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3))
    before = [p.clone() for p in method.teacher.parameters()]
    batch = torch.randn(4, 2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    loss, _ = method.step(batch, 0, torch.Generator())
    for old, p, own in zip(before, method.teacher.parameters(), method.student.parameters(), strict=True):
        torch.testing.assert_close(p, (old + own.detach()) / 2)
    with torch.no_grad():
        queries = [method.predictor(method.student(view)) for view in batch.unbind(1)]
        keys = [method.teacher(view) for view in batch.unbind(1)]
    expected = plain_contrast(queries[0], keys[1], 0.2) + plain_contrast(queries[1], keys[0], 0.2)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())
    assert all(p.grad is None for p in method.student.backbone.vit.patch_embed.parameters())


def test_recipe_and_refusals():
    method = MocoV3(MocoV3Settings(size=32, projector_hidden=8, predictor_hidden=8), create("vit_nano_patch16", seed=0), 1000, 10, seed=0)
    (group,) = method.param_groups()
    assert (group.lr[0], group.lr[400]) == (0, pytest.approx(1.5e-4 * 16))
    assert set(group.weight_decay) == {0.1}
    assert {id(p) for p in group.params} == {id(p) for n, p in method.named_parameters() if p.requires_grad}
    assert torch.equal(method.export().vit.pos_embed[0, 1:], sincos_positions(48, (2, 2), first="row")), "of 32 px"
    assert method.momentum[0] == 0.99
    assert method.momentum[500] == pytest.approx(1 - 0.5 * (1 + math.cos(math.pi / 2)) * 0.01)
    assert [type(layer).__name__ for layer in method.predictor] == [
        "Linear",
        "BatchNormOverProcesses",
        "ReLU",
        "Linear",
        "BatchNormOverProcesses",
    ]
    with pytest.raises(ValueError, match="greater than or equal to 2"):
        settings(batch_size=1)
    with pytest.raises(UserError, match="size 40 is not a multiple"):
        moco(size=40)
    assert "negatives" in settings().obstacle_to_parts(2)


def test_resume_is_bitwise_equal_and_processes_equal_one(tmp_path):
    require_exact_resume(moco, views(), tmp_path)
    require_equal_processes(moco, views(), tmp_path / "processes")


def test_pictures_show_neighbors(tmp_path):
    method = moco().eval()
    with torch.no_grad():
        method.pictures(views(), tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.stem in MocoV3Settings.PICTURES
    assert Image.open(file).size == (6 * 32, 4 * 32)
