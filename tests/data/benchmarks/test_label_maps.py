"""Layouts of labelled images that need a renumbering, and bad ones."""

import json

import numpy as np
import pytest
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.label_maps import list_cityscapes, list_coco_panoptic, read_example, read_labels
from densewalk.data.benchmarks.label_rules import NAMES, LabelRule
from tests.fixtures.dense import image_of, write_panoptic
from tests.fixtures.helpers import shared

CATEGORIES = [
    {"id": 1, "isthing": 1, "supercategory": "person"},
    {"id": 3, "isthing": 1, "supercategory": "vehicle"},
    {"id": 125, "isthing": 0, "supercategory": "ground"},
]


@pytest.mark.parametrize("colors", [False, True])
def test_labels_against_their_loop(tmp_path, colors):
    values = np.random.default_rng(0).integers(0, 300, (9, 11)).astype(np.uint16)
    pixels = np.stack([values % 256, values // 256, 0 * values], axis=-1).astype(np.uint8) if colors else values
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    pairs = ((3, 0), (299, 1), (256, 2), (100, 7))
    expected = [[dict(pairs).get(int(v), 255) for v in row] for row in values]
    assert read_labels(tmp_path / "mask.png", LabelRule(pairs, others=255, colors=colors)).tolist() == expected
    assert (read_labels(tmp_path / "mask.png", LabelRule((), others=255, colors=colors)) == 255).all()


def labels_of(example):
    return read_labels(example.mask, example.rule)


def test_panoptic_masks_become_supercategories(tmp_path):
    """Segment ids go beyond one byte: the colors are a number, not a palette."""
    ids = write_panoptic(tmp_path, "val2017", {70_000: 1, 5: 3, 256: 125}, CATEGORIES)
    things, stuff = (labels_of(list_coco_panoptic(tmp_path, "val2017", layout)[0]) for layout in ("coco_things_12", "coco_stuff_15"))
    person, vehicle = (NAMES["coco_things_12"].index(name) for name in ("person", "vehicle"))
    ground = NAMES["coco_stuff_15"].index("ground")
    assert things.tolist() == [[{70_000: person, 5: vehicle}.get(int(v), 255) for v in row] for row in ids]
    assert stuff.tolist() == [[{256: ground}.get(int(v), 255) for v in row] for row in ids]


def test_real_panoptic_masks():
    root = shared("data/coco")
    for layout, count in (("coco_things_12", 12), ("coco_stuff_15", 15)):
        examples = list_coco_panoptic(root, "val2017", layout)
        assert len(examples) == 16
        found = set().union(*(np.unique(read_example(e)[1]).tolist() for e in examples))
        assert len(found) > 6
        assert found <= {*range(count), 255}


@pytest.mark.parametrize("segments", [{5: 3}, {}])
def test_a_panoptic_mask_with_segments_that_no_annotation_names(tmp_path, segments):
    """The PNG of another image: its pixels would all be passed over."""
    write_panoptic(tmp_path, "val2017", {5: 3, 9: 3}, CATEGORIES)
    path = tmp_path / "annotations/panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["segments_info"] = [{"id": i, "category_id": c} for i, c in segments.items()]
    path.write_text(json.dumps(content))
    (example,) = list_coco_panoptic(tmp_path, "val2017", "coco_things_12")
    with pytest.raises(UserError, match=r"7\.png holds the segment [59], which its annotation does not name"):
        read_example(example)


def test_panoptic_annotations_that_are_others(tmp_path):
    write_panoptic(tmp_path, "val2017", {5: 3}, [{"id": 3, "isthing": 1, "supercategory": "dragon"}])
    with pytest.raises(UserError, match=r"panoptic_val2017.json has the supercategory dragon; allowed: accessory, animal"):
        list_coco_panoptic(tmp_path, "val2017", "coco_things_12")
    write_panoptic(tmp_path, "val2017", {5: 3}, CATEGORIES)
    (tmp_path / "annotations/panoptic_val2017/7.png").unlink()
    with pytest.raises(UserError, match=r"names .*panoptic_val2017/7.png, which does not exist"):
        list_coco_panoptic(tmp_path, "val2017", "coco_things_12")
    Image.fromarray(np.zeros((32, 16), np.uint8)).save(tmp_path / "annotations/panoptic_val2017/7.png")
    with pytest.raises(UserError, match=r"7.png is no panoptic PNG \(L\)"):
        labels_of(list_coco_panoptic(tmp_path, "val2017", "coco_things_12")[0])


def test_cityscapes_has_training_ids(tmp_path):
    raw = np.arange(34, dtype=np.uint8)[None].repeat(4, 0)
    (tmp_path / "gtFine/val/ulm").mkdir(parents=True)
    (tmp_path / "leftImg8bit/val/ulm").mkdir(parents=True)
    Image.fromarray(raw).save(tmp_path / "gtFine/val/ulm/ulm_0_gtFine_labelIds.png")
    with pytest.raises(UserError, match=r"labelIds.png has no image .*ulm/ulm_0_leftImg8bit\.\* does not exist"):
        list_cityscapes(tmp_path, "val")
    image_of(raw, 0).save(tmp_path / "leftImg8bit/val/ulm/ulm_0_leftImg8bit.png")
    labels = labels_of(list_cityscapes(tmp_path, "val")[0])[0]
    named = {7: "road", 8: "sidewalk", 11: "building", 19: "traffic light", 23: "sky", 24: "person", 26: "car", 33: "bicycle"}
    assert {i: NAMES["cityscapes"][labels[i]] for i in named} == named
    assert sorted(labels[labels != 255].tolist()) == list(range(19))
    assert (labels == 255).sum() == 15
