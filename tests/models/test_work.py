"""Operations that follow from shapes, against those that torch counts."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from densewalk.evaluations.segmentation.settings import Ade20kUpernetSettings
from densewalk.methods.dino.method import Dino
from densewalk.methods.dora.method import Dora
from densewalk.methods.timetuning.method import TimeTuning
from densewalk.models.architecture import architecture_named
from densewalk.models.export import export_backbone
from densewalk.models.loading import create
from densewalk.models.work import parameters, vit
from densewalk.ops.cpu import switch
from tests.fixtures.methods import dino, dora, neco, timetuning


@pytest.fixture(autouse=True)
def _only_torchs_own_kernels(monkeypatch):
    """Which are the ones that torch counts."""
    monkeypatch.setattr(switch, "_enabled", False)


NAMES = ["vit_nano_patch16", "vit_micro_patch14_reg4", "vit_micro_patch16_swiglu", "vit_tiny_patch16_rope"]


def counted(function):
    """Operations of a call, forward and backward."""
    with FlopCounterMode(display=False) as counter, torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("name", NAMES)
def test_a_forward_pass(name):
    backbone, arch = create(name, seed=0).eval(), architecture_named(name)
    height, width = 5 * arch.patch, 8 * arch.patch
    images = torch.randn(2, 3, height, width)
    with torch.no_grad():
        assert counted(lambda: backbone.tokens(images)) == pytest.approx(2 * vit(arch, height, width), rel=0.01)
        assert counted(lambda: backbone.cls(images)) == pytest.approx(2 * vit(arch, height, width, cls_only=True), rel=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_parameters(name):
    counted = sum(p.numel() for p in create(name, seed=0).parameters())
    assert counted == pytest.approx(parameters(architecture_named(name)), rel=0.02)


def step_of(method, batch):
    """Operations of one optimizer step, as torch counts them, and as the settings say."""

    def step():
        loss, _ = method.step(batch, 0, torch.Generator().manual_seed(0))
        loss.backward()

    backbone = method.student.backbone
    return counted(step), method.settings.step_work(backbone.arch).flops


@pytest.mark.parametrize("changes", [{}, {"local_crops": 4, "batch_size": 2, "local_size": 48}])
def test_a_step_of_dino(changes):
    settings = dino.small_settings(**changes)
    method = Dino(settings, create("vit_micro_patch16", seed=1), 5, 1, seed=0)
    found, said = step_of(method, dino.random_batch(settings, settings.batch_size))
    assert said == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("changes", [{"compat": "paper"}, {"compat": "released"}, {"objects": 2, "local_crops": 5}])
def test_a_step_of_dora(changes):
    settings = dora.small_settings(**changes)
    method = Dora(settings, create("vit_micro_patch16", seed=1), 5, 1, seed=0)
    found, said = step_of(method, dora.random_batch(settings))
    assert said == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("changes", [{"compat": "released"}, {"trainable_blocks": 1, "unused_patches": True}])
def test_a_step_of_neco(changes):
    """Patches that no two crops share are not computed where `unused_patches` is off: an estimate from above."""
    method = neco.neco(create("vit_micro_patch16", seed=0), global_size=112, local_size=64, **changes, teacher_graph=False)
    found, said = step_of(method, neco.batch_of(method))
    assert said == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("changes", [{}, {"variant": "simplified"}, {"trainable_blocks": 1, "frames": 4}])
def test_a_step_of_time_tuning(changes):
    settings = timetuning.small(**changes)
    method = TimeTuning(settings, create("vit_micro_patch16", seed=0), 4, 2, seed=3)
    found, said = step_of(method, timetuning.clips(settings.batch_size, settings.frames))
    assert said == pytest.approx(found, rel=0.1)


def test_upernet_on_a_crop(tmp_path):
    pytest.importorskip("mmseg")
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

    from densewalk.evaluations.mmlab import pyramid
    from densewalk.evaluations.mmlab import vit as registered
    from densewalk.evaluations.segmentation import experiment

    assert pyramid
    assert registered
    backbone = create("vit_micro_patch16", seed=0)
    export_backbone(backbone, tmp_path / "backbone.safetensors", run="r", config_hash="h")
    settings = Ade20kUpernetSettings(root="d", dataset="ADE20K", crop=128, channels=48)
    init_default_scope("mmseg")
    model = MODELS.build(experiment.upernet(settings, str(tmp_path / "backbone.safetensors"), backbone.arch)).eval()

    def heads():
        levels = model.extract_feat(torch.randn(1, 3, 128, 128))
        model.decode_head(levels)
        model.auxiliary_head(levels)

    with torch.no_grad():
        assert vit(backbone.arch, 128) + settings.head_flops(backbone.arch) == pytest.approx(counted(heads), rel=0.03)
