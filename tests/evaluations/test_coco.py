import contextlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from faster_coco_eval import mask as our_rle
from mmengine.registry import DATASETS, METRICS, PARAM_SCHEDULERS, DefaultScope
from PIL import Image
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from densewalk.core.errors import UserError
from densewalk.evaluations.coco import evaluate as coco
from densewalk.evaluations.coco import experiment as mmdet
from densewalk.evaluations.coco.data import check_data
from densewalk.evaluations.coco.settings import CocoSettings
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.mmlab import detection, runner
from densewalk.models.loading import load
from densewalk.models.timm_models import named_architecture
from densewalk.results.published import published_numbers
from tests.fixtures.coco_matches import require_matched
from tests.fixtures.helpers import shared
from tests.fixtures.mmdata import CATEGORIES, backbone_file, write_coco

SMALL = {
    "dataset": "generated",
    "head": "maskrcnn",
    "iterations": 2,
    "batch_size": 2,
    "warmup": 1,
    "short_sides": [64, 96],
    "test_short_side": 64,
    "long_side": 128,
    "proposals": 20,
    "rois_per_image": 8,
    "channels": 8,
    "crop_augmentation": False,
}
NANO = named_architecture("vit_nano_patch16")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    return backbone_file(tmp_path_factory.mktemp("backbone"))


def small(data, **changes):
    return CocoSettings(root=str(data), **{**SMALL, **changes})


def job(folder, **options):
    return Job(out=folder / "out", state=folder / "state", **options)


def final_weights(folder):
    return torch.load(max((folder / "state" / "training").glob("step-*.pt")), weights_only=True)["model"]


# -- the whole evaluation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["maskrcnn", "cascade"])
def test_both_detectors_train_every_part_and_are_scored(data, nano, tmp_path, head):
    result = coco.evaluate(small(data, head=head, drop_path=0.0, crop_augmentation=head == "cascade"), nano, job(tmp_path))
    assert result.metrics.keys() == CocoSettings.METRICS.keys()
    assert all(0 <= value <= 100 for value in result.metrics.values())
    assert (result.n, result.unit) == (2, "images")
    json.dumps(result.details, allow_nan=False)
    assert (tmp_path / "out" / "optimizer.csv").is_file()
    prefix = "backbone.network.vit."
    after = {k.removeprefix(prefix): v for k, v in final_weights(tmp_path).items() if k.startswith(prefix)}
    before = load(nano).vit.state_dict()
    # final_norm is off, as in iBOT
    assert {k for k, v in after.items() if torch.equal(before[k], v)} == {"norm.weight", "norm.bias"}


def test_what_was_found_is_written_in_cocos_result_format(data, nano, tmp_path, monkeypatch):
    monkeypatch.setattr(mmdet, "SCORE", 0.0)
    result = coco.evaluate(small(data), nano, job(tmp_path))
    path = str(data / "annotations/instances_val2017.json")
    for kind, field, suffix in (("bbox", "bbox", "box"), ("segm", "segmentation", "mask")):
        file = tmp_path / "out" / f"detections_val2017_{kind}.json"
        records = json.loads(file.read_text())
        assert len(records) > 10
        assert all(record.keys() == {"image_id", "category_id", "score", field} for record in records)
        assert {record["image_id"] for record in records} == {1, 2}
        assert {record["category_id"] for record in records} <= {category["id"] for category in CATEGORIES}
        with contextlib.redirect_stdout(None):
            truth = COCO(path)
            reference = COCOeval(truth, truth.loadRes(str(file)), kind)
            reference.evaluate()
            reference.accumulate()
            reference.summarize()
        assert result.metrics[f"AP_{suffix}"] == pytest.approx(100 * reference.stats[0], abs=1e-9)


def test_a_seed_gives_the_same_weights_twice(data, nano, tmp_path):
    results = [coco.evaluate(small(data), nano, job(tmp_path / name, seed=3)) for name in "ab"]
    weights = [final_weights(tmp_path / name) for name in "ab"]
    assert results[0] == results[1]
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())


WITHOUT_PYCOCOTOOLS = """
import json, sys
from pathlib import Path

class Absent:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "pycocotools":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent)
from densewalk.evaluations.coco.evaluate import evaluate
from densewalk.evaluations.coco.settings import CocoSettings
from densewalk.evaluations.common.base import Job

settings, backbone, folder = sys.argv[1:]
result = evaluate(CocoSettings.model_validate_json(settings), backbone, Job(out=Path(folder) / "out", state=Path(folder) / "state"))
assert not [name for name in sys.modules if name.startswith("pycocotools")]
Path(folder, "metrics.json").write_text(json.dumps(result.metrics))
"""


def test_the_evaluation_is_the_same_without_pycocotools(data, nano, tmp_path):
    settings = small(data, learning_rate=1e-3)
    arguments = [settings.model_dump_json(), str(nano), str(tmp_path / "without")]
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_PYCOCOTOOLS, *arguments]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as the tests have: sums of two differ in the last digits
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=one_thread)
    assert done.returncode == 0, done.stderr
    with_it = coco.evaluate(settings, nano, job(tmp_path / "with"))
    assert json.loads((tmp_path / "without/metrics.json").read_text()) == with_it.metrics
    weights = [final_weights(tmp_path / name) for name in ("with", "without")]
    assert all(torch.equal(v, weights[1][k]) for k, v in weights[0].items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("head", "arch", "changes", "least"),
    [
        ("maskrcnn", NANO.name, {"channels": 64, "rois_per_image": 32, "proposals": 50, "learning_rate": 1e-3}, 50),
        # from 29 to 46 by the last digits of the processor's products, where twice the channels have more than 50 in twice the time;
        # without training 0
        ("cascade", "timm/resnet10t", {"channels": 32, "rois_per_image": 16, "proposals": 20, "learning_rate": 3e-3}, 20),
    ],
)
def test_four_images_are_overfitted(tmp_path, head, arch, changes, least):
    backbone = backbone_file(tmp_path, arch)
    root = write_coco(tmp_path, validation=4, size=(64, 96), same=True)
    sizes = {"short_sides": [64], "test_short_side": 64, "long_side": 256}
    settings = small(root, iterations=60, batch_size=4, warmup=5, drop_path=0.0, lr_drops=[0.8], head=head, **sizes, **changes)
    result = coco.evaluate(settings, backbone, job(tmp_path))
    assert result.metrics["AP_box"] > least
    assert result.metrics["AP_mask"] > least


# -- the score -------------------------------------------------------------------------------------------------------


def truth_as_prediction(settings, change=lambda box: box):
    """The score of predictions made from the ground truth, through the data set and metric of the evaluation."""
    training, validation = check_data(settings)
    experiment = mmdet.experiment(settings, "unused", NANO, training, validation)
    with DefaultScope.overwrite_default_scope("mmdet"), contextlib.redirect_stdout(None):
        dataset = DATASETS.build(experiment.test)
    metric = METRICS.build(experiment.metric)
    for i in range(len(dataset)):
        entry = dataset.get_data_info(i)
        seen = [instance for instance in entry["instances"] if not instance["ignore_flag"]]
        masks = np.array([decode(instance["mask"], entry["height"], entry["width"]) for instance in seen], dtype=bool)
        instances = {
            "bboxes": torch.tensor([change(instance["bbox"]) for instance in seen]).reshape(-1, 4),
            "labels": torch.tensor([instance["bbox_label"] for instance in seen], dtype=torch.long),
            "scores": torch.ones(len(seen)),
            "masks": torch.from_numpy(masks),
        }
        metric.process(None, [{"img_id": entry["img_id"], "pred_instances": instances}])
    return {name.removeprefix("score/"): value for name, value in metric.evaluate(len(dataset)).items()}


def decode(segmentation, height, width):
    if isinstance(segmentation, list):
        return rle.decode(rle.merge(rle.frPyObjects(segmentation, height, width)))
    return rle.decode(rle.frPyObjects(segmentation, height, width) if isinstance(segmentation["counts"], list) else segmentation)


def require_equal_masks(found, expected):
    """Both libraries' answers about the same run lengths: pixels, areas, boxes, unions and intersections."""
    assert found == expected
    assert np.array_equal(our_rle.decode(found), rle.decode(expected))
    assert np.array_equal(our_rle.area(found), rle.area(expected))
    assert np.array_equal(our_rle.toBbox(found), rle.toBbox(expected))
    for intersect in (False, True):
        assert our_rle.merge(found, intersect) == rle.merge(expected, intersect)
    for crowd in (0, 1):
        flags = [crowd] * len(found)
        assert np.array_equal(our_rle.iou(found, found, flags), rle.iou(expected, expected, flags))


def test_masks_are_pycocotools():
    generator = np.random.default_rng(0)
    for density in [0.0, 0.02, 0.5, 0.98, 1.0] * 20:
        height, width, count = (int(n) for n in generator.integers(1, [40, 40, 5]))
        masks = np.asfortranarray(generator.random((height, width, count)) < density, np.uint8)
        found = our_rle.encode(masks)
        require_equal_masks(found, rle.encode(masks))
        assert np.array_equal(our_rle.decode(found), masks)
        # a crowd's run lengths as numbers; a polygon that leaves the image
        flat = masks[:, :, 0].ravel(order="F")
        runs = np.diff(np.concatenate([[0], np.flatnonzero(np.diff(flat, prepend=0)), [len(flat)]])).tolist()
        crowd = {"size": [height, width], "counts": runs}
        require_equal_masks([our_rle.frPyObjects(crowd, height, width)], [rle.frPyObjects(crowd, height, width)])
        corners = generator.random((int(generator.integers(3, 9)), 2)) * 1.4 - 0.2
        polygon = (corners * [width, height]).ravel().tolist()
        require_equal_masks(our_rle.frPyObjects([polygon], height, width), rle.frPyObjects([polygon], height, width))


def test_masks_of_real_annotations_are_pycocotools():
    for split in ("train2017", "val2017"):
        content = json.loads((shared("data/coco") / f"annotations/instances_{split}.json").read_text())
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        for annotation in content["annotations"]:
            shape = annotation["segmentation"]
            if isinstance(shape, list):
                require_equal_masks(
                    our_rle.frPyObjects(shape, *sizes[annotation["image_id"]]), rle.frPyObjects(shape, *sizes[annotation["image_id"]])
                )
            else:
                require_equal_masks([shape], [shape])


def test_ground_truth_as_prediction_scores_100(data):
    found = truth_as_prediction(small(data))
    assert {name: found[name] for name in CocoSettings.METRICS} == pytest.approx(dict.fromkeys(CocoSettings.METRICS, 100.0))
    shifted = truth_as_prediction(small(data), lambda box: [x + 6 for x in box])
    assert shifted["AP_box"] < 80
    assert shifted["AP_mask"] == pytest.approx(100)


def test_real_annotations_with_crowds_score_100_too():
    settings = small(shared("data/coco"))
    found = truth_as_prediction(settings)
    assert {name: found[name] for name in settings.METRICS} == pytest.approx(dict.fromkeys(settings.METRICS, 100.0))
    content = json.loads((shared("data/coco") / "annotations/instances_val2017.json").read_text())
    assert any(annotation["iscrowd"] for annotation in content["annotations"])
    assert found["AP_small_box"] == pytest.approx(100)


def random_detections(truth, rng):
    """Perturbed objects, wrong classes and scores that tie; the masks leave out a fifth of their boxes."""
    found = []
    categories = truth.getCatIds()
    for annotation in truth.dataset["annotations"]:
        image = truth.imgs[annotation["image_id"]]
        for _ in range(rng.integers(0, 4)):
            x, y, w, h = np.array(annotation["bbox"]) + rng.normal(0, 4, 4)
            x, y = max(0.0, x), max(0.0, y)
            box = [x, y, min(max(w, 2.0), image["width"] - x), min(max(h, 2.0), image["height"] - y)]
            mask = np.zeros((image["height"], image["width"]), np.uint8, order="F")
            mask[round(y) : round(y + box[3]) + 1, round(x) : round(x + 0.8 * box[2]) + 1] = 1
            category = annotation["category_id"] if rng.random() < 0.8 else int(rng.choice(categories))
            record = {"image_id": image["id"], "category_id": category, "score": round(float(rng.random()), 1)}
            found.append(record | {"bbox": [float(v) for v in box], "segmentation": rle.encode(mask)})
    return found


@pytest.mark.parametrize("real", [False, True])
def test_statistics_are_pycocotools(data, real):
    root, split = (shared("data/coco"), "val2017") if real else (data, "train2017")
    path = root / f"annotations/instances_{split}.json"
    with contextlib.redirect_stdout(None):
        truth = COCO(str(path))
    found = random_detections(truth, np.random.default_rng(0))
    ours = detection.CocoScore(str(path), truth.getCatIds()).compute_metrics([found[:10], found[10:]])
    units = ours.pop("units")
    units.require_scores(ours)
    assert units.ids == [truth.imgs[i]["file_name"] for i in sorted(truth.imgs)]
    assert set(units.statistics) == {f"{name}_{kind}" for name in ("AP", "AP50", "AP75") for kind in ("box", "mask")}
    assert [ours.pop(kind) for kind in ("boxes", "masks")] == [
        [{k: v for k, v in record.items() if k != other} for record in found] for other in ("segmentation", "bbox")
    ]
    expected = {}
    for kind, suffix, other in (("bbox", "box", "segmentation"), ("segm", "mask", "bbox")):
        with contextlib.redirect_stdout(None):
            records = [{k: v for k, v in record.items() if k != other} for record in found]
            reference = COCOeval(truth, truth.loadRes(records), kind)
            reference.evaluate()
            reference.accumulate()
            reference.summarize()
        require_matched(units.statistics[f"AP_{suffix}"], reference)
        expected |= {f"{n}_{suffix}": 100 * v for n, v in zip(detection.STATISTICS, reference.stats[:6], strict=True) if v >= 0}
    assert ours == pytest.approx(expected, abs=1e-9)
    assert 3 < ours["AP_mask"] < ours["AP_box"] < 95


def test_no_detection_is_ap_0_and_empty_size_bins_are_left_out(data):
    path = str(data / "annotations/instances_val2017.json")
    for kind, suffix in (("bbox", "box"), ("segm", "mask")):
        found, units = detection.average_precision(path, [], kind)
        units.require_scores(found)
        assert found[f"AP_{suffix}"] == found[f"AP50_{suffix}"] == 0.0
        assert f"AP_large_{suffix}" not in found


# -- data ------------------------------------------------------------------------------------------------------------


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def spoil(root, what):
    train, val = (root / f"annotations/instances_{split}2017.json" for split in ("train", "val"))
    if what == "file":
        train.unlink()
    elif what == "folder":
        (root / "val2017").rename(root / "val2014")
    elif what == "image":
        (root / "train2017/000000000002.jpg").unlink()
    elif what == "json":
        val.write_text("[1, 2]")
    elif what == "categories":
        edit(val, lambda c: c["categories"].reverse())
    elif what == "category":
        edit(train, lambda c: c["annotations"][4].update(category_id=77))
    elif what == "mask":
        edit(train, lambda c: c["annotations"][4].pop("segmentation"))
    elif what == "none":
        edit(train, lambda c: c["annotations"].clear())


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("file", r"instances_train2017.json does not exist"),
        ("folder", r"val2017 does not exist"),
        ("image", r"lists 1 images that are not in .*train2017: .*000000000002.jpg does not exist"),
        ("json", r"instances_val2017.json is no annotation file of COCO: it holds \[1, 2\]"),
        ("categories", r"do not list the same categories in the same order"),
        ("category", r"instances_train2017.json: annotations\[4\] \(id 5\): category_id 77 is the id of no category"),
        ("mask", r"annotations\[4\] \(id 5\): segmentation is missing"),
        ("none", r"instances_train2017.json has no image of at least 32 x 32 px with an object"),
    ],
)
def test_bad_data_is_named_before_anything_heavy(tmp_path, nano, what, message, monkeypatch):
    write_coco(tmp_path)
    spoil(tmp_path, what)
    monkeypatch.setattr(runner, "run", lambda *_: pytest.fail("trained on bad data"))
    with pytest.raises(UserError, match=message):
        coco.evaluate(small(tmp_path), nano, job(tmp_path))


def test_labels_follow_the_files_categories(data):
    training, validation = check_data(small(data))
    experiment = mmdet.experiment(small(data), "unused", NANO, training, validation)
    batches, _ = runner.loaders(experiment, Job(out=data, state=data))
    assert experiment.metric["category_ids"] == [category["id"] for category in CATEGORIES]
    content = json.loads((data / "annotations/instances_train2017.json").read_text())
    for sample in next(iter(batches))["data_samples"]:
        ids = [CATEGORIES[i]["id"] for i in sample.gt_instances.labels.tolist()]
        assert ids == [a["category_id"] for a in content["annotations"] if a["image_id"] == sample.img_id]
        assert min(sample.img_shape) in (64, 96)


def test_detr_crops_are_taken_from_the_published_sizes(data):
    training, validation = check_data(small(data))
    full = CocoSettings(root=str(data), dataset="x")
    pipeline = mmdet.experiment(full, "unused", NANO, training, validation).training["pipeline"]
    plain, cropped = next(step for step in pipeline if step["type"] == "RandomChoice")["transforms"]
    assert plain[0]["scales"] == [(1333, side) for side in (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)] == cropped[2]["scales"]
    assert cropped[0]["scales"] == [(1333, 400), (1333, 500), (1333, 600)]
    assert cropped[1]["crop_size"] == (384, 600)


# -- settings and schedule -------------------------------------------------------------------------------------------


def test_the_learning_rate_warms_up_and_drops_twice():
    settings = small("x", iterations=24, warmup=4, lr_drops=[8 / 12, 11 / 12])
    optimizer = torch.optim.AdamW([torch.zeros(1)], lr=1.0)
    schedulers = [PARAM_SCHEDULERS.build(config | {"optimizer": optimizer}) for config in mmdet.schedules(settings, 24)]
    for t in range(24):
        expected = 0.1 ** ((t >= 16) + (t >= 22))
        if t < 4:
            expected *= 1 - (1 - t / 4) * (1 - 1e-3)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected), t
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()


def test_lengths():
    full = CocoSettings(root="x", dataset="x")
    assert full.total_iterations(117_266) == round(12 * 117_266 / 32)
    assert full.model_copy(update={"iterations": 7}).total_iterations(117_266) == 7
    assert small("x").total_iterations(10) == 2


@pytest.mark.parametrize(("patch", "divisor"), [(8, 32), (14, 28), (16, 32)])
def test_images_are_padded_to_what_all_levels_divide(patch, divisor):
    arch = named_architecture(f"vit_nano_patch{patch}")
    model = mmdet.detector(small("x"), "unused", arch, classes=3)
    assert model["data_preprocessor"]["pad_size_divisor"] == divisor
    assert model["roi_head"]["bbox_roi_extractor"]["featmap_strides"] == model["rpn_head"]["anchor_generator"]["strides"][:4]


WHOLE = {"id": 99, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "iscrowd": 0, "segmentation": [[0, 0, 9, 0, 9, 9, 0, 9]]}


def test_an_epoch_counts_the_images_that_are_trained_on(tmp_path):
    write_coco(tmp_path)
    path = tmp_path / "annotations/instances_train2017.json"
    edit(path, lambda c: c.update(annotations=[a for a in c["annotations"] if a["image_id"] != 3]))
    edit(path, lambda c: c["images"][0].update(height=31))
    edit(path, lambda c: c.update(annotations=[a for a in c["annotations"] if a["image_id"] != 1]))
    edit(path, lambda c: c["annotations"].append({**WHOLE, "image_id": 1}))
    with Image.open(tmp_path / "train2017/000000000001.jpg") as image:
        image.crop((0, 0, image.width, 31)).save(tmp_path / "train2017/000000000001.jpg")
    settings = small(tmp_path, iterations=None, epochs=6.0)
    training, validation = check_data(settings)
    experiment = mmdet.experiment(settings, "unused", NANO, training, validation)
    batches, _ = runner.loaders(experiment, Job(out=tmp_path, state=tmp_path))
    assert len(batches.dataset) == training.usable == 2
    assert (training.count, experiment.iterations) == (4, 6)


def test_levels_must_exist(data, nano, tmp_path):
    with pytest.raises(UserError, match="allowed: ascending block numbers from 0 to 1"):
        coco.evaluate(small(data, head="cascade", levels=[0, 1, 1, 5]), nano, job(tmp_path))


def test_published_names_exist_and_need_the_published_settings():
    known = {(row["dataset"], row["protocol"]) for row in published_numbers()}
    settings = CocoSettings(root="x", dataset="COCO")
    assert ("COCO", settings.published_protocol) in known
    base = CocoSettings(root="x", dataset="COCO", preset="base")
    assert (base.batch_size, base.layer_decay, base.drop_path, base.learning_rate, base.warmup) == (16, 0.75, 0.2, 1e-4, 500)
    assert base.published_protocol == settings.published_protocol
    for change in (
        {"head": "maskrcnn"},
        {"batch_size": 16},
        {"epochs": 36.0},
        {"iterations": 90_000},
        {"dataset": "mini"},
        {"final_norm": True},
    ):
        assert settings.model_copy(update=change).published_protocol is None, change


def test_a_smaller_batch_sees_as_many_images_at_a_lower_rate():
    settings = CocoSettings(root="x", dataset="COCO", batch_size=8)
    assert (settings.learning_rate, settings.warmup, settings.epochs) == (2.5e-5, 2000, 12)
    assert settings.total_iterations(80) == 120
    assert settings.protocol == "Cascade Mask R-CNN (iBOT), 1x, batch 8, learning_rate 2.5e-05, warmup 2000"
    assert settings.published_protocol is None
    assert CocoSettings(root="x", dataset="COCO", preset="base", batch_size=8).learning_rate == 5e-5
    assert CocoSettings(root="x", dataset="COCO", batch_size=8, learning_rate=1e-4).learning_rate == 1e-4


def test_every_setting_that_matters_is_in_the_protocols_name():
    settings = CocoSettings(root="x", dataset="x")
    others = {"head": "maskrcnn", "iterations": 5, "levels": [1, 2, 3, 4], "short_sides": [800], "lr_drops": [0.5]}
    for name in CocoSettings.model_fields.keys() - {"root", "dataset", "gradient_checkpointing", "preset"}:
        value = getattr(settings, name)
        other = others.get(name) or ((not value) if isinstance(value, bool) else value / 2 if isinstance(value, float) else value + 1)
        assert settings.model_copy(update={name: other}).protocol != settings.protocol, name


def test_protocol_names():
    assert CocoSettings(root="x", dataset="x").protocol == "Cascade Mask R-CNN (iBOT), 1x, batch 32"
    assert small("x").protocol.startswith("Mask R-CNN, simple feature pyramid, 2 it, batch 2, channels 8, ")


def test_contradictions_are_refused():
    with pytest.raises(ValueError, match="levels: maskrcnn takes the last map alone"):
        small("x", levels=[0, 0, 1, 1])
    with pytest.raises(ValueError, match="must be ascending parts of the training"):
        small("x", lr_drops=[0.9, 0.5])
    assert CocoSettings.model_validate_json(small("x").model_dump_json()) == small("x")
