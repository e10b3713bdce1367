import argparse
import math
import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from densewalk.core.errors import UserError
from densewalk.models.architecture import SIZES
from densewalk.models.backbone import interpolate_positions
from densewalk.models.blocks import run_block
from densewalk.models.export import export_backbone
from densewalk.models.layouts.key_names import to_timm
from densewalk.models.loading import create, load
from densewalk.models.timm_models import named_architecture
from densewalk.ops.cpu.switch import set_cpu_kernels
from tests.fixtures.official import cubic, official_tokens, official_weights

ARCHS = [f"vit_nano_patch{name}" for name in ("8", "14", "16", "14_reg4", "16_reg4", "14_swiglu")]
ROTARY = [f"vit_nano_patch16{name}_rope" for name in ("", "_reg4", "_reg4_swiglu")]


@pytest.mark.parametrize("name", ["vit_nano_patch16", "vit_nano_patch14", "vit_nano_patch14_reg4", "vit_nano_patch14_reg4_swiglu"])
def test_official_layouts_give_the_official_features(name, tmp_path):
    arch = named_architecture(name)
    weights = official_weights(arch)
    torch.save(weights, tmp_path / "official.pth")
    backbone = load(tmp_path / "official.pth", name).eval()
    images = torch.randn(1, 3, arch.image, arch.image)
    with torch.no_grad():
        tokens = backbone.tokens(images)
    expected = official_tokens(weights, images, arch)[-1]
    found = torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], dim=1)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", ARCHS + ROTARY)
def test_every_view_of_the_network_agrees(name):
    backbone = create(name, seed=1).eval()
    images = torch.randn(2, 3, 3 * backbone.patch, 5 * backbone.patch)
    with torch.no_grad():
        tokens, last = backbone.tokens(images), backbone.last_block(images)
        cls, key = backbone.cls_and_keys(images)
        (deepest,) = backbone.levels(images, [backbone.arch.depth - 1], norm=True)
    assert tokens.grid == (3, 5)
    assert tokens.registers.shape[1] == backbone.arch.registers
    torch.testing.assert_close(last.tokens.patches, tokens.patches, atol=1e-5, rtol=0)
    torch.testing.assert_close(backbone.cls(images), tokens.cls, atol=1e-5, rtol=0)
    torch.testing.assert_close(cls, tokens.cls, atol=1e-5, rtol=0)
    torch.testing.assert_close(key, last.key)
    torch.testing.assert_close(backbone.dense(images)[:, :, 1, 2], tokens.patches[:, 7], atol=1e-5, rtol=0)
    torch.testing.assert_close(deepest, tokens.dense(), atol=1e-5, rtol=0)


def test_cls_attention_is_the_softmax_row_of_cls():
    backbone = create("vit_nano_patch16_reg4", seed=2).eval()
    with torch.no_grad():
        last = backbone.last_block(torch.randn(2, 3, 32, 48))
    for b in range(2):
        for h in range(6):
            scores = [float(last.query[b, h, 0] @ last.key[b, h, t]) / math.sqrt(8) for t in range(1 + 4 + 6)]
            total = sum(math.exp(s) for s in scores)
            row = [math.exp(s) / total for s in scores[5:]]
            assert last.cls_attention[b, h].tolist() == pytest.approx(row, rel=1e-5)


def test_gradient_checkpointing_changes_nothing():
    backbone = create("vit_nano_patch16", seed=0)
    images = torch.randn(1, 3, 32, 32)
    grads = []
    for on in (False, True):
        backbone.gradient_checkpointing = on
        backbone.zero_grad()
        backbone.dense(images).square().sum().backward()
        grads.append(backbone.vit.blocks[0].mlp.fc1.weight.grad.clone())
    torch.testing.assert_close(grads[0], grads[1])


def test_timm_agrees_where_its_interpolation_is_the_familys():
    # timm resamples by size with antialias: DINOv2 with registers does too
    backbone = create("vit_nano_patch14_reg4", seed=3).eval()
    images = torch.randn(1, 3, 70, 98)
    with torch.no_grad():
        torch.testing.assert_close(backbone.vit.forward_features(images)[:, 5:], backbone.tokens(images).patches, atol=1e-5, rtol=0)


@given(st.integers(3, 9), st.integers(2, 12), st.integers(2, 12))
@settings(max_examples=20, deadline=None)
def test_offset_interpolation_is_bicubic_with_dinos_scale(side, rows, cols):
    if (rows, cols) == (side, side):
        return
    table = torch.randn(1, side * side, 1, dtype=torch.float64)
    found = interpolate_positions(table.float(), (rows, cols), "offset")[0, :, 0].unflatten(0, (rows, cols))
    image = table[0, :, 0].unflatten(0, (side, side))
    for i in {0, rows // 2, rows - 1}:
        for j in {0, cols // 2, cols - 1}:
            y, x = ((i + 0.5) * side / (rows + 0.1) - 0.5, (j + 0.5) * side / (cols + 0.1) - 0.5)
            value = 0.0
            for m in range(math.floor(y) - 1, math.floor(y) + 3):
                for n in range(math.floor(x) - 1, math.floor(x) + 3):
                    clamped = image[min(max(m, 0), side - 1), min(max(n, 0), side - 1)]
                    value += float(clamped) * cubic(y - m, -0.75) * cubic(x - n, -0.75)
            assert float(found[i, j]) == pytest.approx(value, abs=1e-4)


def test_families_differ_and_the_native_grid_is_untouched():
    table = torch.randn(1, 196, 4)
    assert interpolate_positions(table, (14, 14), "offset") is table
    results = [interpolate_positions(table, (7, 7), mode) for mode in ("offset", "antialias", "size")]
    assert (results[0] - results[2]).norm() > 0.005 * results[2].norm()
    assert (results[1] - results[2]).norm() > 0.02 * results[2].norm()


def test_an_image_that_would_lose_pixels_is_refused():
    with pytest.raises(ValueError, match="multiples of the patch size 16"):
        create("vit_nano_patch16", seed=0).dense(torch.randn(1, 3, 32, 40))


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two = create("vit_nano_patch16", seed=0), create("vit_nano_patch16", seed=0)
    other = create("vit_nano_patch16", seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(one.vit.blocks[0].attn.qkv.weight, two.vit.blocks[0].attn.qkv.weight)
    assert not torch.equal(one.vit.blocks[0].attn.qkv.weight, other.vit.blocks[0].attn.qkv.weight)


def test_equal_networks_give_equal_files_that_everybody_may_read(tmp_path):
    contents = set()
    for number in range(8):
        path = tmp_path / f"{number}.safetensors"
        export_backbone(create("vit_nano_patch16", seed=0), path, run="r", config_hash="h")
        contents.add(path.read_bytes())
        mask = os.umask(0)
        os.umask(mask)
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert len(contents) == 1
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "arch": "vit_nano_patch16", "interpolation": "offset", "run": "r", "config_hash": "h"}


@pytest.mark.parametrize("name", ARCHS)
def test_export_round_trip_through_timm(name, tmp_path):
    backbone = create(name, seed=4)
    export_backbone(backbone, tmp_path / "backbone.safetensors", run="x-s0", config_hash="abc")
    again = load(tmp_path / "backbone.safetensors")
    assert again.arch == backbone.arch
    a = backbone.arch
    model = VisionTransformer(
        img_size=a.image,
        patch_size=a.patch,
        embed_dim=a.dim,
        depth=a.depth,
        num_heads=a.heads,
        num_classes=0,
        init_values=1e-5 if a.layer_scale else None,
        reg_tokens=a.registers,
        no_embed_class=a.registers > 0,
        **({"mlp_ratio": 128 * 2 / 48, "mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU} if a.swiglu else {}),
    )
    model.load_state_dict(load_file(tmp_path / "backbone.safetensors"))
    for key, value in again.vit.state_dict().items():
        assert torch.equal(value, model.state_dict()[key])


def test_training_checkpoints_lose_their_wrappers_and_heads(tmp_path):
    weights = create("vit_nano_patch16", seed=0).vit.state_dict()
    teacher = {f"backbone.{k}": v + 1 for k, v in weights.items()} | {"head.mlp.0.weight": torch.zeros(2)}
    student = {f"module.backbone.{k}": v for k, v in weights.items()}
    torch.save({"student": student, "teacher": teacher, "epoch": 3}, tmp_path / "full.pth")
    for key, more in (("teacher", 1), ("student", 0)):
        assert torch.equal(load(tmp_path / "full.pth", "vit_nano_patch16", key=key).vit.cls_token, weights["cls_token"] + more)
    with pytest.raises(UserError, match=r"no network 'ema'; allowed: student.module.backbone, teacher.backbone"):
        load(tmp_path / "full.pth", "vit_nano_patch16", key="ema")
    with pytest.raises(UserError, match=r"holds several networks: student.module.backbone, teacher.backbone; to do: say with `key`"):
        load(tmp_path / "full.pth", "vit_nano_patch16")


def under(prefix, weights):
    """Weights with a longer name."""
    return {f"{prefix}{k}": v for k, v in weights.items()}


HEAD = {f"{i}.{kind}": torch.zeros(2) for i in (0, 2, 4) for kind in ("weight", "bias")}
# how a file holds the networks `one` (wanted) and `other` -> the key that chooses `one`
RELEASED = {
    "NeCo's hub files": (None, lambda one, _: one),
    "NeCo's training, student": ("model", lambda one, other: lightning(under("model.", one) | under("teacher.", other))),
    "NeCo's training, teacher": ("teacher", lambda one, other: lightning(under("model.", other) | under("teacher.", one))),
    "Leopart": (None, lambda one, _: lightning(under("model.", one | {"prototypes.weight": torch.zeros(2)}))),
    "TimeT.pth": (None, lambda one, _: timet(one)),
    "TimeT.pth with a teacher": ("feature_extractor", lambda one, other: timet(one) | under("teacher.backbone.", other)),
    "TimeT.pth, its teacher": ("teacher", lambda one, other: timet(other) | under("teacher.backbone.", one)),
    "Time-Tuning's checkpoint.pth": ("teacher", lambda one, other: {"epoch": 1, "model": timet(other) | under("teacher.backbone.", one)}),
}


def lightning(weights):
    """A Lightning checkpoint with NeCo's projection heads."""
    heads = {f"{n}.projection_head.{k}": v for n in {k.split(".")[0] for k in weights} for k, v in HEAD.items()}
    return {"epoch": 1, "state_dict": weights | heads, "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}]}


def timet(weights):
    """The state dict of a TimeT module."""
    prototypes = {"prototypes": torch.zeros(2, 2), "teacher_prototypes": torch.zeros(2, 2)}
    return prototypes | under("feature_extractor.backbone.", weights) | under("feature_extractor.head.", HEAD)


@pytest.mark.parametrize("name", ["vit_nano_patch16", "vit_nano_patch14_reg4"])
@pytest.mark.parametrize("layout", RELEASED)
def test_released_checkpoints_give_their_network(layout, name, tmp_path):
    arch = named_architecture(name)
    one, other = official_weights(arch, seed=1), official_weights(arch, seed=2)
    key, pack = RELEASED[layout]
    torch.save(one, tmp_path / "alone.pth")
    torch.save(pack(one, other), tmp_path / "released.ckpt")
    alone, found = load(tmp_path / "alone.pth", name), load(tmp_path / "released.ckpt", name, key=key)
    assert alone.vit.state_dict().keys() == found.vit.state_dict().keys()
    assert all(torch.equal(v, found.vit.state_dict()[k]) for k, v in alone.vit.state_dict().items())
    if key is not None:
        with pytest.raises(UserError, match=r"holds several networks: .* say with `key` which one"):
            load(tmp_path / "released.ckpt", name)


# how a file of the family holds the network -> the key that chooses it, what the report says was not taken
FAMILIES = {
    "DINO, trained": (
        "vit_nano_patch16",
        "teacher",
        lambda w: {
            "student": under("module.backbone.", w),
            "teacher": under("backbone.", w) | under("head.mlp.", HEAD),
            "args": namespace(),
        },
        "student.module.backbone (30), teacher.head (6)",
    ),
    "DINOv2, trained": (
        "vit_nano_patch14",
        None,
        lambda w: {"teacher": under("backbone.", chunked(w)) | under("dino_head.", HEAD) | under("ibot_head.", HEAD)},
        "mask_token (1), teacher.dino_head (6), teacher.ibot_head (6)",
    ),
    "iBOT": ("vit_nano_patch16", None, lambda w: {"state_dict": w | {"masked_embed": torch.zeros(1, 48)}}, "masked_embed (1)"),
    "MAE with its decoder": (
        "vit_nano_patch16",
        None,
        lambda w: {"model": w | under("decoder_blocks.0.", HEAD) | {"mask_token": torch.zeros(1, 1, 8)}},
        "decoder_blocks (6), mask_token (1)",
    ),
    "MoCo-v3": (
        "vit_nano_patch16",
        "base_encoder",
        lambda w: {
            "state_dict": under("module.base_encoder.", w | under("head.", HEAD)) | under("module.momentum_encoder.", w) | {"best": 1.0},
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}},
            "args": namespace(),
        },
        "head (6), optimizer.state (1), state_dict.module.momentum_encoder (30)",
    ),
    "SLIP's SimCLR": (
        "vit_nano_patch16",
        None,
        lambda w: {"state_dict": under("module.visual.", w) | under("module.image_mlp.", HEAD), "args": namespace()},
        "state_dict.module (6)",
    ),
    "Franca": (
        "vit_nano_patch14_swiglu",
        "teacher",
        lambda w: {"teacher": under("module.backbone.", chunked(w)) | under("module.dino_head.", HEAD)},
        "mask_token (1), teacher.module (6)",
    ),
    "mmsegmentation": (
        "vit_nano_patch16",
        None,
        lambda w: {"meta": {"history": history()}, "state_dict": under("backbone.", openmmlab(w)) | under("decode_head.", HEAD)},
        "state_dict.decode_head (6)",
    ),
}


def namespace():
    """What argparse leaves in old training files."""
    return argparse.Namespace(arch="vit_small", lr=0.1, output_dir=Path("out"))


def history():
    """What mmengine leaves in its files."""
    from mmengine.logging import HistoryBuffer

    return HistoryBuffer([1.0, 2.0], [1, 1])


def chunked(weights):
    """The blocks' names in DINOv2's training files: number of the chunk, number of the block."""
    return {re.sub(r"^blocks\.(\d+)", lambda m: f"blocks.{int(m[1]) // 2}.{m[1]}", k): v for k, v in weights.items()}


def openmmlab(weights):
    """mmsegmentation's names for a vision transformer."""
    pairs = {
        "patch_embed.proj": "patch_embed.projection",
        "blocks.": "layers.",
        "norm1": "ln1",
        "norm2": "ln2",
        "mlp.fc1": "ffn.layers.0.0",
    }
    pairs |= {"mlp.fc2": "ffn.layers.1", "attn.qkv.": "attn.attn.in_proj_", "attn.proj": "attn.attn.out_proj"}
    named = {}
    for key, value in weights.items():
        for old, new in pairs.items():
            key = key.replace(old, new)
        named["ln1" + key.removeprefix("norm") if key.startswith("norm.") else key] = value
    return named


@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_files_give_the_official_features_and_a_report(family, tmp_path):
    name, key, pack, dropped = FAMILIES[family]
    arch = named_architecture(name)
    weights = official_weights(arch, seed=1)
    torch.save(pack(weights), tmp_path / "file.pth")
    backbone = load(tmp_path / "file.pth", name, key=key).eval()
    images = torch.randn(1, 3, arch.image, arch.image)
    with torch.no_grad():
        found = backbone.tokens(images).patches
    assert (found - official_tokens(weights, images, arch)[-1][:, 1:]).abs().max() < 1e-4
    assert f"; not taken: {dropped}; " in str(backbone.report)
    assert f"{backbone.report.taken} tensors" in str(backbone.report)
    assert backbone.report.parameters == sum(p.numel() for p in backbone.vit.parameters())


def test_the_report_says_what_was_changed(tmp_path):
    torch.save(chunked(official_weights(named_architecture("vit_nano_patch14_reg4_swiglu"))), tmp_path / "file.pth")
    report = str(load(tmp_path / "file.pth", "vit_nano_patch14_reg4_swiglu").report)
    for part in ("chunks of blocks renumbered", "gated MLPs renamed", "CLS's position folded", "by the rule `antialias`"):
        assert part in report
    torch.save(official_weights(named_architecture("vit_nano_patch16")), tmp_path / "plain.pth")
    report = str(load(tmp_path / "plain.pth", "vit_nano_patch16", interpolation="size").report)
    assert "not taken" not in report
    assert "renamed" not in report
    assert report.endswith("by the rule `size`")


@pytest.mark.parametrize("name", ["vit_nano_patch14", "vit_nano_patch14_reg4"])
def test_a_table_of_another_size_is_taken_as_it_is(name, tmp_path):
    usual = named_architecture(name)
    arch = replace(usual, image=224)  # Franca's 224 px models, DINOv2's before the last iterations
    weights = official_weights(arch)
    torch.save(weights, tmp_path / "file.pth")
    backbone = load(tmp_path / "file.pth", name).eval()
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        found = backbone.tokens(images).patches
    assert (found - official_tokens(weights, images, arch)[-1][:, 1 + arch.registers :]).abs().max() < 1e-4
    assert "positions of 16 x 16 patches taken as they are, not 37 x 37" in str(backbone.report)
    export_backbone(backbone, tmp_path / "backbone.safetensors", run="x", config_hash="h")
    assert load(tmp_path / "backbone.safetensors").arch == backbone.arch


def test_a_name_of_timms_is_its_network(tmp_path):
    model = timm.create_model("deit_tiny_patch16_224.fb_in1k")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    backbone = load(tmp_path / "model.safetensors", "timm/deit_tiny_patch16_224.fb_in1k").eval()
    images = torch.randn(1, 3, 96, 64)
    reference = timm.create_model("deit_tiny_patch16_224.fb_in1k", num_classes=0, dynamic_img_size=True).eval()
    reference.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head.")})
    with torch.no_grad():
        torch.testing.assert_close(reference.forward_features(images)[:, 1:], backbone.tokens(images).patches, atol=1e-5, rtol=0)
    assert backbone.report.dropped == {"head": 2}
    export_backbone(backbone, tmp_path / "backbone.safetensors", run="x", config_hash="h")
    assert load(tmp_path / "backbone.safetensors").arch == backbone.arch


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_model", "timm knows no model 'no_such_model'"),
        ("resnet18.a1_in1k", "is a ResNet; allowed: plain vision transformers"),
        ("eva02_tiny_patch14_224.mim_in22k", "is a Eva"),
        ("vit_7b_patch16_dinov3.lvd1689m", "differs from the networks here in its parameters"),
        ("vit_base_patch16_clip_224.openai", "differs from the networks here in its parameters, normalization layers"),
    ],
)
def test_what_is_no_plain_transformer_of_timms_is_refused(name, message):
    with pytest.raises(UserError, match=message):
        named_architecture(f"timm/{name}")


def test_a_key_for_a_file_of_one_nameless_network_is_refused(tmp_path):
    torch.save(official_weights(named_architecture("vit_nano_patch16")), tmp_path / "one.pth")
    with pytest.raises(UserError, match=r"no network 'teacher'; allowed: one without a name \(leave `key` out\)"):
        load(tmp_path / "one.pth", "vit_nano_patch16", key="teacher")


def test_block_chunks_are_renumbered():
    arch = named_architecture("vit_nano_patch14")
    weights = official_weights(arch)
    chunked = {k.replace("blocks.1.", "blocks.1.1.").replace("blocks.0.", "blocks.0.0."): v for k, v in weights.items()}
    assert to_timm(chunked).keys() == to_timm(weights).keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("norm.weight"), "missing: norm.weight"),
        (lambda w: w.update(surprise=torch.zeros(1)), "not expected: surprise"),
        (lambda w: w.update(cls_token=torch.zeros(1, 1, 7)), r"wrong shape: cls_token \(1, 1, 7\) instead of \(any, any, 48\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_explained(tmp_path, change, message):
    weights = create("vit_nano_patch16", seed=0).vit.state_dict()
    change(weights)
    torch.save(weights, tmp_path / "broken.pth")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "broken.pth", "vit_nano_patch16")


class Hostile:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_hostile_checkpoint_is_not_executed(tmp_path, capsys):
    torch.save({"x": Hostile()}, tmp_path / "hostile.pth")
    with pytest.raises(UserError, match="cannot be read safely"):
        load(tmp_path / "hostile.pth", "vit_nano_patch16")
    assert "executed" not in capsys.readouterr().out


def test_a_dictionary_in_itself_has_an_end(tmp_path):
    endless = {"cls_token": torch.zeros(1)}
    endless["again"] = endless
    torch.save(endless, tmp_path / "endless.pth")
    with pytest.raises(UserError, match=r"endless.pth cannot be read: dictionaries in dictionaries without an end"):
        load(tmp_path / "endless.pth", "vit_nano_patch16")


def test_metadata_of_a_stranger_is_not_believed(tmp_path):
    weights = create("vit_nano_patch16", seed=0).vit.state_dict()
    save_file(weights, tmp_path / "w.safetensors", metadata={"arch": "vit_nano_patch16", "interpolation": "none"})
    with pytest.raises(UserError, match=r"w.safetensors: positions by the rule 'none'; allowed: offset, antialias, size"):
        load(tmp_path / "w.safetensors")
    rotary = create("vit_nano_patch16_rope", seed=0).vit.state_dict()
    for periods in ("[1", '["a", 2]', "{}", "[1, -2]"):
        save_file(rotary, tmp_path / "r.safetensors", metadata={"arch": "vit_nano_patch16_rope", "periods": periods})
        with pytest.raises(UserError, match=r"r.safetensors: rotary periods "):
            load(tmp_path / "r.safetensors")


def test_unknown_architectures_are_explained():
    for name in ("vit_vast_patch16", "resnet50", "vit_small_patch7"):
        with pytest.raises(UserError, match="unknown architecture"):
            named_architecture(name)
    assert {named_architecture(f"vit_{size}_patch16").dim for size in SIZES} == {48, 96, 192, 384, 768, 1024, 1280, 1536}


@pytest.mark.parametrize("kernels", [False, True])
def test_block_equals_timm_s_to_the_bit_and_keeps_no_activation(kernels):
    """The layers are timm's own in both: without CPU kernels torch's, with them oneDNN's."""
    block = create("vit_nano_patch16", seed=0).vit.blocks[-1]
    results, kept = [], []
    set_cpu_kernels(kernels)
    try:
        for forward in (partial(run_block, block), block):
            x, packed = torch.randn(5, 17, 48, generator=torch.Generator().manual_seed(0)).requires_grad_(), []
            block.zero_grad()
            with torch.autograd.graph.saved_tensors_hooks(lambda t, packed=packed: packed.append(t.shape) or t, lambda t: t):
                y = forward(x)
            y.square().sum().backward()
            results.append([y, x.grad, *(p.grad.clone() for p in block.parameters())])
            kept.append(sum(shape.numel() == 5 * 17 * 192 for shape in packed))
    finally:
        set_cpu_kernels(True)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert kept == [1, 2]


@pytest.mark.parametrize("rate", [0.0, 0.01])
def test_what_a_block_keeps_for_the_backward_pass(rate):
    """Of each token: both branches' input, query, key and value, what the attention gives, the hidden layer: 1 + 3 + 1 + 1 + 4 widths."""
    block = create("vit_nano_patch16", seed=0, drop_path=rate).train().vit.blocks[-1]
    own = {p.untyped_storage().data_ptr() for p in block.parameters()}
    kept = {}  # of each piece of memory, its size and a tensor that keeps it alive
    x = torch.randn(6, 50, 48, requires_grad=True)
    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.untyped_storage().data_ptr(), t) is None or t, lambda t: t):
        y = run_block(block, x)
    numbers = sum(t.untyped_storage().nbytes() // 4 for address, t in kept.items() if address not in own)
    of_attention = 6 * 50 * block.attn.num_heads  # logarithms of its sums
    assert y.requires_grad
    assert numbers <= 10 * x.numel() + of_attention + 100


@pytest.mark.parametrize("dropped", ["never", "none", "some", "all"])
@pytest.mark.parametrize("name", ["vit_nano_patch16", "vit_nano_patch14", "vit_nano_patch14_swiglu"])
def test_block_equals_timm_s_in_values_and_gradients(name, dropped):
    """With LayerScale and without; images that stochastic depth drops are the same ones."""
    rate = {"never": 0.0, "none": 0.05, "some": 0.5, "all": 0.999999}[dropped]
    block = create(name, seed=0, drop_path=rate).double().train().vit.blocks[-1]
    for number, parameter in enumerate(block.parameters()):
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(number))
    results = []
    for forward in (partial(run_block, block), block):
        x = torch.randn(6, 5, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
        torch.manual_seed(3)
        y = forward(x)
        results.append([y, *torch.autograd.grad((y**3).sum(), [x, *block.parameters()])])
    for one, two in zip(*results, strict=True):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-10)
    unchanged = (results[0][0] == x).flatten(1).all(1)
    assert {"never": not unchanged.any(), "none": not unchanged.any(), "some": True, "all": unchanged.all()}[dropped]


def test_no_work_is_done_for_dropped_images():
    block = create("vit_nano_patch16", seed=0, drop_path=0.5).train().vit.blocks[-1]
    seen = []
    block.norm2.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    torch.manual_seed(0)
    run_block(block, torch.zeros(64, 2, 48))
    assert 16 < seen[0] < 48
