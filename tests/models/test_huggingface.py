"""Vision transformers from Hugging Face's folders, against transformers itself on networks with random weights."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from densewalk.core.errors import UserError
from densewalk.models.export import export_backbone
from densewalk.models.loading import create, load

transformers = pytest.importorskip(
    "transformers", reason="transformers computes what is compared with: pip install -r requirements-dev.txt"
)

SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6, "image_size": 64, "patch_size": 16}
MLP = {"intermediate_size": 96}
FAMILIES = {
    "vit": ("ViT", MLP),
    "vit_mae": ("ViTMAE", MLP | {"mask_ratio": 0.0}),
    "dinov2": ("Dinov2", {}),
    "dinov2_gated": ("Dinov2", {"use_swiglu_ffn": True}),
    "dinov2_with_registers": ("Dinov2WithRegisters", {}),
    "dinov3_vit": ("DINOv3ViT", {"intermediate_size": 192, "num_register_tokens": 4}),
    "dinov3_vit_gated": (
        "DINOv3ViT",
        {"intermediate_size": 192, "num_register_tokens": 4, "use_gated_mlp": True, "hidden_act": "silu", "rope_theta": 50.0},
    ),
    "clip": ("CLIPVision", MLP),
    "siglip": ("SiglipVision", MLP),
}


def make(family, folder):
    """A network of transformers with random weights, saved as a folder."""
    name, more = FAMILIES[family]
    torch.manual_seed(0)
    net = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**SMALL, **more)).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    net.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}))
    return net


def arch_of(family):
    return f"huggingface/{family.removesuffix('_gated')}"


def expected(family, net, x, **options):
    """Patch tokens and pooled vector after the final norm."""
    if family == "vit_mae":  # which would shuffle the patches
        options["noise"] = torch.arange(16.0)[None].repeat(len(x), 1)
    out = net(x, **options)
    last = out.last_hidden_state
    if family in ("clip", "siglip"):
        patches = net.post_layernorm(last)[:, 1:] if family == "clip" else last
        return patches, out.pooler_output
    return last[:, 1 + (4 if "registers" in family or "dinov3" in family else 0) :], last[:, 0]


@pytest.mark.parametrize("family", FAMILIES)
def test_features_equal_transformers_also_after_an_export(family, tmp_path):
    net = make(family, tmp_path)
    network = load(tmp_path, arch_of(family)).eval()
    assert network.statistics == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert ("attention" in network.abilities) == (family != "siglip")
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    export_backbone(network, tmp_path / "e.safetensors", run="r", config_hash="0")
    with torch.inference_mode():
        patches, pooled = expected(family, net, x)
        for own in (network, load(tmp_path / "e.safetensors").eval()):
            torch.testing.assert_close(own.dense(x).flatten(2).transpose(1, 2), patches, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(own.pooled(x), pooled, rtol=1e-5, atol=1e-5)
            assert own.keys(x).shape == (2, 16, 48)


@pytest.mark.parametrize("family", ["vit", "clip", "siglip", "dinov2", "dinov2_with_registers"])
def test_positions_at_other_sizes_equal_transformers(family, tmp_path):
    net = make(family, tmp_path)
    rule = {"dinov2": "size"}.get(family)  # ours is Meta's
    network = load(tmp_path, arch_of(family), interpolation=rule).eval()
    x = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    options = {} if family.startswith("dinov2") else {"interpolate_pos_encoding": True}
    with torch.inference_mode():
        patches, _ = expected(family, net, x, **options)
        torch.testing.assert_close(network.dense(x).flatten(2).transpose(1, 2), patches, rtol=1e-5, atol=1e-5)


def test_bad_folders_are_named(tmp_path):
    make("clip", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=re.escape("model_type 'clip_vision_model' for huggingface/vit; allowed: vit")):
        load(tmp_path, "huggingface/vit")
    norm = next(k for k in weights if k.endswith("post_layernorm.weight"))
    save_file({k: v for k, v in weights.items() if k != norm}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"missing: norm.weight"):
        load(tmp_path, "huggingface/clip")
    save_file(weights | {norm.replace("post_layernorm", "extra"): torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"not expected: extra.weight"):
        load(tmp_path, "huggingface/clip")
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config.json does not exist"):
        load(tmp_path, "huggingface/clip")


def test_dinov3_convnexts_equal_transformers(tmp_path):
    """Its file alone: timm's name says the shape."""
    torch.manual_seed(0)
    net = transformers.DINOv3ConvNextModel(transformers.DINOv3ConvNextConfig()).eval()  # the tiny one
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
    net.save_pretrained(tmp_path)
    network = load(tmp_path / "model.safetensors", "timm/convnext_tiny.dinov3_lvd1689m").eval()
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        out = net(x)
        torch.testing.assert_close(network.dense(x).flatten(2).transpose(1, 2), out.last_hidden_state[:, 1:], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(network.pooled(x), out.pooler_output, rtol=1e-5, atol=1e-5)


def test_a_kind_of_folder_is_no_network_by_its_name(tmp_path):
    with pytest.raises(UserError, match=r"huggingface/vit is a kind of folder, whose config\.json says the network"):
        create("huggingface/vit", seed=0)
    export_backbone(create("vit_nano_patch16", seed=0), tmp_path / "own.safetensors", run="r", config_hash="h")
    with pytest.raises(UserError, match="holds a vit_nano_patch16, not a huggingface/vit; to do: set arch: vit_nano_patch16"):
        load(tmp_path / "own.safetensors", "huggingface/vit")
