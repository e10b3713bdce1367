"""After the labels were corrected, an evaluation never scores what it has learnt from the old ones."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.evaluations.common.base import Job
from densewalk.jobs import evaluate as evaluate_job
from densewalk.jobs import train as train_job
from densewalk.results.records import read_result
from densewalk.study.config import parse_study
from densewalk.study.registry import evaluation_module, parse_evaluation
from densewalk.training.execution import Execution
from tests.evaluations.test_coco import SMALL as COCO
from tests.evaluations.test_segmentation import SMALL as ADE
from tests.fixtures.dense import write_backbone, write_masks
from tests.fixtures.layouts import write_classes
from tests.fixtures.mmdata import backbone_file, write_ade, write_coco

MASKS = {"layout": "masks", "images": "images", "masks": "masks", "num_classes": 4}
SPLITS = {"train_every": 2, "val_every": 2, "val_offset": 1, "input_size": 32, "mask_size": 8}
# protocol -> what writes the data, settings, which labels are changed
CASES = {
    "linear_segmentation": (write_masks, {**MASKS, **SPLITS, "epochs": 1, "batch_size": 3}, "masks/*.png"),
    "ade20k_linear": (write_ade, {**ADE, "iterations": 2}, "**/annotations/**/*.png"),
    "coco": (write_coco, COCO, "annotations/instances_train2017.json"),
    "linear": (
        lambda root: write_classes(root, {"train": {"n01": 4, "n02": 4}, "val": {"n01": 2, "n02": 2}}),
        {"resize": 18, "size": 16, "batch_size": 4, "epochs": 1, "blocks": [1]},
        "train/n0?",
    ),
}


def change_labels(root, pattern):
    """Other labels; files keep size and time where the format allows it."""
    paths = sorted(root.glob(pattern))
    assert paths
    if paths[0].is_dir():  # a class is a folder's name
        for one, other in zip(*(sorted(folder.iterdir())[:2] for folder in paths), strict=True):
            content = one.read_bytes()
            one.write_bytes(other.read_bytes())
            other.write_bytes(content)
        return
    for path in paths:
        times = path.stat()
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            for annotation in content["annotations"]:
                annotation["category_id"] = {1: 3, 3: 1}.get(annotation["category_id"], annotation["category_id"])
            path.write_text(json.dumps(content))
        else:
            mask = np.asarray(Image.open(path))
            Image.fromarray(np.where(mask == 1, 2, np.where(mask == 2, 1, mask)).astype(np.uint8)).save(path)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def final(folder):
    return hashlib.sha256(max((folder / "state" / "training").glob("step-*.pt")).read_bytes()).hexdigest()


@pytest.mark.parametrize("protocol", CASES)
def test_corrected_labels_train_another_head_in_the_same_state_folder(tmp_path, protocol):
    write, settings, labels = CASES[protocol]
    write(tmp_path / "data")
    backbone = backbone_file(tmp_path) if protocol.startswith(("ade", "coco")) else write_backbone(tmp_path / "b.safetensors")
    parsed = parse_evaluation(protocol, {"dataset": "toy", **settings, "root": str(tmp_path / "data")})

    def head(folder):
        result = evaluation_module(protocol).evaluate(
            parsed, backbone, Job(out=tmp_path / folder / "out", state=tmp_path / folder / "state")
        )
        return final(tmp_path / folder), result.metrics

    before = head("kept")
    assert head("kept") == before
    change_labels(tmp_path / "data", labels)
    fresh = head("fresh")
    assert fresh[0] != before[0], "the labels make a difference here"
    assert head("kept") == fresh


def test_a_result_says_what_it_was_made_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_masks(tmp_path / "data")
    settings = {"root": "data", "dataset": "toy", **CASES["linear_segmentation"][1]}
    study = parse_study(
        {
            "study": "s",
            "runs": {"start": {"method": "none", "init": "random", "arch": "vit_nano_patch16"}},
            "evaluations": {"lin": {"protocol": "linear_segmentation", "settings": settings}},
        }
    )
    execution, folder = Execution(device="cpu", workers=0), tmp_path / "results/start/s0"
    train_job.make_backbone(study.run_spec("start", 0), None, [], tmp_path / "state/a", folder, execution)
    spec = study.evaluation_spec("start", 0, "lin")

    def record():
        evaluate_job.evaluate(spec, folder / "backbone.safetensors", spec.state(tmp_path / "results"), folder / "lin.json", execution)
        return read_result(folder / "lin.json")

    first = record()
    assert first.data.files == len(list((tmp_path / "data").rglob("*.png")))
    assert first.backbone_sha256 == hashlib.sha256((folder / "backbone.safetensors").read_bytes()).hexdigest()
    assert [attempt.until for attempt in first.made] == [int(max(spec.state(tmp_path / "results").rglob("step-*.pt")).stem[5:])]
    change_labels(tmp_path / "data", "masks/*.png")
    assert record().data != first.data


@pytest.mark.parametrize(
    ("protocol", "settings"),
    [
        ("linear_segmentation", {**MASKS, "masks": "/elsewhere/masks"}),
        ("linear_segmentation", {**MASKS, "images": "../images"}),
        ("overcluster", {"layout": "voc", "masks": "/elsewhere"}),
        ("segmentation_linear", {"layout": "folders", "training": "a", "validation": "../b", "num_classes": 3}),
        ("linear", {"training": "/elsewhere/train"}),
        ("knn", {"validation": "x/../../val"}),
        ("discovery", {"layout": "coco", "annotations": "/elsewhere/a.json"}),
        ("discovery", {"layout": "coco", "ids": ".lists/ids.txt"}),
        ("tracking", {"split": "/elsewhere"}),
        ("davis", {"resolution": "../480p"}),
        ("video_segmentation", {"layout": "youtube_vos", "sequence_list": "/elsewhere/list.txt"}),
    ],
)
def test_files_that_a_fingerprint_would_not_see_are_refused(protocol, settings):
    """Corrected labels in them would be scored by the old head."""
    with pytest.raises(ValueError, match="does not lie below root, or is hidden"):
        parse_evaluation(protocol, {"root": "data", "dataset": "toy", **settings})


@pytest.mark.parametrize("protocol", ["ade20k_linear", "coco", "linear"])
def test_a_validation_split_that_is_a_link_to_the_training_is_refused(tmp_path, protocol):
    write, settings, _ = CASES[protocol]
    write(tmp_path)
    for folder in [f for name in ("validation", "val2017", "val") for f in tmp_path.rglob(name) if f.is_dir()]:
        shutil.rmtree(folder)
        folder.symlink_to({"validation": "training", "val2017": "train2017", "val": "train"}[folder.name])
    if protocol == "coco":
        shutil.copy(tmp_path / "annotations/instances_train2017.json", tmp_path / "annotations/instances_val2017.json")
    parsed = parse_evaluation(protocol, {"dataset": "toy", **settings, "root": str(tmp_path)})
    with pytest.raises(UserError, match="is in the training and in the validation split"):
        evaluation_module(protocol).describe_data(parsed)
