"""Object discovery against a dense float64 loop, the released values, and images with one thing in them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from scipy import ndimage
from torch import nn

from densewalk.core.errors import UserError
from densewalk.core.imagenet import IMAGENET
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.discovery import evaluate as discovery
from densewalk.evaluations.discovery.settings import DiscoverySettings
from densewalk.models.export import export_backbone
from densewalk.models.loading import create
from tests.fixtures.helpers import shared
from tests.fixtures.layouts import write_coco, write_voc


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    export_backbone(create("vit_nano_patch8", seed=0), path, run="test", config_hash="test")
    return path


def box_of(x, k, grid, patch, width, height):
    mask, seed = discovery.lost(x, k)
    return discovery.bounding_box(discovery.component_of(mask.reshape(grid), seed), patch, width, height), seed


@pytest.mark.parametrize("case", [0, 1, 2])
def test_parity_with_lost(case):
    values = np.load(shared("parity/lost.npz"))
    x = torch.from_numpy(values[f"l{case}/feats"])[0]
    rows, columns, patch, height, width, k = values[f"l{case}/cfg"].tolist()
    assert np.array_equal(discovery.degrees(x).numpy(), -values[f"l{case}/scores"])
    box, seed = box_of(x, k, (rows, columns), patch, width, height)
    tie_at_seed, _tie_at_cut = values[f"l{case}/tie"].tolist()
    assert seed == values[f"l{case}/seed"] or tie_at_seed
    assert box.tolist() == values[f"l{case}/pred"].tolist()


@pytest.mark.parametrize("head", [0, 4])
def test_parity_with_dino_seg_but_for_the_component_it_never_looks_at(head):
    values = np.load(shared("parity/lost.npz"))
    mask = discovery.top_mass_mask(torch.from_numpy(values["seg0/attn"][head]), 0.6).reshape(*values["seg0/hw"])
    labels, count = ndimage.label(mask)
    box = discovery.bounding_box(discovery.largest_component(mask & (labels != count)), 16, 224, 224)
    assert box.tolist() == values[f"seg0/pred{head}"].tolist()
    assert discovery.bounding_box(discovery.largest_component(mask), 16, 224, 224).tolist() != box.tolist(), "the last one is the largest"


@pytest.mark.parametrize("strip", [7, 512])
def test_lost_equals_the_loop(monkeypatch, strip):
    monkeypatch.setattr(discovery, "STRIP", strip)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(48, 5)) + 0.3
    similarity = x @ x.T
    degree = [sum(similarity[p, q] > 0 for q in range(48) if q != p) for p in range(48)]
    order = sorted(range(48), key=lambda p: (degree[p], p))
    similar = [q for q in order[:9] if similarity[order[0], q] > 0]
    expected = [sum(similarity[q, p] for q in similar) > 0 for p in range(48)]
    mask, seed = discovery.lost(torch.from_numpy(x), 9)
    assert discovery.degrees(torch.from_numpy(x)).tolist() == degree
    assert seed == order[0]
    assert mask.tolist() == expected


def test_among_equal_degrees_the_first_patch_is_the_seed():
    x = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    assert discovery.degrees(x).tolist() == [1, 1, 1, 1]
    assert discovery.lost(x, 2)[1] == 0


def test_components_are_four_connected_and_only_the_seed_s_counts():
    mask = np.array([[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]], bool)
    assert discovery.component_of(mask, 5).sum() == 3
    assert discovery.largest_component(mask).sum() == 3
    assert discovery.component_of(mask, 3).tolist() == (np.arange(12).reshape(3, 4) == 3).tolist()
    assert discovery.component_of(mask, 1).tolist() == (np.arange(12).reshape(3, 4) == 1).tolist(), "outside the mask: the seed alone"
    assert discovery.largest_component(np.zeros((2, 2), bool)).all()


def test_boxes_are_clipped_to_the_image():
    piece = np.zeros((3, 4), bool)
    piece[1:, 2:] = True
    assert discovery.bounding_box(piece, 16, 60, 40).tolist() == [32, 16, 60, 40]


def test_the_kept_attention_is_the_smallest_set():
    attention = torch.tensor([0.1, 0.3, 0.05, 0.35, 0.2])
    assert discovery.top_mass_mask(attention, 0.6).tolist() == [False, True, False, True, False]
    assert discovery.top_mass_mask(attention * 7, 0.8).tolist() == [False, True, False, True, True]
    assert discovery.top_mass_mask(attention, 1.0).all()


def test_zeros_are_padded_after_the_normalization_below_and_to_the_right():
    image = Image.fromarray(np.full((10, 20, 3), 255, np.uint8))
    x = discovery.pad(image, 8, IMAGENET)
    assert x.shape == (3, 16, 24)
    assert (x[:, 10:] == 0).all()
    assert (x[:, :, 20:] == 0).all()
    assert torch.allclose(x[:, 0, 0], torch.tensor([0.515 / 0.229, 0.544 / 0.224, 0.594 / 0.225]), atol=1e-5)


def test_keys_are_the_last_block_s_without_cls_and_registers():
    network = create("vit_micro_patch14_reg4", seed=0).eval()
    image = torch.randn(1, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    seen = {}
    network.vit.blocks[-1].attn.qkv.register_forward_hook(lambda _m, _i, out: seen.update(qkv=out))
    with torch.no_grad():
        network.run(*network.embed(image))
        keys = discovery.features(network, image, DiscoverySettings(root=".", dataset="x", layout="voc"))
        attention = discovery.features(network, image, DiscoverySettings(root=".", dataset="x", layout="voc", method="attention", head=2))
    assert torch.allclose(keys, seen["qkv"][0, 5:, 96:192], atol=1e-6)
    query, key = seen["qkv"][0, 0, 32:48], seen["qkv"][0, :, 96 + 32 : 96 + 48]
    assert torch.allclose(attention, (key @ query / 4).softmax(0)[5:], atol=1e-6)


@pytest.mark.parametrize("method", ["lost", "attention"])
def test_whole_evaluation(tmp_path, backbone, method):
    write_voc(tmp_path)
    settings = DiscoverySettings(root=str(tmp_path), dataset="x", layout="voc", year=2007, method=method)
    result = discovery.evaluate(settings, backbone, Job(out=tmp_path / "out", state=tmp_path))
    assert set(result.metrics) == set(DiscoverySettings.METRICS)
    assert (result.n, result.unit) == (2, "images")
    rows = json.loads((tmp_path / "out/boxes.json").read_text())
    assert result.metrics["CorLoc"] == 100 * np.mean([row["IoU"] >= 0.5 for row in rows.values()])
    assert (tmp_path / "out/strip.png").is_file()


def test_corloc_counts_any_object_and_leaves_out_images_without(tmp_path, backbone, monkeypatch):
    write_coco(tmp_path)
    monkeypatch.setattr(discovery, "discover", lambda *_: iter(np.array([[10.0, 5, 31, 15], [2.0, 2, 12, 6]])))
    settings = DiscoverySettings(root=str(tmp_path), dataset="x", layout="coco")
    result = discovery.evaluate(settings, backbone, Job(out=tmp_path / "out", state=tmp_path))
    assert (result.metrics, result.n) == ({"CorLoc": 50.0}, 2)
    assert result.details["images_without_object"] == 1


def test_bad_input_is_named(tmp_path, backbone, monkeypatch):
    write_voc(tmp_path)
    settings = DiscoverySettings(root=str(tmp_path), dataset="x", layout="voc", year=2007)
    job = Job(out=tmp_path / "out", state=tmp_path)
    with pytest.raises(UserError, match="head 6, but the backbone has 6; allowed: 0 to 5"):
        discovery.evaluate(settings.model_copy(update={"method": "attention", "head": 6}), backbone, job)
    broken = create("vit_nano_patch8", seed=0)
    nn.init.constant_(broken.vit.blocks[-1].attn.qkv.weight, torch.nan)
    with monkeypatch.context() as patched:
        patched.setattr("densewalk.evaluations.common.base.load", lambda _: broken)
        with pytest.raises(UserError, match=r"features of .*000005\.jpg are not finite"):
            discovery.evaluate(settings, backbone, job)
    (tmp_path / "VOCdevkit/VOC2007/JPEGImages/000007.jpg").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"000007\.jpg cannot be read"):
        discovery.evaluate(settings, backbone, job)
    for path in (tmp_path / "VOCdevkit/VOC2007/Annotations").iterdir():
        path.write_text("<annotation/>")
    with pytest.raises(UserError, match="none of the 2 images"):
        discovery.evaluate(settings, backbone, job)


def test_protocol_names():
    voc = DiscoverySettings(root=".", dataset="VOC07", layout="voc", year=2007)
    assert voc.published_protocol == "LOST"
    coco = DiscoverySettings(root=".", dataset="COCO20k", layout="coco", ids="coco20k.txt")
    assert coco.published_protocol == "LOST"
    assert coco.model_copy(update={"ids": None}).published_protocol is None
    for change in ({"method": "attention"}, {"k_patches": 50}, {"split": "train"}, {"year": 2012}):
        changed = voc.model_copy(update=change)
        assert changed.published_protocol is None, change
        assert changed.protocol != voc.protocol, change
    with pytest.raises(ValidationError, match="layout voc has no ids"):
        DiscoverySettings(root=".", dataset="x", layout="voc", ids="list.txt")
    with pytest.raises(ValidationError, match="layout coco has no split"):
        DiscoverySettings(root=".", dataset="x", layout="coco", split="train")
