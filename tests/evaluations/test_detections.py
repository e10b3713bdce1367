"""COCO's evaluation of boxes against pycocotools, cell by cell."""

import contextlib
import copy

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from densewalk.evaluations.metrics.detections import AREAS, MOST, THRESHOLDS, box_evaluation
from densewalk.evidence.average_precision import RECALLS
from tests.fixtures.coco_matches import require_matched

NAMES = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large"]


def random_boxes(generator, count, whole):
    """Places and sizes of all size bins; whole numbers on a coarse grid give equal overlaps, and those of thresholds."""
    size = generator.choice([8, 30, 32, 60, 96, 150], (count, 2)) * (1 if whole else generator.uniform(0.9, 1.1, (count, 2)))
    place = generator.integers(0, 12, (count, 2)) * 8 + (0 if whole else generator.normal(0, 1, (count, 2)))
    return np.concatenate([place, size], 1)


def random_content(generator, images, classes, whole):
    """A file of instances: ids with gaps in a random order, images and classes without objects, crowds, areas that are not the box's."""
    ids = [(1 + generator.permutation(n) * 3).tolist() for n in (images, classes)]
    count = int(generator.integers(0, 12 * images))
    boxes = random_boxes(generator, count, whole)
    annotations = []
    for number, box in enumerate(boxes, 1):
        area = generator.choice([box[2] * box[3], 0.7 * box[2] * box[3], 32**2, 96**2])
        image, category = (int(generator.choice(part[: max(1, len(part) * 3 // 4)])) for part in ids)
        crowd = int(generator.random() < 0.15)
        entry = {"id": number, "image_id": image, "category_id": category, "area": float(area), "iscrowd": crowd}
        annotations.append(entry | {"bbox": box.tolist(), "segmentation": []})
    named = [[{"id": i, "name": str(i), "file_name": f"{i}.jpg", "width": 300, "height": 300} for i in part] for part in ids]
    return {"images": named[0], "categories": named[1], "annotations": annotations}


def random_records(generator, content, whole, digits):
    """Objects found once, twice or not, moved and of another class; boxes anywhere; more than 100 of one image and class."""
    ids = [[entry["id"] for entry in content[part]] for part in ("images", "categories")]
    rows = []
    for entry in content["annotations"]:
        for _ in range(generator.integers(0, 4)):
            moved = np.array(entry["bbox"]) + (generator.integers(-1, 2, 4) * 4 if whole else generator.normal(0, 3, 4))
            category = entry["category_id"] if generator.random() < 0.8 else int(generator.choice(ids[1]))
            rows.append((entry["image_id"], category, moved))
    for box in random_boxes(generator, int(generator.integers(0, 40)), whole):
        rows.append((*(int(generator.choice(part)) for part in ids), box))
    if generator.random() < 0.3:
        place = [int(generator.choice(part)) for part in ids]
        rows += [(*place, box) for box in random_boxes(generator, 130, whole)]
    rows.append((ids[0][0], 2, np.ones(4)))  # of no class in the file
    rows = [rows[i] for i in generator.permutation(len(rows))]
    scores = generator.random(len(rows)).round(digits).tolist()
    return [
        {"image_id": image, "category_id": category, "bbox": box.tolist(), "score": score}
        for (image, category, box), score in zip(rows, scores, strict=True)
    ]


def pycocotools_evaluation(content, records):
    truth, found = COCO(), COCO()
    truth.dataset = copy.deepcopy(content)
    with contextlib.redirect_stdout(None):
        truth.createIndex()
        if records:
            found = truth.loadRes(copy.deepcopy(records))
        else:  # it cannot load none
            found.dataset = truth.dataset | {"annotations": []}
            found.createIndex()
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def require_equal(content, records):
    """Every cell of precision and recall, all statistics, and what every detection matched, to the last bit."""
    expected, ours = pycocotools_evaluation(content, records), box_evaluation(content, records)
    precision, recall = ours.curves
    options = expected.params
    assert np.array_equal(options.recThrs, RECALLS)
    assert np.array_equal(options.iouThrs, THRESHOLDS)
    assert (tuple(options.maxDets), options.areaRng) == (MOST, [list(area) for area in AREAS.values()])
    assert np.array_equal(precision.transpose(2, 3, 4, 0, 1), expected.eval["precision"])
    assert np.array_equal(recall.transpose(2, 3, 0, 1), expected.eval["recall"])
    assert list(ours.statistics().items()) == list(zip(NAMES, expected.stats.tolist(), strict=True))
    require_matched(ours.matched([]), expected)
    return precision


@pytest.mark.parametrize("whole", [True, False], ids=["ties of overlaps", "any numbers"])
def test_boxes_are_pycocotools(whole):
    seen = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        content = random_content(generator, *generator.integers(1, [7, 5]), whole)
        precision = require_equal(content, random_records(generator, content, whole, digits=int(generator.integers(1, 4))))
        seen += ((precision > 0) & (precision < 1)).sum()
    assert seen > 1000, "there were cells that could differ"


def test_nothing_found_and_nothing_to_find():
    generator = np.random.default_rng(0)
    content = random_content(generator, 4, 3, True)
    require_equal(content, [])
    records = random_records(generator, content, True, 1)
    require_equal(content | {"annotations": []}, records)
    for entry in content["annotations"]:
        entry["iscrowd"] = 1
    require_equal(content, records)


def test_odd_boxes_and_scores_are_treated_alike():
    generator = np.random.default_rng(1)
    content = random_content(generator, 3, 2, True)
    records = random_records(generator, content, True, 1)
    for i, box in enumerate(([5, 5, 0, 9], [5, 5, -4, 9], [0, 0, 2e5, 2e5], [float("nan"), 5, 9, 9], [5, 5, 9, float("inf")])):
        records[i]["bbox"] = [float(x) for x in box]
    records[7]["score"], records[8]["score"] = -1.0, 1e300
    require_equal(content, records)


def test_a_missing_crowd_flag_is_none_and_an_unknown_image_is_refused():
    generator = np.random.default_rng(2)
    content = random_content(generator, 3, 2, True)
    records = random_records(generator, content, True, 1)
    for entry in content["annotations"]:
        entry["iscrowd"] = 0
    expected = box_evaluation(content, records).statistics()
    for entry in content["annotations"]:
        del entry["iscrowd"]
    assert box_evaluation(content, records).statistics() == expected
    with pytest.raises(AssertionError, match="an image that is not in the file"):
        box_evaluation(content, [{**records[0], "image_id": 2}])
