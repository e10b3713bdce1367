"""PAMR in the evaluations of label maps: perfect predictions stay perfect, edges inside patches are found, nothing changes without."""

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from densewalk.core.hashing import config_hash
from densewalk.evaluations.common import dense_features
from densewalk.evaluations.common.base import Job
from densewalk.study.registry import evaluation_module, parse_evaluation
from tests.fixtures.dense import COLORS, MeanColors, write_backbone

DATA = {"layout": "masks", "images": "images", "masks": "masks", "num_classes": 3, "input_size": 64}
VALIDATION = {**DATA, "val_every": 2, "val_offset": 1, "mask_size": 64}
PROTOCOLS = {
    "incontext": {**DATA, "memory_every": 2, "query_every": 2, "query_offset": 1, "augmentation_epochs": 0, "neighbours": 1},
    "linear_segmentation": {**VALIDATION, "train_every": 2, "epochs": 30, "drop_epoch": 30, "batch_size": 4, "learning_rate": 1.0},
    "linear_segmentation full": {**VALIDATION, "train_every": 2, "epochs": 30, "drop_epoch": 30, "batch_size": 4, "learning_rate": 1.0}
    | {"scoring": "full"},
    "overcluster": {**VALIDATION, "repeats": 1},
    "unsupervised_segmentation": {**VALIDATION, "threshold": 0.5, "mass": 0.99, "foreground_clusters": 4, "community_clusters": 2}
    | {"repeats": 1, "community_repeats": 1},
}


class Colors(MeanColors):
    """Attention on all that is not red."""

    def __init__(self):
        super().__init__()
        self.dim = 3

    def dense_and_attention(self, images):
        maps = self.dense(images)
        return maps, (maps[:, 1:].amax(1, keepdim=True) > 0).float() + 1e-4


def write_stripes(root, edges):
    """Three stripes of flat color with masks; their edges in every second image, which is scored, lie elsewhere."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for i in range(8):
        first, second = edges[i % 2]
        labels = np.zeros((64, 64), np.uint8)
        labels[:, first:second], labels[:, second:] = 1, 2
        Image.fromarray(COLORS[labels]).save(root / "images" / f"{i}.png")
        Image.fromarray(labels).save(root / "masks" / f"{i}.png")


def score(name, root, **changes):
    protocol = name.split()[0]
    settings = parse_evaluation(protocol, {"root": str(root), "dataset": "toy", **PROTOCOLS[name], **changes})
    backbone = write_backbone(root / "b.safetensors")
    job = Job(out=root / "out", state=root / f"state{len(changes)}", network=Colors())
    metric = "mIoU_cbfe" if protocol == "unsupervised_segmentation" else "mIoU"  # communities join what occurs side by side
    return evaluation_module(protocol).evaluate(settings, backbone, job).metrics[metric]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_refined_label_maps(name, tmp_path, monkeypatch):
    """Edges between patches: everything is found without and with it. Edges inside patches: with it alone."""
    monkeypatch.setattr(dense_features, "write_segmentation_strip", lambda *_: None)
    write_stripes(tmp_path / "even", [(20, 40), (24, 44)])
    write_stripes(tmp_path / "odd", [(20, 40), (21, 47)])
    refine = {"refine": "pamr", "refine_dilations": [1, 2, 4]}
    assert score(name, tmp_path / "even", **refine) == 100
    assert score(name, tmp_path / "odd", **refine) > score(name, tmp_path / "odd") + 1


@pytest.mark.parametrize("name", PROTOCOLS)
def test_nothing_changes_without_it(name):
    protocol = name.split()[0]

    def parsed(**changes):
        return parse_evaluation(protocol, {"root": ".", "dataset": "toy", **PROTOCOLS[name], **changes})

    plain, refined = parsed(), parsed(refine="pamr")
    assert not {"refine", "refine_iterations", "refine_dilations"} & plain.model_dump(mode="json").keys()
    assert config_hash(refined.model_dump(mode="json")) != config_hash(plain.model_dump(mode="json"))
    assert refined.protocol.endswith("refine pamr") or ", refine pamr," in refined.protocol
    assert "refine_dilations 1/3" in parsed(refine="pamr", refine_dilations=[1, 3]).protocol
    for change in ({"refine_iterations": 3}, {"refine_dilations": [1]}):
        with pytest.raises(ValidationError, match=f"{next(iter(change))}: nothing is refined; set `refine: pamr`, or leave it out"):
            parsed(**change)
    with pytest.raises(ValidationError, match="stands there twice"):
        parsed(refine="pamr", refine_dilations=[1, 1])
