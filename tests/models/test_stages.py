"""Convolutional and hierarchical networks, against torchvision's and timm's own programs."""

import re
import sys
import types
from collections import defaultdict
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch.nn import functional as F

from densewalk.core.errors import UserError
from densewalk.core.imagenet import PixelStatistics
from densewalk.models.export import export_backbone
from densewalk.models.loading import create, load
from densewalk.models.timm_models import named_shape

SWIN, RESNET, CONVNEXT = "timm/swin_tiny_patch4_window7_224", "timm/resnet50", "timm/convnext_atto"
IMAGES = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def resnet():
    """torchvision's ResNet-50 with random weights and statistics of batch normalization that matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torchvision.models.resnet50().train()
        net(torch.randn(4, 3, 64, 64))
    return net.eval()


def torchvision_maps(net, x):
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    maps = []
    for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
        x = stage(x)
        maps.append(x)
    return maps


class Stored:
    """An object under another module's name, as a file holds it that was written with that module."""

    def __init__(self, **content):
        self.__dict__.update(content)


def hydra_configuration():
    """What omegaconf leaves in the files of trainings by Hydra: classes of its own, types, and a dictionary that makes its own entries."""
    node = stored("omegaconf.nodes", "AnyNode")(_val=0.1, _metadata=stored("omegaconf.base", "Metadata")(ref_type=Any, object_type=float))
    metadata = stored("omegaconf.base", "ContainerMetadata")(element_type=Any, key_type=dict, resolver_cache=defaultdict(dict, {"now": {}}))
    several = stored("omegaconf.listconfig", "ListConfig")(_content=[node], _metadata=metadata)
    return stored("omegaconf.dictconfig", "DictConfig")(_content={"lr": node, "several": several}, _metadata=metadata)


def stored(module, name):
    """The class of this name in a module that is made for the test."""
    for part in (module.split(".")[0], module):
        package = sys.modules.setdefault(part, types.ModuleType(part))
    if not hasattr(package, name):
        setattr(package, name, type(name, (Stored,), {"__module__": module}))
    return getattr(package, name)


LAYOUTS = {
    "dino": (lambda w: w, None, ""),
    "swav": (lambda w: {f"module.{k}": v for k, v in w.items()} | {"module.prototypes.weight": torch.ones(3, 2)}, None, ""),
    "moco_v2": (
        lambda w: {
            "state_dict": {f"module.{name}.{k}": v + shift for name, shift in (("encoder_q", 0), ("encoder_k", 1)) for k, v in w.items()}
            | {"module.queue": torch.ones(2, 3), "module.encoder_q.fc.0.weight": torch.ones(2, 2)}
        },
        "encoder_q",
        "state_dict.encoder_q",
    ),
    "moco_v3": (
        lambda w: {"state_dict": {f"module.base_encoder.{k}": v for k, v in w.items()} | {"module.predictor.0.weight": torch.ones(2, 2)}},
        None,
        "state_dict.base_encoder",
    ),
    "simclr": (
        lambda w: {"classy_state_dict": {"base_model": {"model": {"trunk": {f"_feature_blocks.{k}": v for k, v in w.items()}}}}},
        None,
        "classy_state_dict.base_model.model.trunk._feature_blocks",
    ),
    "dino_training": (
        lambda w: {
            n: {f"module.backbone.{k}": v for k, v in w.items()} | {"module.head.mlp.0.weight": torch.ones(2, 2)} for n in ("teacher",)
        },
        "teacher",
        "teacher.backbone",
    ),
    "vicregl": (
        lambda w: {
            "epoch": 1,
            "model": {f"module.backbone.{k}": v for k, v in w.items()}
            | {f"module.{name}.0.weight": torch.ones(2, 2) for name in ("maps_projector", "projector", "classifier")},
            "optimizer": {"state": {0: {"mu": torch.ones(2)}}},
        },
        None,
        "model.backbone",
    ),
    "poodle": (
        lambda w: {
            "epoch": 10,
            "model": {f"{name}.{k}": v + shift for name, shift in (("backbone", 0), ("teacher_backbone", 1)) for k, v in w.items()}
            | {f"{name}decoder_blocks.0.conv1.weight": torch.ones(2, 2) for name in ("", "teacher_")}
            | {f"flow_model.{name}.layer1.0.conv1.weight": torch.ones(2, 2) for name in ("fnet", "cnet")},
            "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
            "args": hydra_configuration(),
        },
        "backbone",
        "model.backbone",
    ),
    "wrapped": (lambda w: {f"_orig_mod.{k.replace('layer1.0', 'layer1._fsdp_wrapped_module.0')}": v for k, v in w.items()}, None, ""),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_features_of_public_resnets_equal_torchvision_s(resnet, layout, tmp_path):
    wrap, key, name = LAYOUTS[layout]
    weights = {k: v for k, v in resnet.state_dict().items() if not k.startswith("fc.")}
    torch.save(wrap(weights), tmp_path / "w.pth")
    for module in [m for m in sys.modules if m.startswith("omegaconf")]:
        del sys.modules[module]
    network = load(tmp_path / "w.pth", RESNET, key=key).eval()
    assert network.report.network == name
    for found, expected in zip(network.weights().items(), ((k, v) for k, v in weights.items() if "num_batches" not in k), strict=True):
        assert found[0] == expected[0]
        assert torch.equal(found[1], expected[1])
    if layout != "dino":
        return
    with torch.inference_mode():
        expected = torchvision_maps(resnet, IMAGES)
        found = network.levels(IMAGES, [1, 2, 3, 4], norm=True)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(network.dense(IMAGES), expected[-1], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(network.pooled(IMAGES), expected[-1].mean((2, 3)), rtol=1e-5, atol=1e-5)


def test_the_dense_map_is_that_of_the_chosen_stride_also_after_an_export(resnet, tmp_path):
    torch.save(resnet.state_dict(), tmp_path / "w.pth")
    network = load(tmp_path / "w.pth", RESNET, stride=16, statistics=PixelStatistics((0.5, 0.4, 0.3), (0.2, 0.25, 0.5))).eval()
    assert (network.stride, network.dim, network.pooled_dim, network.multiple) == (16, 1024, 2048, 32)
    export_backbone(network, tmp_path / "e.safetensors", run="r", config_hash="0")
    again = load(tmp_path / "e.safetensors").eval()
    assert (again.stride, again.statistics) == (16, network.statistics)
    with torch.inference_mode():
        torch.testing.assert_close(network.dense(IMAGES), torchvision_maps(resnet, IMAGES)[2], rtol=1e-5, atol=1e-5)
        assert torch.equal(again.dense(IMAGES), network.dense(IMAGES))
        assert torch.equal(again.pooled(IMAGES), network.pooled(IMAGES))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w | {"layer2.0.extra": torch.ones(1)}, "not expected: layer2.0.extra"),
        (lambda w: {k: v for k, v in w.items() if k != "layer3.1.bn2.bias"}, "missing: layer3.1.bn2.bias"),
        (lambda w: {k: v for k, v in w.items() if not k.startswith("layer1.0")}, "has no key layer1.0.conv1.weight"),
        (lambda w: w | {"conv1.weight": torch.full((64, 3, 7, 7), torch.nan)}, "conv1.weight holds NaN"),
        (lambda w: w | {"conv1.weight": torch.ones(64, 3, 3, 3)}, r"wrong shape: conv1.weight (64, 3, 3, 3) instead of (64, 3, 7, 7)"),
    ],
)
def test_loading_is_strict(resnet, change, message, tmp_path):
    torch.save(change(dict(resnet.state_dict())), tmp_path / "w.pth")
    with pytest.raises(UserError, match=re.escape(message)):
        load(tmp_path / "w.pth", RESNET)


def test_a_stride_that_no_stage_has_is_refused(resnet, tmp_path):
    torch.save(resnet.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UserError, match="no map of stride 14; allowed: 2, 4, 8, 16, 32"):
        load(tmp_path / "w.pth", RESNET, stride=14)


# -- ConvNeXt ----------------------------------------------------------------------------------------------------------


def to_meta(weights):
    """timm's keys of a ConvNeXt under Meta's names, written from the official convnext.py, not from the loader."""
    names = {}
    for key in weights:
        parts = key.split(".")
        if parts[0] == "stem":
            names[key] = f"downsample_layers.0.{parts[1]}.{parts[2]}"
        elif parts[0] == "head":
            names[key] = f"norm.{parts[2]}"
        elif parts[2] == "downsample":
            names[key] = f"downsample_layers.{parts[1]}.{parts[3]}.{parts[4]}"
        else:
            inside = {"conv_dw": "dwconv", "fc1": "pwconv1", "fc2": "pwconv2"}
            names[key] = ".".join(["stages", parts[1], *(inside.get(p, p) for p in parts[3:] if p != "mlp")])
    return {names[k]: v for k, v in weights.items()}


def convnext_by_hand(w, x, depths):
    """Meta's ConvNeXt as plain operations: maps after each stage, last norm per position, and the norm of the mean."""

    def norm(x, name):
        return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6).permute(0, 3, 1, 2)

    maps = []
    for stage, depth in enumerate(depths):
        down = f"downsample_layers.{stage}"
        if stage == 0:
            x = norm(F.conv2d(x, w[f"{down}.0.weight"], w[f"{down}.0.bias"], stride=4), f"{down}.1")
        else:
            x = F.conv2d(norm(x, f"{down}.0"), w[f"{down}.1.weight"], w[f"{down}.1.bias"], stride=2)
        for block in range(depth):
            b = f"stages.{stage}.{block}"
            y = norm(F.conv2d(x, w[f"{b}.dwconv.weight"], w[f"{b}.dwconv.bias"], padding=3, groups=x.shape[1]), f"{b}.norm")
            y = F.gelu(F.linear(y.permute(0, 2, 3, 1), w[f"{b}.pwconv1.weight"].flatten(1), w[f"{b}.pwconv1.bias"]))
            y = F.linear(y, w[f"{b}.pwconv2.weight"].flatten(1), w[f"{b}.pwconv2.bias"]) * w[f"{b}.gamma"]
            x = x + y.permute(0, 3, 1, 2)
        maps.append(x)
    return maps, norm(x, "norm"), norm(x.mean((2, 3), keepdim=True), "norm").flatten(1)


def test_dinov3_convnexts_equal_the_plain_operations(tmp_path):
    name = CONVNEXT  # the same blocks as DINOv3's, fewer
    start = create(name, seed=0)
    weights = {k: torch.randn_like(v) * 0.05 for k, v in start.weights().items()}
    meta = to_meta(weights)
    twins = {f"norms.3.{k}": meta[f"norm.{k}"] for k in ("weight", "bias")}
    torch.save(meta | twins, tmp_path / "w.pth")
    network = load(tmp_path / "w.pth", name).eval()
    maps, dense, pooled = convnext_by_hand(meta, IMAGES, (2, 2, 6, 2))
    with torch.inference_mode():
        for ours, theirs in zip(network.levels(IMAGES, [0, 1, 2, 3], norm=False), maps, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(network.dense(IMAGES), dense, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(network.pooled(IMAGES), pooled, rtol=1e-5, atol=1e-5)
    torch.save(meta | {"norms.3.weight": meta["norm.weight"] + 1}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"norms.3.weight is not equal to norm.weight"):
        load(tmp_path / "w.pth", name)


# -- Swin ----------------------------------------------------------------------------------------------------------------


def test_swin_equals_timm_at_its_own_size_and_takes_others():
    network = create(SWIN, seed=0).eval()
    theirs = timm.create_model("swin_tiny_patch4_window7_224", num_classes=0).eval()
    theirs.load_state_dict(network.weights(), strict=False)
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        torch.testing.assert_close(network.dense(x), theirs.forward_features(x).permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(network.pooled(x), theirs(x), rtol=1e-5, atol=1e-5)
        assert network.dense(IMAGES).shape == (2, 768, 2, 3)
    with pytest.raises(UserError, match="multiples of 32"):
        network.dense(torch.zeros(1, 3, 64, 48))


def test_names_are_checked_without_timm():
    assert named_shape(CONVNEXT).level_strides == (4, 8, 16, 32)
    with pytest.raises(UserError, match="did you mean timm/resnet50"):
        named_shape("timm/resnet5o")


@pytest.mark.parametrize("name", [RESNET, CONVNEXT, SWIN])
def test_every_parameter_has_a_layer_and_only_later_ones_are_behind_a_level(name):
    network = create(name, seed=0)
    layers = {k: network.layer_of(k) for k, _ in network.named_parameters()}
    count = {total for _, total in layers.values()}
    assert len(count) == 1
    assert {layer for layer, _ in layers.values()} == set(range(5 + (network.final_norm is not None)))
    last = len(network.arch.level_dims) - 1
    assert network.parameters_behind(last, norm=True) == []
    before = network.train().levels(torch.randn(2, 3, 64, 64), [last - 1], norm=False)[0]
    before.sum().backward()
    behind = {id(p) for p in network.parameters_behind(last - 1, norm=False)}
    assert {id(p) for p in network.parameters() if p.grad is None} == behind
