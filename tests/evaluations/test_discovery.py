"""Object discovery against a dense float64 loop, the released values, and images with one thing in them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import nn

from densewalk.core.errors import UserError
from densewalk.core.imagenet import IMAGENET
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.discovery import evaluate as discovery
from densewalk.evaluations.discovery import lost
from densewalk.evaluations.discovery.attention import head_masks, mask_jaccard, top_mass_mask
from densewalk.evaluations.discovery.regions import bounding_box, component_of, largest_component
from densewalk.evaluations.discovery.settings import DiscoverySettings
from densewalk.models.export import export_backbone
from densewalk.models.loading import create, load
from tests.fixtures.helpers import shared
from tests.fixtures.layouts import write_coco, write_voc


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    export_backbone(create("vit_nano_patch8", seed=0), path, run="test", config_hash="test")
    return path


def box_of(x, k, grid, patch, width, height):
    mask, seed = lost.lost(x, k)
    return bounding_box(component_of(mask.reshape(grid), seed), patch, width, height), seed


@pytest.mark.parametrize("case", [0, 1, 2])
def test_parity_with_lost(case):
    values = np.load(shared("parity/lost.npz"))
    x = torch.from_numpy(values[f"l{case}/feats"])[0]
    rows, columns, patch, height, width, k = values[f"l{case}/cfg"].tolist()
    assert np.array_equal(lost.degrees(x).numpy(), -values[f"l{case}/scores"])
    box, seed = box_of(x, k, (rows, columns), patch, width, height)
    tie_at_seed, _tie_at_cut = values[f"l{case}/tie"].tolist()
    assert seed == values[f"l{case}/seed"] or tie_at_seed
    assert box.tolist() == values[f"l{case}/pred"].tolist()


@pytest.mark.parametrize("head", [0, 4])
def test_parity_with_dino_seg_but_for_the_component_it_never_looks_at(head):
    values = np.load(shared("parity/lost.npz"))
    mask = top_mass_mask(torch.from_numpy(values["seg0/attn"][head]), 0.6).reshape(*values["seg0/hw"])
    box = bounding_box(largest_component(mask, "released"), 16, 224, 224)
    assert box.tolist() == values[f"seg0/pred{head}"].tolist()
    assert bounding_box(largest_component(mask), 16, 224, 224).tolist() != box.tolist(), "the last one is the largest"


@pytest.mark.parametrize("strip", [7, 512])
def test_lost_equals_the_loop(monkeypatch, strip):
    monkeypatch.setattr(lost, "STRIP", strip)
    rng = np.random.default_rng(5)
    x = rng.normal(size=(48, 5)) + 0.3
    similarity = x @ x.T
    degree = [sum(similarity[p, q] > 0 for q in range(48) if q != p) for p in range(48)]
    order = sorted(range(48), key=lambda p: (degree[p], p))
    similar = [q for q in order[:9] if similarity[order[0], q] > 0]
    expected = [sum(similarity[q, p] for q in similar) > 0 for p in range(48)]
    mask, seed = lost.lost(torch.from_numpy(x), 9)
    assert lost.degrees(torch.from_numpy(x)).tolist() == degree
    assert seed == order[0]
    assert mask.tolist() == expected


def test_among_equal_degrees_the_first_patch_is_the_seed():
    x = torch.tensor([[1.0, 0], [0, 1], [1, 0], [0, 1]])
    assert lost.degrees(x).tolist() == [1, 1, 1, 1]
    assert lost.lost(x, 2)[1] == 0


def test_components_are_four_connected_and_only_the_seed_s_counts():
    mask = np.array([[1, 0, 0, 1], [0, 1, 1, 0], [0, 1, 0, 1]], bool)
    assert component_of(mask, 5).sum() == 3
    assert largest_component(mask).sum() == 3
    assert component_of(mask, 3).tolist() == (np.arange(12).reshape(3, 4) == 3).tolist()
    assert component_of(mask, 1).tolist() == (np.arange(12).reshape(3, 4) == 1).tolist(), "outside the mask: the seed alone"
    assert largest_component(np.zeros((2, 2), bool)).all()


def test_boxes_are_clipped_to_the_image():
    piece = np.zeros((3, 4), bool)
    piece[1:, 2:] = True
    assert bounding_box(piece, 16, 60, 40).tolist() == [32, 16, 60, 40]


def test_the_kept_attention_is_the_smallest_set():
    attention = torch.tensor([0.1, 0.3, 0.05, 0.35, 0.2])
    assert top_mass_mask(attention, 0.6).tolist() == [False, True, False, True, False]
    assert top_mass_mask(attention * 7, 0.8).tolist() == [False, True, False, True, True]
    assert top_mass_mask(attention, 1.0).all()


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
        attention = discovery.features(network, image, DiscoverySettings(root=".", dataset="x", layout="voc", method="attention", head=2))[
            2
        ].flatten()
    assert torch.allclose(keys, seen["qkv"][0, 5:, 96:192], atol=1e-6)
    query, key = seen["qkv"][0, 0, 32:48], seen["qkv"][0, :, 96 + 32 : 96 + 48]
    assert torch.allclose(attention, (key @ query / 4).softmax(0)[5:], atol=1e-6)


@pytest.mark.parametrize("method", ["lost", "attention", "tokencut"])
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
    boxes = np.array([[10.0, 5, 31, 15], [2.0, 2, 12, 6]])
    monkeypatch.setattr(discovery, "discover", lambda *_: (discovery.Found(box[None], discovery.whole(40, 30)) for box in boxes))
    settings = DiscoverySettings(root=str(tmp_path), dataset="x", layout="coco")
    result = discovery.evaluate(settings, backbone, Job(out=tmp_path / "out", state=tmp_path))
    best = [21 * 10 / (21 * 10), 10 * 3 / (11 * 10 + 10 * 4 - 10 * 3)]  # COCO's boxes rounded: 10, 5, 31, 15 and 2, 2, 12, 12
    best[1] = 10 * 4 / (10 * 10)
    assert (result.metrics["CorLoc"], result.n) == (50.0, 2)
    assert result.metrics["Jaccard_box"] == pytest.approx(100 * np.mean(best))
    assert result.metrics["Jaccard_box_position"] == pytest.approx(100 * np.mean([21 * 10, 10 * 10]) / (40 * 30))
    assert np.isnan(result.metrics["Jaccard_mask"])
    assert result.details["images_without_object"] == 1


def test_bad_input_is_named(tmp_path, backbone, monkeypatch):
    write_voc(tmp_path)
    settings = DiscoverySettings(root=str(tmp_path), dataset="x", layout="voc", year=2007)
    job = Job(out=tmp_path / "out", state=tmp_path)
    with pytest.raises(UserError, match="head 6, but the backbone has 6; allowed: 0 to 5, or mean"):
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
    for change in ({"method": "attention"}, {"method": "tokencut", "tau": 0.3}, {"k_patches": 50}, {"split": "train"}, {"year": 2012}):
        changed = voc.model_copy(update=change)
        assert changed.published_protocol is None, change
        assert changed.protocol != voc.protocol, change
    with pytest.raises(ValidationError, match="layout voc has no ids"):
        DiscoverySettings(root=".", dataset="x", layout="voc", ids="list.txt")
    with pytest.raises(ValidationError, match="layout coco has no split"):
        DiscoverySettings(root=".", dataset="x", layout="coco", split="train")


def test_the_released_search_never_sees_the_last_component():
    mask = np.array([[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], bool)
    assert largest_component(mask).sum() == 4
    assert largest_component(mask, "released").sum() == 1
    assert np.array_equal(largest_component(mask[:, 2:], "released"), ~mask[:, 2:]), "one component: the rest of the image"
    assert largest_component(np.ones((2, 2), bool), "released").all(), "nothing is left"


def test_the_mean_of_the_heads_and_one_head_differ(tmp_path, backbone):
    write_voc(tmp_path)
    example = discovery.find_images(DiscoverySettings(root=str(tmp_path), dataset="x", layout="voc", year=2007))[0]
    attention = torch.tensor([[[0.6, 0.1], [0.1, 0.1]], [[0.0, 0.1], [0.1, 0.7]]])
    found = {}
    for head in (0, 1, "mean"):
        settings = DiscoverySettings(root=".", dataset="x", layout="voc", method="attention", head=head, mass=0.6)
        found[head] = discovery.of_attention(attention, settings, example, 8, 16, 16).boxes[0].tolist()
    assert found[0] == [0, 0, 8, 8]
    assert found[1] == [8, 8, 16, 16]
    assert found["mean"] == [0, 0, 8, 8], "0.4 and 0.3 are kept: two components of one patch, the first of which counts"


def test_jaccard_of_masks_equals_the_loop():
    rng = np.random.default_rng(0)
    objects = rng.choice([0, 1, 2, 7, 255], size=(12, 20)).astype(np.uint8)
    attention = torch.from_numpy(rng.random((3, 3, 5)).astype(np.float32))
    masks = head_masks(attention, 0.6, 4, 19, 11)
    assert masks.shape == (3, 11, 19)
    assert all(masks[h, y, x] == top_mass_mask(attention[h].flatten(), 0.6).reshape(3, 5)[y // 4, x // 4]
               for h in range(3) for y in range(11) for x in range(19))  # fmt: skip
    objects = objects[:11, :19]
    best = []
    for number in (1, 2, 7):
        ious = []
        for mask in masks:
            both = sum(objects[y, x] == number and mask[y, x] for y in range(11) for x in range(19))
            either = sum(objects[y, x] == number or mask[y, x] for y in range(11) for x in range(19))
            ious.append(both / either)
        best.append(max(ious))
    assert mask_jaccard(objects, masks) == pytest.approx(np.mean(best), abs=1e-12)
    assert mask_jaccard(objects, np.stack([objects == 1, objects == 2, objects == 7])) == 1
    assert np.isnan(mask_jaccard(np.full((11, 19), 255, np.uint8), masks))


def test_masks_are_scored_on_segmentation_lists(tmp_path, backbone):
    base = write_voc(tmp_path, year=2012) / "VOCdevkit/VOC2012"
    (base / "ImageSets/Segmentation").mkdir()
    (base / "ImageSets/Segmentation/val.txt").write_text("000005\n000007\n")
    settings = DiscoverySettings(
        root=str(tmp_path),
        dataset="VOC12 val",
        layout="voc",
        split="val",
        image_sets="Segmentation",
        method="attention",
        head="mean",
        mass=0.8,
    )
    job = Job(out=tmp_path / "out", state=tmp_path)
    with pytest.raises(UserError, match=r"SegmentationObject/000005\.png does not exist"):
        discovery.evaluate(settings, backbone, job)
    (base / "SegmentationObject").mkdir()
    objects = np.zeros((30, 40), np.uint8)
    objects[8:16, 8:24] = 1
    Image.fromarray(objects).save(base / "SegmentationObject/000005.png")
    Image.fromarray(np.zeros((30, 40), np.uint8)).save(base / "SegmentationObject/000007.png")
    result = discovery.evaluate(settings, backbone, job)
    network = load(backbone).eval()
    image = discovery.pad(Image.open(base / "JPEGImages/000005.jpg"), 8, IMAGENET)
    attention = network.dense_and_attention(image[None])[1][0].detach()
    assert result.metrics["Jaccard_mask"] == pytest.approx(100 * mask_jaccard(objects, head_masks(attention, 0.6, 8, 40, 30)))
    assert result.details["images_without_mask"] == 1
    assert settings.published_protocol == "attention mask, best head, mass 0.6 (DINO)"
    assert settings.model_copy(update={"mask_mass": 0.5}).published_protocol is None


def test_tokencut_protocol_names():
    cut = DiscoverySettings(root=".", dataset="VOC07", layout="voc", year=2007, method="tokencut")
    assert cut.published_protocol == "TokenCut"
    assert cut.model_copy(update={"taus": [0.1]}).published_protocol == "TokenCut"
    assert cut.model_copy(update={"features": "output"}).published_protocol is None
    swept = {"features": "output", "taus": [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4], "select": "best"}
    assert cut.model_copy(update=swept).published_protocol == "TokenCut, output features, best tau (DINOv3)"
    assert cut.model_copy(update={**swept, "taus": [0.1, 0.2]}).published_protocol is None
    assert cut.needs == {"keys"}
    assert cut.model_copy(update={"features": "output"}).needs == {"dense"}
    names = [cut.model_copy(update=change).protocol for change in ({}, swept, {"tau": 0.1}, {"graph": "weighted"}, {"features": "values"})]
    assert len(set(names)) == 5
    with pytest.raises(ValidationError, match="method lost has no tau"):
        DiscoverySettings(root=".", dataset="x", layout="voc", tau=0.3)
    with pytest.raises(ValidationError, match="select: best chooses from `taus`, which is empty"):
        DiscoverySettings(root=".", dataset="x", layout="voc", method="tokencut", select="best")
