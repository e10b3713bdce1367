"""DINOv3's files in all their layouts give the features of a forward pass written from the architecture."""

import os
import re

import pytest
import timm
import torch
from safetensors.torch import save_file

from densewalk.core.errors import UserError
from densewalk.methods.dino.method import Dino
from densewalk.methods.dora.method import Dora
from densewalk.methods.timetuning.method import TimeTuning
from densewalk.models.export import export_backbone, write_card
from densewalk.models.loading import create, load
from densewalk.models.surgery import without_registers
from densewalk.models.timm_models import named_architecture
from tests.fixtures.methods import dino, dora, neco, timetuning
from tests.fixtures.official_dinov3 import meta_tokens, meta_weights, timm_weights, transformers_weights

ARCHS = ["vit_nano_patch16_reg4_rope", "vit_nano_patch16_reg4_swiglu_rope"]
FACTS = {
    "method": "none",
    "run": "r",
    "seed": 0,
    "compat": "",
    "init": "x",
    "data": "",
    "config_hash": "h",
    "commit": "c",
    "loaded": "",
    "made": "- commit c",
}


def images(rows=2, columns=3):
    return torch.randn(2, 3, 16 * rows, 16 * columns, generator=torch.Generator().manual_seed(7))


def saved(weights, path, kind=None):
    """Written as its suffix says, or as `kind` does."""
    weights = {k: v.contiguous() for k, v in weights.items()}
    save_file(weights, path) if (kind or path.suffix) == ".safetensors" else torch.save(weights, path)
    return path


def all_tokens(backbone, pictures):
    with torch.no_grad():
        tokens = backbone.eval().tokens(pictures)
    return torch.cat([tokens.cls[:, None], tokens.registers, tokens.patches], dim=1)


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize("grid", [(2, 3), (5, 1)])
def test_metas_layout_gives_the_official_features(name, grid, tmp_path):
    arch = named_architecture(name)
    weights = meta_weights(arch) | {"rope_embed.periods": torch.tensor([1.0, 9.5])}
    backbone = load(saved(weights, tmp_path / "dinov3.pth"), name).eval()
    levels, attention = meta_tokens(weights, images(*grid), arch)
    found = all_tokens(backbone, images(*grid))
    assert found.shape == levels[-1].shape
    assert (found - levels[-1]).abs().max() < 1e-4
    with torch.no_grad():
        last = backbone.last_block(images(*grid))
        first, _ = backbone.levels(images(*grid), [0, 1], norm=True)
    assert (last.cls_attention - attention).abs().max() < 1e-5
    assert (first - levels[0][:, 5:].transpose(1, 2).unflatten(2, grid)).abs().max() < 1e-4
    report = str(backbone.report)
    assert "; not taken: mask_token (1); " in report
    assert report.endswith("; DINOv3's names changed to timm's; positions are rotary, for any size")
    assert backbone.report.parameters == sum(p.numel() for p in backbone.vit.parameters())


@pytest.mark.parametrize("name", ARCHS)
@pytest.mark.parametrize("layout", ["timm", "timm without biases", "transformers"])
def test_the_other_layouts_give_the_same(name, layout, tmp_path):
    arch = named_architecture(name)
    weights = meta_weights(arch)
    # they leave the periods to the program, in float32
    weights["rope_embed.periods"] = torch.tensor([1.0, 10.0])
    if layout == "timm without biases":
        weights |= {k: torch.zeros_like(v) for k, v in weights.items() if k.endswith(".qkv.bias")}
    packed = transformers_weights(weights) if layout == "transformers" else timm_weights(weights, biased=layout == "timm")
    backbone = load(saved(packed, tmp_path / "model.safetensors"), name)
    assert (all_tokens(backbone, images()) - meta_tokens(weights, images(), arch)[0][-1]).abs().max() < 1e-4
    assert backbone.arch.periods is None
    assert ("which the file leaves out, are zero" in str(backbone.report)) == (layout == "timm without biases")


def test_a_file_that_was_saved_under_the_list_s_name_is_known_by_its_content(tmp_path):
    weights = meta_weights(named_architecture(ARCHS[0]))
    load(saved(transformers_weights(weights), tmp_path / "dinov3_vits16.pth", ".safetensors"), ARCHS[0])
    for content in (b"", b"PK", b"12345678{", b"\xff" * 8 + b"{}"):
        (tmp_path / "tiny.pth").write_bytes(content)
        with pytest.raises(UserError, match=r"tiny.pth cannot be read safely: \S"):
            load(tmp_path / "tiny.pth", ARCHS[0])


def test_metas_rounded_periods_are_kept_through_exports(tmp_path):
    arch = named_architecture("vit_small_patch16_reg4_rope")
    rounded = [100 ** (k / 16) for k in range(16)]
    weights = meta_weights(named_architecture("vit_nano_patch16_reg4_rope"))
    weights["rope_embed.periods"] = torch.tensor([1.0, 9.5])
    backbone = load(saved(weights, tmp_path / "dinov3.pth"), "vit_nano_patch16_reg4_rope")
    export_backbone(backbone, tmp_path / "backbone.safetensors", run="r", config_hash="h")
    again = load(tmp_path / "backbone.safetensors")
    assert again.arch == backbone.arch
    assert again.arch.periods == (1.0, 9.5)
    assert torch.equal(all_tokens(again, images()), all_tokens(backbone, images()))
    # bfloat16's numbers differ from the computed ones by up to 0.4 %
    assert torch.tensor(rounded).bfloat16().tolist() != rounded
    assert create(arch, seed=0).vit.rope.periods.tolist() == pytest.approx(rounded)


@pytest.mark.parametrize("name", ARCHS)
def test_the_cards_lines_give_the_network_in_timm(name, tmp_path):
    backbone = load(
        saved(meta_weights(named_architecture(name)) | {"rope_embed.periods": torch.tensor([1.0, 9.5])}, tmp_path / "w.pth"), name
    )
    export_backbone(backbone, tmp_path / "backbone.safetensors", run="r", config_hash="h")
    write_card(backbone, tmp_path / "card.md", FACTS)
    (lines,) = re.findall(r"```python\n(.*?)```", (tmp_path / "card.md").read_text(), re.DOTALL)
    scope = {"images": images()}
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        with torch.no_grad():
            exec(lines, scope)
    finally:
        os.chdir(here)
    torch.testing.assert_close(scope["patch_tokens"], all_tokens(backbone, images())[:, 5:], atol=1e-5, rtol=0)


def test_a_file_of_timms_network_loads_by_timms_name(tmp_path):
    model = timm.create_model("vit_tiny_patch16_dinov3_qkvb", num_classes=0).eval()
    name = "timm/vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m"
    backbone = load(saved(model.state_dict(), tmp_path / "model.safetensors"), name)
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images(3, 5)), all_tokens(backbone, images(3, 5)), atol=1e-5, rtol=0)
    for other in ("small", "base", "large", "huge_plus"):
        arch = named_architecture(f"timm/vit_{other}_patch16_dinov3.lvd1689m")
        own = {"small": "small", "base": "base", "large": "large", "huge_plus": "huge20"}[other]
        named = named_architecture(f"vit_{own}_patch16_reg4{'_swiglu' * ('plus' in other)}_rope")
        assert (arch.dim, arch.depth, arch.heads, arch.swiglu, arch.hidden, arch.registers) == (
            (named.dim, named.depth, named.heads, named.swiglu, named.hidden, named.registers)
        )


def test_registers_can_be_dropped(tmp_path):
    arch = named_architecture("vit_nano_patch16_reg4_swiglu_rope")
    weights = meta_weights(arch)
    plain = without_registers(load(saved(weights, tmp_path / "w.pth"), arch.name))
    weights["storage_tokens"] = weights["storage_tokens"][:, :0]
    expected = meta_tokens(weights, images(), named_architecture("vit_nano_patch16_swiglu_rope"))[0][-1]
    assert (all_tokens(plain, images()) - expected).abs().max() < 1e-4
    export_backbone(plain, tmp_path / "backbone.safetensors", run="r", config_hash="h")
    assert load(tmp_path / "backbone.safetensors").arch == plain.arch
    assert plain.arch.name == "vit_nano_patch16_swiglu_rope"


@pytest.mark.parametrize(
    ("change", "arch", "message"),
    [
        ({}, "vit_nano_patch16_reg4", r"w.pth has the rotary positions of DINOv3, vit_nano_patch16_reg4 has none; to do: set arch"),
        ({}, "vit_nano_patch16_reg4_swiglu_rope", r"does not fit the network; missing: blocks.0.mlp.fc1_g.bias"),
        ({"rope_embed.periods": torch.ones(3)}, ARCHS[0], r"rotary periods \[1.0, 1.0, 1.0\]; allowed: 2 positive numbers"),
        ({"rope_embed.periods": torch.tensor([1.0, torch.nan])}, ARCHS[0], "rope_embed.periods holds NaN or infinite numbers"),
        ({"blocks.1.attn.qkv.bias_mask": torch.ones(144)}, ARCHS[0], "blocks.1.attn.qkv.bias is not zero for the keys"),
    ],
)
def test_what_does_not_fit_is_explained(change, arch, message, tmp_path):
    saved(meta_weights(named_architecture(ARCHS[0])) | change, tmp_path / "w.pth")
    with pytest.raises(UserError, match=message):
        load(tmp_path / "w.pth", arch)


def test_a_plain_file_is_no_dinov3(tmp_path):
    saved(create("vit_nano_patch16_reg4", seed=0).vit.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match="is none of DINOv3's, whose positions are rotary; to do: take `_rope` off `arch`"):
        load(tmp_path / "w.pth", ARCHS[0])


def test_recomputed_blocks_have_the_same_gradients():
    backbone, grads = create(ARCHS[0], seed=0), []
    for on in (False, True):
        backbone.gradient_checkpointing = on
        backbone.zero_grad()
        backbone.dense(images()).square().sum().backward()
        grads.append([p.grad.clone() for p in backbone.parameters() if p.grad is not None])
    assert len(grads[0]) > 20
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def first_batches(backbone):
    """Every method on a DINOv3 backbone, and a batch for it."""
    for registers in ("keep", "drop"):
        method = neco.neco(backbone, registers=registers)
        yield method, neco.batch_of(method)
    yield TimeTuning(timetuning.small(), backbone, 4, 2, seed=3), timetuning.clips(2, 3)
    settings = dino.small_settings()
    yield Dino(settings, backbone, 5, 1, seed=0), dino.random_batch(settings)
    settings = dora.small_settings()
    yield Dora(settings, backbone, 5, 1, seed=0), dora.random_batch(settings)


@pytest.mark.parametrize("number", range(5))
def test_every_method_learns_from_dinov3(number, tmp_path):
    arch = named_architecture(ARCHS[0])
    loaded = load(saved(meta_weights(arch) | {"rope_embed.periods": torch.tensor([1.0, 9.5])}, tmp_path / "w.pth"), arch.name)
    method, batch = list(first_batches(loaded))[number]
    before = {k: v.clone() for k, v in method.student.backbone.vit.state_dict().items()}
    loss, gradients, _ = timetuning.one_update(method, batch, at=1)
    assert loss.isfinite()
    assert all(g.isfinite().all() for g in gradients.values())
    after = method.student.backbone.vit.state_dict()
    last = [k for k in before if k.startswith("blocks.1.") and k.endswith((".weight", "_bias"))]
    assert len(last) >= 8
    assert all(not torch.equal(after[k], before[k]) for k in last)
    export_backbone(method.export(), tmp_path / "backbone.safetensors", run="r", config_hash="h")
    again = load(tmp_path / "backbone.safetensors")
    assert again.arch == method.export().arch
    assert again.arch.periods == (1.0, 9.5)
    assert torch.equal(all_tokens(again, images()), all_tokens(method.export(), images()))
