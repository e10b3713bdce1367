"""The contrastive random walk against plain loops, and what every method promises."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import default_collate

from densewalk.core.errors import UserError
from densewalk.data.sources import Source
from densewalk.methods.crw.clips import WalkClips, windows
from densewalk.methods.crw.method import Crw
from densewalk.methods.crw.settings import CrwSettings
from densewalk.methods.crw.walk import EPSILON, chains, cycle_accuracy, cycle_loss, draw_edges, transitions
from densewalk.models.loading import create
from densewalk.ops.cpu import switch
from densewalk.training.sampler import Item
from tests.fixtures.methods.runs import CPU, Images, require_equal_parts, require_equal_processes, require_exact_resume
from tests.fixtures.receipts import images_receipt
from tests.models.test_work import counted

SMALL = {"frames": 3, "size": 32, "node_size": 16, "node_stride": 16, "out_dim": 16, "batch_size": 2, "steps": 3, "lr": 0.01}


def settings(**changes):
    return CrwSettings(**{**SMALL, **changes})


def crw(**changes):
    return Crw(settings(**changes), create("vit_nano_patch16", seed=1), 3, 2, seed=0)


def clips(**changes):
    return WalkClips(Images(3, 3, 64, 80), settings(**changes))


def unit(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def softmax(row):
    exponentials = np.exp(row - row.max())
    return exponentials / exponentials.sum()


# -- formulas ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inherited", [True, False])
def test_transitions_equal_the_plain_loop(inherited):
    nodes = unit(2, 3, 5, 4)
    draws = draw_edges(nodes)
    there, back = transitions(nodes, 0.2, 0.3, draws, inherited=inherited)
    q = nodes.double().numpy()
    for b in range(2):
        for t in range(2):
            for n in range(5):
                forth = [float(q[b, t, n] @ q[b, t + 1, m]) if draws.there[t, b, n, m] >= 0.3 else -np.inf for m in range(5)]
                home = []
                for m in range(5):
                    cut = draws.back[t, b, n, m] < 0.3 or (inherited and draws.there[t, b, m, n] < 0.3)
                    home.append(-np.inf if cut else float(q[b, t + 1, n] @ q[b, t, m]))
                for found, row in ((there[t, b, n], forth), (back[t, b, n], home)):
                    expected = softmax(np.array(row) / 0.2) if np.isfinite(row).any() else np.full(5, 0.2)
                    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_cycles_equal_the_plain_loop():
    nodes = unit(2, 4, 5, 3)
    there, back = transitions(nodes, 0.3, 0.0, None, inherited=False)
    f, g = there.double().numpy(), back.double().numpy()
    for k, walk in enumerate(chains(there, back)):
        total, right = 0.0, 0
        for b in range(2):
            p = np.eye(5)
            for t in range(k + 1):
                p = p @ f[t, b]
            for t in range(k, -1, -1):
                p = p @ g[t, b]
            for n in range(5):
                total += (-math.log(p[n, n] + EPSILON) + math.log(sum(x + EPSILON for x in p[n]))) / 10
                right += p[n].argmax() == n
        assert cycle_loss(*walk).item() == pytest.approx(total, rel=1e-5)
        assert cycle_accuracy(*walk).item() == pytest.approx(right / 10)


def test_known_walks():
    same = torch.ones(1, 4, 6, 3) / math.sqrt(3)
    there, back = transitions(same, 0.05, 0.0, None, inherited=False)
    assert [cycle_loss(*walk).item() for walk in chains(there, back)] == pytest.approx([math.log(6)] * 3, rel=1e-5)
    still = torch.eye(6)[None, None].expand(1, 4, -1, -1)
    moved = torch.stack([still[0, 0][torch.randperm(6, generator=torch.Generator().manual_seed(t))] for t in range(4)])[None]
    for nodes in (still, moved):
        walks = list(chains(*transitions(nodes, 0.005, 0.0, None, inherited=False)))
        assert max(cycle_loss(*walk).item() for walk in walks) < 1e-5
        assert min(cycle_accuracy(*walk).item() for walk in walks) == 1
    wild = unit(1, 4, 6, 3).requires_grad_()
    loss = cycle_loss(*list(chains(*transitions(wild, 0.005, 0.0, None, inherited=False)))[-1])
    loss.backward()
    assert loss.isfinite()
    assert wild.grad.isfinite().all()


def test_time_reversed_exchanges_the_ways():
    nodes = unit(2, 3, 5, 4)
    there, back = transitions(nodes, 0.2, 0.0, None, inherited=False)
    other = transitions(nodes.flip(1), 0.2, 0.0, None, inherited=False)
    torch.testing.assert_close(other[0], back.flip(0))
    torch.testing.assert_close(other[1], there.flip(0))


# -- the method --------------------------------------------------------------------------------------------------------


def test_windows_are_images_of_their_own():
    """Equal windows at all places give one node, so that position alone returns as often as chance."""
    method = crw().eval()
    gray = torch.zeros(1, 3, 9, 3, 16, 16)
    nodes = method.encode(gray)
    torch.testing.assert_close(nodes, nodes[:, :1, :1].expand_as(nodes))
    there, back = transitions(torch.ones_like(nodes) / 4, 0.05, 0.0, None, inherited=False)
    assert cycle_accuracy(*list(chains(there, back))[-1]).item() == pytest.approx(1 / 9)


def test_a_step_averages_its_cycles():
    sample = default_collate([clips()[Item(i, seed=i)] for i in range(4)])
    for compat, first in (("paper", 0), ("released", 1)):
        method = crw(compat=compat, edge_dropout=0.0)
        batch = method.prepare(sample, CPU)
        loss, logs = method.step(batch, 0, torch.Generator())
        walks = list(chains(*transitions(method.encode(batch), 0.05, 0.0, None, inherited=False)))
        assert loss.item() == pytest.approx(np.mean([cycle_loss(*walk).item() for walk in walks[first:]]), rel=1e-5)
        assert logs["cycle_accuracy"] == cycle_accuracy(*walks[-1])


def test_windows_are_cut_where_they_lie():
    s = settings(size=64, node_size=32, node_stride=16)
    assert len(windows(s)) == 9
    assert windows(s)[5].tolist() == [16, 32, 32, 32]
    sample = WalkClips(Images(3, 3, 64, 80), s)[Item(0, seed=1)]
    assert sample["boxes"].shape == (3, 9, 4)
    inner, outer = sample["boxes"], windows(s)
    assert (inner[..., :2] >= outer[:, :2]).all()
    assert (inner[..., :2] + inner[..., 2:] <= outer[:, :2] + 32).all()
    shares = inner[..., 2:].prod(-1) / 1024
    assert 0.6 < shares.min() < shares.max() < 1.0
    again, other = (WalkClips(Images(3, 3, 64, 80), s)[Item(0, seed=seed)] for seed in (1, 2))
    assert all(torch.equal(sample[name], again[name]) for name in sample)
    assert not torch.equal(sample["boxes"], other["boxes"])
    assert not torch.equal(sample["boxes"][0], sample["boxes"][1])


def test_recipe_and_refusals():
    method = Crw(CrwSettings(), create("vit_nano_patch16", seed=0), 100, 10, seed=0)
    decayed, _ = method.param_groups()
    assert (decayed.lr[79], decayed.lr[80], decayed.weight_decay[0]) == (1e-4, pytest.approx(3e-5), 0)
    assert CrwSettings().grid == 7
    assert settings(frames=2).obstacle() is None
    assert "goes through 3" in settings(frames=2, compat="released").obstacle()
    assert "no two windows" in settings(size=16).obstacle()
    with pytest.raises(UserError, match="node_size 24 is not a multiple"):
        crw(node_size=24)
    with pytest.raises(UserError, match="photos is a folder of images, in which nothing moves"):
        Crw.dataset(settings(), [Source("photos", images_receipt())])


def test_work_is_that_which_torch_counts(monkeypatch):
    monkeypatch.setattr(switch, "_enabled", False)
    method = Crw(settings(size=64, node_size=32), create("vit_micro_patch16", seed=0), 3, 2, seed=0)
    batch = torch.randn(2, 3, 9, 3, 32, 32)
    found = counted(lambda: method.step(batch, 0, torch.Generator())[0].backward())
    assert method.settings.step_work(method.backbone.arch).flops == pytest.approx(found, rel=0.1)


def test_resume_is_bitwise_equal(tmp_path):
    require_exact_resume(crw, clips(), tmp_path, batch_size=2)


def test_parts_and_processes_equal_one_batch(tmp_path):
    options = {"edge_dropout": 0.0}  # drawn by each process and part for itself, as stochastic depth
    require_equal_parts(lambda: crw(**options), clips(), tmp_path / "parts", 2)
    require_equal_processes(lambda: crw(**options), clips(), tmp_path / "processes", 2)


def test_pictures_show_walks(tmp_path):
    method = crw().eval()
    with torch.no_grad():
        method.pictures(clips(), tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.stem in CrwSettings.PICTURES
    assert Image.open(file).size == (3 * 32, 8 * 32)
    assert method.export() is method.backbone
