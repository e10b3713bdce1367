"""Layouts of labelled images that need a renumbering, and bad ones."""

import numpy as np
import pytest
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.data.benchmarks import label_maps as labelled
from densewalk.data.benchmarks.label_maps import Relabel, read_labels
from tests.fixtures.dense import picture, write_panoptic
from tests.fixtures.helpers import shared

CATEGORIES = [
    {"id": 1, "isthing": 1, "supercategory": "person"},
    {"id": 3, "isthing": 1, "supercategory": "vehicle"},
    {"id": 125, "isthing": 0, "supercategory": "ground"},
]


def test_relabel_against_its_loop():
    values = np.random.default_rng(0).integers(0, 300, (9, 11))
    pairs = ((3, 0), (100, 7), (256, 2), (299, 1))
    expected = [[dict(pairs).get(int(v), 255) for v in row] for row in values]
    assert Relabel(pairs)(values).tolist() == expected
    assert (Relabel(())(values) == 255).all()


def test_panoptic_masks_become_supercategories(tmp_path):
    """Segment ids go beyond one byte: the colours are a number, not a palette."""
    ids = write_panoptic(tmp_path, "val2017", {70_000: 1, 5: 3, 256: 125}, CATEGORIES)
    things, stuff = (read_labels(labelled.coco(tmp_path, "val2017", kind)[0]) for kind in ("things", "stuff"))
    person, vehicle = labelled.THINGS_NAMES.index("person"), labelled.THINGS_NAMES.index("vehicle")
    ground = labelled.STUFF_NAMES.index("ground")
    assert things.tolist() == [[{70_000: person, 5: vehicle}.get(int(v), 255) for v in row] for row in ids]
    assert stuff.tolist() == [[{256: ground}.get(int(v), 255) for v in row] for row in ids]


def test_real_panoptic_masks():
    root = shared("data/coco")
    for kind, count in (("things", 12), ("stuff", 15)):
        examples = labelled.coco(root, "val2017", kind)
        assert len(examples) == 16
        found = set().union(*(np.unique(labelled.read(e, label_values=count, ignore=255)[1]).tolist() for e in examples))
        assert len(found) > 6


def test_panoptic_annotations_that_are_others(tmp_path):
    write_panoptic(tmp_path, "val2017", {5: 3}, [{"id": 3, "isthing": 1, "supercategory": "dragon"}])
    with pytest.raises(UserError, match=r"panoptic_val2017.json lacks 'dragon'"):
        labelled.coco(tmp_path, "val2017", "things")
    write_panoptic(tmp_path, "val2017", {5: 3}, CATEGORIES)
    (tmp_path / "annotations/panoptic_val2017/7.png").unlink()
    with pytest.raises(UserError, match=r"names .*panoptic_val2017/7.png, which does not exist"):
        labelled.coco(tmp_path, "val2017", "things")
    Image.fromarray(np.zeros((32, 16), np.uint8)).save(tmp_path / "annotations/panoptic_val2017/7.png")
    with pytest.raises(UserError, match=r"7.png is no panoptic PNG \(L\)"):
        read_labels(labelled.coco(tmp_path, "val2017", "things")[0])


def test_cityscapes_has_training_ids(tmp_path):
    raw = np.arange(34, dtype=np.uint8)[None].repeat(4, 0)
    (tmp_path / "gtFine/val/ulm").mkdir(parents=True)
    (tmp_path / "leftImg8bit/val/ulm").mkdir(parents=True)
    Image.fromarray(raw).save(tmp_path / "gtFine/val/ulm/ulm_0_gtFine_labelIds.png")
    with pytest.raises(UserError, match=r"labelIds.png has no image .*ulm_0_leftImg8bit.png"):
        labelled.cityscapes(tmp_path, "val")
    picture(raw, 0).save(tmp_path / "leftImg8bit/val/ulm/ulm_0_leftImg8bit.png")
    labels = read_labels(labelled.cityscapes(tmp_path, "val")[0])[0]
    named = {7: "road", 8: "sidewalk", 11: "building", 19: "traffic light", 23: "sky", 24: "person", 26: "car", 33: "bicycle"}
    assert {i: labelled.NAMES["cityscapes"][labels[i]] for i in named} == named
    assert sorted(labels[labels != 255].tolist()) == list(range(19))
    assert (labels == 255).sum() == 15
