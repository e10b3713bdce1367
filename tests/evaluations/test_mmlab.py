import csv
import random
from itertools import islice
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import nn
from torch.optim.lr_scheduler import LinearLR

import densewalk.evaluations.mmlab
from densewalk.core.errors import UserError
from densewalk.data.benchmarks.label_maps import Example
from densewalk.evaluations.coco.data import Split
from densewalk.evaluations.coco.experiment import experiment as coco_experiment
from densewalk.evaluations.coco.settings import CocoSettings
from densewalk.evaluations.mmlab import detection, ops, pyramid, runner, segmentation
from densewalk.evaluations.mmlab.data import ItemStream, SeededDataset
from densewalk.evaluations.mmlab.experiment import default_levels, scales, strides
from densewalk.evaluations.mmlab.optim import decay_table, write_table
from densewalk.evaluations.mmlab.vit import DensewalkBackbone, pad
from densewalk.evaluations.segmentation import experiment as mmseg
from densewalk.evaluations.segmentation.evaluate import summarize
from densewalk.evaluations.segmentation.settings import Ade20kLinearSettings, Ade20kUpernetSettings
from densewalk.models.architecture import Architecture
from densewalk.models.export import export_backbone
from densewalk.models.loading import create, load
from densewalk.models.timm_models import named_architecture
from densewalk.ops.deterministic import deterministic_kernels
from densewalk.training.sampler import Item
from tests.fixtures.mmdata import backbone_file
from tests.fixtures.official import official_maps, official_weights


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    return backbone_file(tmp_path_factory.mktemp("backbone"))


# -- the stand-in ----------------------------------------------------------------------------------------------------


def overlap(a, b, offset):
    width = min(a[2], b[2]) + offset - max(a[0], b[0])
    height = min(a[3], b[3]) + offset - max(a[1], b[1])
    area = [(x[2] + offset - x[0]) * (x[3] + offset - x[1]) for x in (a, b)]
    both = max(0.0, width) * max(0.0, height)
    return both / (area[0] + area[1] - both)


@pytest.mark.parametrize("offset", [0, 1])
def test_nms_keeps_the_best_of_each_heap(offset):
    from mmcv.ops import nms

    rng = np.random.default_rng(0)
    corners = rng.integers(0, 40, (60, 2)).astype(float)
    boxes = np.concatenate([corners, corners + rng.integers(4, 20, (60, 2))], axis=1)
    scores = rng.permutation(60) / 60
    kept = []
    for i in np.argsort(-scores):
        if all(overlap(boxes[i], boxes[j], offset) <= 0.4 for j in kept):
            kept.append(i)
    found, indices = nms(torch.tensor(boxes).float(), torch.tensor(scores).float(), 0.4, offset=offset)
    assert 5 < len(kept) < 55
    assert indices.tolist() == kept
    assert torch.equal(found[:, :4], torch.tensor(boxes).float()[indices])
    # as under autocast: coordinates in float32, scores in bfloat16
    assert nms(torch.tensor(boxes).float(), torch.tensor(scores).bfloat16(), 0.4, offset=offset)[1][:3].tolist() == kept[:3]


@pytest.mark.parametrize("ignored", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accuracy_of_a_head_s_batch_is_the_toolbox_s(ignored, dtype):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 7, 9, 11, generator=generator).to(dtype)
    labels = torch.randint(0, 7, (2, 9, 11), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    expected = segmentation.toolbox_accuracy(logits, labels, ignore_index=255)
    assert torch.equal(segmentation.decode_head.accuracy(logits, labels, ignore_index=255), expected)
    assert segmentation.decode_head.accuracy is segmentation.accuracy


@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align_and_its_gradient_are_torchvisions(aligned):
    from mmcv.ops import RoIAlign

    torch.manual_seed(0)
    images = [torch.randn(2, 5, 12, 17, requires_grad=True)]
    images.append(images[0].detach().clone().requires_grad_())
    rois = torch.tensor([[0, 3.0, 5.0, 60.0, 40.0], [1, -4.0, 0.0, 30.5, 47.0], [1, 10.0, 10.0, 12.0, 11.0]])
    ours = RoIAlign((3, 4), spatial_scale=0.25, sampling_ratio=0, aligned=aligned)(images[0], rois)
    theirs = torchvision.ops.roi_align(images[1], rois, (3, 4), spatial_scale=0.25, sampling_ratio=-1, aligned=aligned)
    assert torch.equal(ours, theirs)
    weight = torch.randn_like(ours)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    assert torch.equal(images[0].grad, images[1].grad)
    assert images[0].grad.abs().sum() > 0


def test_roi_align_takes_bfloat16():
    from mmcv.ops import RoIAlign

    torch.manual_seed(0)
    exact = torch.randn(1, 3, 16, 16).bfloat16().float()
    rois = torch.tensor([[0, 8.0, 8.0, 40.0, 56.0]])
    images = exact.bfloat16().requires_grad_()
    pooled = RoIAlign(4, spatial_scale=0.25)(images, rois.bfloat16())
    pooled.float().sum().backward()
    assert pooled.dtype == images.grad.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.float(), RoIAlign(4, spatial_scale=0.25)(exact, rois), rtol=1e-2, atol=1e-2)


def test_other_operators_fail_by_name():
    from mmcv.ops import RoIAlign, soft_nms

    with pytest.raises(NotImplementedError, match=r"softnms.*compiled mmcv"):
        soft_nms(torch.rand(3, 4), torch.rand(3), 0.5)
    with pytest.raises(NotImplementedError, match="max pooling"):
        RoIAlign(2, pool_mode="max")(torch.rand(1, 1, 8, 8), torch.tensor([[0, 0.0, 0.0, 4.0, 4.0]]))


def test_a_compiled_mmcv_is_left_alone(monkeypatch):
    compiled = ModuleType(ops.NAME)
    compiled.__spec__ = torch.__spec__
    monkeypatch.setitem(densewalk.evaluations.mmlab.ops.sys.modules, ops.NAME, compiled)
    assert not ops.install()
    assert densewalk.evaluations.mmlab.ops.sys.modules[ops.NAME] is compiled


# -- the backbone ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["mmseg", "mmdet"])
@pytest.mark.parametrize("norm", [True, False])
def test_both_toolboxes_find_the_backbone_and_its_maps_are_ours(nano, scope, norm):
    with DefaultScope.overwrite_default_scope(scope):
        module = MODELS.build({"type": "DensewalkBackbone", "path": str(nano), "levels": [0, 1], "final_norm": norm})
    images = torch.randn(2, 3, 32, 48)
    expected = create("vit_nano_patch16", seed=0).levels(images, [0, 1], norm=norm)
    assert all(torch.equal(a, b) for a, b in zip(module(images), expected, strict=True))
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    assert ("network.vit.norm.weight" in trained) == norm


@pytest.mark.parametrize("arch", ["vit_nano_patch14_reg4", "vit_nano_patch14", "vit_nano_patch8", "vit_nano_patch16_reg4_rope"])
def test_families_keep_their_registers_and_interpolation(tmp_path, arch):
    path = backbone_file(tmp_path, arch)
    patch = named_architecture(arch).patch
    images = torch.randn(1, 3, 3 * patch, 5 * patch)
    (found,) = DensewalkBackbone(str(path), [1], final_norm=True)(images)
    assert torch.equal(found, create(arch, seed=0).dense(images))


@pytest.mark.parametrize(
    ("name", "padding"), [("vit_nano_patch16", "corner"), ("vit_nano_patch14", "center"), ("vit_nano_patch14_reg4", "corner")]
)
@pytest.mark.parametrize("norm", [True, False])
def test_official_files_give_the_families_own_maps_at_any_size(tmp_path, name, padding, norm):
    """Positions resampled as the family does, registers, LayerScale, padding to the patch: against a forward written apart."""
    arch = named_architecture(name)
    weights = official_weights(arch, seed=3)
    torch.save(weights, tmp_path / "official.pth")
    export_backbone(load(tmp_path / "official.pth", name), tmp_path / "run.safetensors", run="test", config_hash="0")
    images = torch.randn(1, 3, 5 * arch.patch - 6, 8 * arch.patch - 5)
    found = DensewalkBackbone(str(tmp_path / "run.safetensors"), [0, 1], final_norm=norm, padding=padding).eval()(images)
    padded = torch.zeros(1, 3, 5 * arch.patch, 8 * arch.patch)
    top, left = (3, 2) if padding == "center" else (0, 0)
    padded[:, :, top : top + images.shape[2], left : left + images.shape[3]] = images
    antialias = name.endswith("reg4")
    expected = official_maps(weights, padded, arch, antialias=antialias, norm=norm)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape == (1, arch.dim, 5, 8)
        assert (ours - theirs).abs().max() < 2e-4 * theirs.abs().max()
    other = official_maps(weights, padded, arch, antialias=not antialias, norm=norm)
    assert (found[0] - other[0]).abs().max() > 2e-3 * other[0].abs().max(), "the other family's resampling would pass too"


def test_weights_are_loaded_strictly(tmp_path, nano):
    other = create(Architecture("vit_nano_patch16", dim=48, depth=3, heads=6, patch=16), seed=0)
    export_backbone(other, tmp_path / "deeper.safetensors", run="test", config_hash="0")
    with pytest.raises(UserError, match=r"not expected: blocks\.2"):
        DensewalkBackbone(str(tmp_path / "deeper.safetensors"), [1], final_norm=True)


def test_the_toolboxes_initialization_leaves_the_weights_alone(nano):
    arch = named_architecture("vit_nano_patch16")
    for scope, experiment in models(nano, arch):
        with DefaultScope.overwrite_default_scope(scope):
            model = MODELS.build(ConfigDict(experiment.model))
        head = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("backbone.")}
        model.init_weights()
        expected = create("vit_nano_patch16", seed=0).vit.state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in model.backbone.network.vit.state_dict().items())
        assert any(not torch.equal(v, model.state_dict()[k]) for k, v in head.items()), "heads are initialized here"


def test_a_frozen_backbone_stays_in_evaluation_mode_without_gradient(nano):
    module = DensewalkBackbone(str(nano), [1], final_norm=True, frozen=True, drop_path=0.5).train()
    assert module.training
    assert not any(part.training for part in module.network.modules())
    assert not any(p.requires_grad for p in module.parameters())
    assert not module(torch.randn(1, 3, 32, 32))[0].requires_grad
    assert DensewalkBackbone(str(nano), [1], final_norm=True).train()(torch.randn(1, 3, 32, 32))[0].requires_grad


def test_drop_path_acts_in_training_only(nano):
    module = DensewalkBackbone(str(nano), [1], final_norm=True, drop_path=0.9)
    images = torch.randn(4, 3, 32, 32)
    plain = DensewalkBackbone(str(nano), [1], final_norm=True).eval()(images)[0]
    assert torch.equal(module.eval()(images)[0], plain)
    assert not torch.equal(module.train()(images)[0], plain)


def test_blocks_above_the_last_level_are_not_trained(nano):
    module = DensewalkBackbone(str(nano), [0], final_norm=False)
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    module(torch.randn(1, 3, 32, 32))[0].sum().backward()
    assert trained == {name for name, p in module.named_parameters() if p.grad is not None}
    assert not any("blocks.1" in name for name in trained)


def test_gradient_checkpointing_changes_no_gradient(nano):
    gradients = []
    images = torch.randn(1, 3, 32, 32)
    for saving in (True, False):
        module = DensewalkBackbone(str(nano), [0, 1], final_norm=True, gradient_checkpointing=saving)
        sum(m.square().sum() for m in module(images)).backward()
        gradients.append([p.grad for p in module.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@given(height=st.integers(1, 40), width=st.integers(1, 40), patch=st.sampled_from([8, 14, 16]), where=st.sampled_from(["center", "corner"]))
@settings(max_examples=60, deadline=None)
def test_padding_is_zero_minimal_and_where_it_should_be(height, width, patch, where):
    padded = pad(torch.ones(1, 3, height, width), patch, where)
    ones = padded[0, 0].nonzero()
    for axis, side in enumerate((height, width)):
        total = padded.shape[2 + axis]
        assert total % patch == 0
        assert total - side < patch
        before, after = int(ones[:, axis].min()), total - 1 - int(ones[:, axis].max())
        assert before + after == total - side
        assert before == ((total - side) // 2 if where == "center" else 0)
    assert len(ones) == height * width


def test_levels_are_the_published_ones():
    assert default_levels(12) == [3, 5, 7, 11]
    assert default_levels(24) == [7, 11, 15, 23]
    assert default_levels(4) == [0, 1, 2, 3]
    assert default_levels(2) == [0, 0, 0, 1]


# -- layer decay -----------------------------------------------------------------------------------------------------


def twelve_blocks(folder):
    """iBOT's depth, narrow."""
    return Architecture("vit_tiny_patch16", dim=192, depth=12, heads=3, patch=16), backbone_file(folder, "vit_tiny_patch16")


def models(path, arch):
    """One model of each kind that is fine-tuned."""
    split = Split(path, path, 8, 8, ((1, "a"), (2, "b")))
    upernet = Ade20kUpernetSettings(root="x", dataset="x", channels=8, auxiliary_channels=8)
    example = Example(path, path, upernet.rule)
    yield "mmseg", mmseg.experiment(upernet, str(path), arch, [example], [example])
    for head in ("maskrcnn", "cascade"):
        settings = CocoSettings(root="x", dataset="x", head=head, channels=8, final_norm=True)
        yield "mmdet", coco_experiment(settings, str(path), arch, split, split)


@pytest.mark.parametrize("depth", [12, 2])
def test_learning_rates_and_weight_decay_by_layer(tmp_path, nano, depth):
    arch, path = twelve_blocks(tmp_path) if depth == 12 else (named_architecture("vit_nano_patch16"), nano)
    rate = 0.8
    for scope, experiment in models(path, arch):
        with DefaultScope.overwrite_default_scope(scope):
            model = MODELS.build(ConfigDict(experiment.model))
        table = {row.name: row for row in decay_table(model, rate, decay_position_embedding=True)}
        assert table.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
        prefix = "backbone.network.vit."
        for name in ("pos_embed", "cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias"):
            assert table[prefix + name].lr_scale == pytest.approx(rate ** (depth + 1))
        for block in range(depth):
            rows = [row for name, row in table.items() if name.startswith(f"{prefix}blocks.{block}.")]
            assert len(rows) == 12
            assert [row.lr_scale for row in rows] == pytest.approx([rate ** (depth - block)] * 12)
        rest = [row for name, row in table.items() if not name.startswith(prefix) or name.startswith(prefix + "norm.")]
        assert len(rest) > 20
        assert {row.lr_scale for row in rest} == {1.0}
        shapes = {name: p.ndim for name, p in model.named_parameters()}
        assert all(row.decayed == (shapes[name] > 1) for name, row in table.items())


def test_the_quirk_that_decays_position_embeddings_is_a_switch(tmp_path):
    path = backbone_file(tmp_path, "vit_nano_patch14_reg4")
    model = nn.ModuleDict({"backbone": DensewalkBackbone(str(path), [1], final_norm=True), "head": nn.Linear(4, 4)})
    tokens = {f"backbone.network.vit.{name}" for name in ("pos_embed", "cls_token", "reg_token")}
    on, off = ({r.name: r for r in decay_table(model, 0.9, decay_position_embedding=quirk)} for quirk in (True, False))
    assert {name for name in on if on[name].decayed != off[name].decayed} == tokens
    assert {on[name].layer for name in tokens} == {0}
    scale = [row for name, row in on.items() if ".ls1.gamma" in name]
    assert len(scale) == 2
    assert not any(row.decayed for row in scale)


def test_the_optimizer_follows_the_table(nano):
    model = nn.ModuleDict({"backbone": DensewalkBackbone(str(nano), [1], final_norm=True), "head": nn.Linear(4, 4)})
    config = {
        "optimizer": {"type": "AdamW", "lr": 1e-2, "weight_decay": 0.05},
        "constructor": "LayerDecayConstructor",
        "paramwise_cfg": {"rate": 0.5, "decay_position_embedding": False},
    }
    groups = build_optim_wrapper(model, ConfigDict(config)).optimizer.param_groups
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    rows = decay_table(model, 0.5, decay_position_embedding=False)
    assert found == {row.name: (pytest.approx(1e-2 * row.lr_scale), 0.05 if row.decayed else 0.0) for row in rows}
    assert found["backbone.network.vit.blocks.0.mlp.fc1.weight"] == (pytest.approx(1e-2 / 4), 0.05)


def test_the_optimizer_is_written_down_as_it_is(nano, tmp_path):
    model = nn.ModuleDict({"backbone": DensewalkBackbone(str(nano), [1], final_norm=False), "head": nn.Linear(4, 4)})
    decay = {"rate": 0.5, "decay_position_embedding": False}
    optimizer = {"type": "AdamW", "lr": 1e-2, "weight_decay": 0.05}
    config = {"optimizer": optimizer, "constructor": "LayerDecayConstructor", "paramwise_cfg": decay}
    optimizer = build_optim_wrapper(model, ConfigDict(config)).optimizer
    LinearLR(optimizer, start_factor=0.1)  # the warm-up must not show
    write_table(model, optimizer, tmp_path / "optimizer.csv")
    with (tmp_path / "optimizer.csv").open() as file:
        rows = {row["parameter"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    prefix = "backbone.network.vit."
    expected = {
        f"{prefix}pos_embed": ("1x197x48", "0.125", "0.00125", "0"),
        f"{prefix}blocks.0.norm1.weight": ("48", "0.25", "0.0025", "0"),
        f"{prefix}blocks.1.mlp.fc1.weight": ("192x48", "0.5", "0.005", "0.05"),
        "head.weight": ("4x4", "1", "0.01", "0.05"),
        "head.bias": ("4", "1", "0.01", "0"),
    }
    assert {name: tuple(rows[name].values())[1:] for name in expected} == expected


# -- pyramids --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [8, 14, 16])
def test_pyramid_levels_have_the_strides_they_say(patch):
    assert strides(16) == [4, 8, 16, 32, 64]
    assert strides(8) == [4, 8, 16, 32, 64]
    assert strides(14) == [3.5, 7, 14, 28, 56]
    rows, columns = 8, 12
    maps = [torch.randn(2, 12, rows, columns) for _ in range(4)]
    for module in (pyramid.SimplePyramid(12, patch, channels=6), pyramid.LevelPyramid(12, patch, channels=6)):
        levels = module(maps)
        sizes = [(round(rows * patch / stride), round(columns * patch / stride)) for stride in strides(patch)]
        assert [tuple(level.shape) for level in levels] == [(2, 6, *size) for size in sizes]


def test_level_pyramid_rescales_like_feature2pyramid():
    from mmseg.models.necks import Feature2Pyramid

    for patch in (16, 8):
        torch.manual_seed(0)
        ours = pyramid.LevelPyramid(12, patch, channels=6).eval()
        theirs = Feature2Pyramid(12, rescales=list(scales(patch)), norm_cfg={"type": "BN"}).eval()
        weights = [v for k, v in ours.state_dict().items() if k.startswith("rescale")]
        theirs.load_state_dict(dict(zip(theirs.state_dict(), weights, strict=True)))
        maps = [torch.randn(1, 12, 8, 8) for _ in range(4)]
        changed = [change(m) for change, m in zip(ours.rescale, maps, strict=True)]
        assert all(torch.equal(a, b) for a, b in zip(changed, theirs(maps), strict=True))


def test_simple_pyramid_looks_at_the_last_map_only_and_narrows_as_vitdet():
    module = pyramid.SimplePyramid(16, 16, channels=6)
    maps = [torch.randn(1, 16, 4, 4) for _ in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(module(maps), module([maps[0] * 0, maps[3]]), strict=True))
    shapes = [tuple(p.shape[:2]) for p in module.rescale[0].parameters() if p.ndim == 4]
    assert shapes == [(16, 8), (8, 4)]
    assert [project[0].in_channels for project in module.project] == [4, 8, 16, 16]


def test_pyramids_are_float32_under_autocast():
    maps = [torch.randn(1, 12, 4, 4) for _ in range(4)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for module in (pyramid.SimplePyramid(12, 16, channels=6), pyramid.LevelPyramid(12, 16, channels=6)):
            assert {level.dtype for level in module(maps)} == {torch.float32}


# -- the linear head and the score -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "levels"), [("dinov2", [11]), ("dinov2_4layers", [8, 9, 10, 11]), ("ibot", [3, 5, 7, 11])])
def test_linear_head_is_a_1x1_convolution_after_batch_normalization_or_none(nano, preset, levels):
    arch = Architecture("vit_nano_patch16", dim=6, depth=12, heads=2, patch=16)
    model = mmseg.linear(Ade20kLinearSettings(root="x", dataset="x", classes=3, preset=preset), str(nano), arch)
    with DefaultScope.overwrite_default_scope("mmseg"):
        head = MODELS.build(ConfigDict(model["decode_head"])).train()
    maps = [torch.randn(2, 6, 4, 5) * 3 + 1 for _ in levels]
    x = torch.cat(maps, dim=1).double()
    mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)
    weight, bias = head.conv_seg.weight[:, :, 0, 0].double(), head.conv_seg.bias.double()
    normalized = x if preset == "ibot" else (x - mean) / (variance + 1e-5).sqrt()
    expected = torch.einsum("oc,bchw->bohw", weight, normalized) + bias[None, :, None, None]
    torch.testing.assert_close(head(maps).double(), expected, rtol=1e-5, atol=1e-5)
    assert model["backbone"]["levels"] == levels
    norm = set() if preset == "ibot" else {"bn.weight", "bn.bias"}
    assert {name for name, _ in head.named_parameters()} == norm | {"conv_seg.weight", "conv_seg.bias"}


def test_the_score_is_mmsegmentations():
    from mmseg.evaluation import IoUMetric

    rng = np.random.default_rng(0)
    ours, theirs = segmentation.SegmentationScore(6, shown=1), IoUMetric()
    theirs.dataset_meta = {"classes": tuple("abcdef")}
    for i in range(3):
        truth, guess = torch.tensor(rng.integers(0, 5, (1, 20, 30))), torch.tensor(rng.integers(0, 5, (1, 20, 30)))
        truth[:, :4] = 255
        sample = {"pred_sem_seg": {"data": guess}, "gt_sem_seg": {"data": truth}, "img_path": str(i)}
        ours.process(None, [sample])
        theirs.process(None, [sample])
    found = ours.evaluate(3)
    result = summarize(found["score/confusion"], list("abcdef"), 3)
    expected = theirs.evaluate(3)
    assert {k: round(v, 2) for k, v in result.metrics.items()} == {
        k: pytest.approx(float(expected[k]), abs=0.011) for k in ("mIoU", "mAcc", "aAcc")
    }
    assert list(found["score/shown"]) == ["0"]
    assert len(result.details["IoU"]) == 5


# -- data ------------------------------------------------------------------------------------------------------------


@given(length=st.integers(1, 12), batch=st.integers(1, 5), skip=st.integers(0, 40), seed=st.integers(0, 9), grouped=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_stream_is_the_same_wherever_it_begins(length, batch, skip, seed, grouped):
    groups = [i % 3 == 0 for i in range(length)] if grouped else None
    whole = list(islice(ItemStream(length, seed, batch_size=batch, groups=groups), skip + 20))
    resumed = ItemStream(length, seed, batch_size=batch, groups=groups)
    resumed.skip(skip)
    assert list(islice(resumed, 20)) == whole[skip:]
    if groups:
        complete = len(whole) // batch * batch
        for start in range(0, complete, batch):
            assert len({groups[item.index] for item in whole[start : start + batch]}) == 1
    else:
        for start in range(0, len(whole) - length + 1, length):
            assert sorted(item.index for item in whole[start : start + length]) == list(range(length))


def test_epochs_and_seeds_differ():
    first, other = (list(islice(ItemStream(30, seed), 60)) for seed in (0, 1))
    assert [i.index for i in first[:30]] != [i.index for i in first[30:]] != [i.index for i in other[:30]]
    assert len({i.seed for i in first}) == 60


def test_no_image_is_an_error_and_not_an_endless_search():
    with pytest.raises(ValueError, match="no training image"):
        ItemStream(0, 0)


def test_samples_depend_on_their_item_alone():
    class Draws:
        metainfo: ClassVar = {"classes": ("a",)}

        def __len__(self):
            return 3

        def __getitem__(self, index):
            return index, random.random(), np.random.rand(), float(torch.rand(()))  # noqa: NPY002

    data = SeededDataset(Draws())
    one = data[Item(1, 77)]
    data[Item(2, 78)]
    assert data[Item(1, 77)] == one
    assert data[Item(1, 79)][1:] != one[1:]
    assert data.metainfo == {"classes": ("a",)}
    assert len(data) == 3


# -- the runner's circumstances --------------------------------------------------------------------------------------


def test_determinism_ends_with_its_block():
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic
    with deterministic_kernels(None, torch.device("cpu")):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic) == before


def test_precision_is_bfloat16_on_cuda_only():
    assert runner.precision(torch.device("cuda", 0)) == {"type": "AmpOptimWrapper", "dtype": "bfloat16", "loss_scale": 1.0}
    assert runner.precision(torch.device("cpu")) == {"type": "OptimWrapper"}


def test_detections_become_result_records():
    instances = {
        "bboxes": torch.tensor([[1.0, 2.0, 4.0, 6.0]]),
        "scores": torch.tensor([0.5]),
        "labels": torch.tensor([1]),
        "masks": torch.ones(1, 3, 4, dtype=torch.bool),
    }
    (record,) = detection.detections(7, instances, [3, 90])
    assert record == {
        "image_id": 7,
        "category_id": 90,
        "score": 0.5,
        "bbox": [1.0, 2.0, 3.0, 4.0],
        "segmentation": {"size": [3, 4], "counts": record["segmentation"]["counts"]},
    }
    nothing = {
        "bboxes": torch.zeros(0, 4),
        "scores": torch.zeros(0),
        "labels": torch.zeros(0, dtype=torch.long),
        "masks": torch.zeros(0, 3, 4),
    }
    assert detection.detections(7, nothing, [3, 90]) == []
