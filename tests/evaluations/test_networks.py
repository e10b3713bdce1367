"""Evaluations of convolutional networks, and of images with other statistics than ImageNet's."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from densewalk.core.imagenet import IMAGENET, PixelStatistics
from densewalk.data.benchmarks.label_maps import Example
from densewalk.evaluations.coco.data import Split
from densewalk.evaluations.coco.experiment import experiment as coco_experiment
from densewalk.evaluations.coco.settings import CocoSettings
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.discovery.evaluate import pad
from densewalk.evaluations.mmlab import detection, segmentation  # noqa: F401  registers parts
from densewalk.evaluations.mmlab.optim import decay_table
from densewalk.evaluations.mmlab.vit import DensewalkBackbone
from densewalk.evaluations.segmentation import experiment as mmseg
from densewalk.evaluations.segmentation.settings import Ade20kLinearSettings, Ade20kUpernetSettings
from densewalk.models.export import export_backbone
from densewalk.models.loading import create, load
from densewalk.study.registry import evaluation_module, evaluations

DATA = Path(__file__).parents[2].parent / "shared/data"
SMALL = {
    "davis": {"root": "davis", "sequences": ["schoolgirls"], "short_side": 64, "multiple": 32},
    "video_segmentation": {
        "root": "davis",
        "layout": "davis",
        "sequences": ["schoolgirls"],
        "size": 32,
        "restarts": 1,
        "iterations": 1,
        "dataset_clusters": 12,
    },
    "incontext": {"root": "voc", "layout": "voc", "input_size": 64},
    "linear_segmentation": {"root": "voc", "layout": "voc", "input_size": 64, "batch_size": 8, "epochs": 1, "drop_epoch": 1},
    "overcluster": {"root": "voc", "layout": "voc", "input_size": 64, "repeats": 1},
    "knn": {"root": "imagenet", "resize": 64, "size": 64},
}
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="small real folders of images are not here")


def score(protocol, path, folder):
    settings = evaluations()[protocol].model_validate({**SMALL[protocol], "root": str(DATA / SMALL[protocol]["root"]), "dataset": "x"})
    return evaluation_module(protocol).evaluate(settings, path, Job(folder / "out", folder / "state")).metrics


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    path = tmp_path_factory.mktemp("resnet") / "backbone.safetensors"
    export_backbone(create("timm/resnet10t", seed=0), path, run="r", config_hash="0")
    return path


@pytest.mark.parametrize("protocol", ["davis", "incontext", "knn"])
@needs_data
def test_frozen_evaluations_take_a_convolutional_network(protocol, resnet, tmp_path):
    metrics = score(protocol, resnet, tmp_path)
    first = next(iter(metrics.values()))
    assert 0 < first < 100


@pytest.mark.parametrize("protocol", SMALL)
@needs_data
def test_every_frozen_evaluation_normalizes_with_the_network_s_own_statistics(protocol, tmp_path):
    """Two networks that are one function of the pixels, with other statistics, give one number (where no clustering starts at random)."""
    usual = create("vit_nano_patch16", seed=0)
    other = PixelStatistics((0.3, 0.6, 0.5), (0.4, 0.15, 0.25))
    mean, std, new_mean, new_std = (torch.tensor(v).double()[:, None, None] for v in (*IMAGENET, *other))
    export_backbone(usual, tmp_path / "usual.safetensors", run="r", config_hash="0")
    changed = load(tmp_path / "usual.safetensors", statistics=other)
    conv = changed.vit.patch_embed.proj
    with torch.no_grad():  # w . (x - mean) / std + b = w' . (x - mean') / std' + b'
        weight = conv.weight.double()
        conv.bias.copy_(conv.bias.double() + (weight * (new_mean - mean) / std).sum((1, 2, 3)))
        conv.weight.copy_(weight * new_std / std)
    export_backbone(changed, tmp_path / "changed.safetensors", run="r", config_hash="0")
    a, b = (score(protocol, tmp_path / f"{name}.safetensors", tmp_path / name) for name in ("usual", "changed"))
    first = next(iter(a))
    assert a[first] == pytest.approx(b[first], abs=0.02)  # rounding moves a few pixels


def test_padding_of_discovery_is_the_mean_color():
    image = Image.fromarray(np.full((16, 10, 3), 51, np.uint8))  # 0.2
    padded = pad(image, 16, PixelStatistics((0.3, 0.6, 0.5), (0.4, 0.15, 0.25)))
    torch.testing.assert_close(padded[:, 0, 0], torch.tensor([-0.25, -0.4 / 0.15, -1.2]))
    assert (padded[:, :, 10:] == 0).all()


def toolbox_models(path, arch):
    split = Split(Path(), Path(), 1, 1, ((1, "thing"), (2, "other")))
    upernet = Ade20kUpernetSettings(root="x", dataset="x", channels=8, auxiliary_channels=8)
    for settings in (upernet, Ade20kLinearSettings(root="x", dataset="x")):
        example = Example(path, path, settings.rule)
        yield "mmseg", mmseg.experiment(settings, str(path), arch, [example], [example])
    for head in ("maskrcnn", "cascade"):
        yield "mmdet", coco_experiment(CocoSettings(root="x", dataset="x", head=head, channels=8), str(path), arch, split, split)


def test_toolboxes_take_the_stages_of_a_convolutional_network(resnet):
    arch = load(resnet).arch
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for scope, experiment in toolbox_models(resnet, arch):
        with DefaultScope.overwrite_default_scope(scope):
            model = MODELS.build(ConfigDict(experiment.model))
        model.init_weights()
        assert isinstance(model.backbone, DensewalkBackbone)
        assert experiment.model["data_preprocessor"]["mean"] == [123.675, 116.28, 103.53]
        maps = model.train().extract_feat(images)
        if scope == "mmdet":
            assert [tuple(m.shape) for m in maps] == [(2, 8, s, s) for s in (16, 8, 4, 2, 1)]
        else:
            maps = [model.decode_head(maps)]
            assert maps[0].shape[1] == 150
        if not model.backbone.frozen:
            sum(m.square().mean() for m in maps).backward()
            rows = {r.name: r for r in decay_table(model, 0.8, decay_position_embedding=True)}
            assert rows["backbone.network.net.conv1.0.weight"].lr_scale == pytest.approx(0.8**5)
            assert rows["backbone.network.net.layer4.0.conv1.weight"].lr_scale == pytest.approx(0.8)
            assert {r.lr_scale for name, r in rows.items() if not name.startswith("backbone.")} == {1.0}
            unused = [n for n, p in model.backbone.named_parameters() if p.requires_grad and p.grad is None]
            assert unused == []
