import numpy as np
import pytest
from PIL import Image

import densewalk.evaluations.mmlab  # noqa: F401  stands in for mmcv's operators, which mmseg imports
from densewalk.core.errors import UserError
from densewalk.data.benchmarks.label_maps import list_cityscapes, list_coco_stuff, read_labels
from densewalk.data.benchmarks.label_rules import CLASSES, IGNORE, NAMES, class_rule, identity_rule
from densewalk.evaluations.segmentation.settings import Ade20kLinearSettings


def rules():
    return CLASSES | {"ade20k": Ade20kLinearSettings(root="x", dataset="x").rule}


def written(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).convert(mode).save(path) if mode else Image.fromarray(array).save(path)
    return path


@pytest.mark.parametrize(
    "rule",
    [
        *CLASSES.values(),
        class_rule(tuple(range(151)), 0),
        class_rule(tuple(range(4)), 1),
        class_rule(tuple(range(3))),
        class_rule(tuple(range(255))),
        class_rule((7, 300, 9), 65_535),
    ],
)
def test_classes_are_looked_up_value_by_value(tmp_path, rule):
    rng = np.random.default_rng(0)
    known = [*rule.values, *([] if rule.ignored is None else [rule.ignored])]
    labels = rng.choice(known, (20, 30)).astype(np.uint16 if max(known) > 255 else np.uint8)
    expected = np.empty(labels.shape, np.uint8)
    for at, label in np.ndenumerate(labels):
        expected[at] = IGNORE if label == rule.ignored else rule.values.index(label)
    found = read_labels(written(tmp_path / "mask.png", labels), rule)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(("label_values", "ignored"), [(4, None), (4, 1), (21, 255), (300, 65_535), (256, 0)])
def test_labels_that_are_not_renumbered_are_the_pixel_values(tmp_path, label_values, ignored):
    rule = identity_rule(label_values, ignored)
    known = sorted({*range(label_values), *([] if ignored is None else [ignored])})
    labels = np.random.default_rng(0).choice(known, (20, 30)).astype(np.uint16 if label_values >= 255 else np.uint8)
    assert np.array_equal(read_labels(written(tmp_path / "mask.png", labels), rule), labels)
    labels[3, 4] = label_values if ignored != label_values else label_values + 1
    with pytest.raises(UserError, match=f"holds label {labels[3, 4]}"):
        read_labels(written(tmp_path / "mask.png", labels), rule)


@pytest.mark.parametrize(
    ("layout", "value", "message"),
    [
        ("ade20k", 151, "holds label 151; allowed: 1 to 150 \\(150 classes\\), and 0 for pixels that are not scored"),
        ("voc", 21, "holds label 21; allowed: 0 to 20 \\(21 classes\\), and 255"),
        ("cityscapes", 33, "holds label 33"),  # labelIds instead of labelTrainIds
        ("coco_stuff", 11, "holds label 11"),  # a gap of the list of 182
    ],
)
def test_a_label_of_no_class_is_named(tmp_path, layout, value, message):
    mask = np.full((4, 5), rules()[layout].values[0], np.uint8)
    mask[2, 3] = value
    with pytest.raises(UserError, match=rf"mask.png {message}"):
        read_labels(written(tmp_path / "mask.png", mask), rules()[layout])


def test_label_rules_are_the_benchmarks():
    assert {name: (len(rule.values), max(rule.values) + 1, rule.ignored) for name, rule in rules().items()} == {
        "ade20k": (150, 151, 0),
        "voc": (21, 21, 255),
        "cityscapes": (19, 19, 255),
        "coco_stuff": (171, 182, 255),
    }
    assert all(len(NAMES[layout]) == len(rule.values) for layout, rule in CLASSES.items())
    # of COCO's 91 ids of things, 80 are used; COCO-Stuff's maps hold ids less one
    stuff = dict(zip(CLASSES["coco_stuff"].values, NAMES["coco_stuff"], strict=True))
    assert {stuff[k - 1] for k in (1, 13, 27, 90)} == {"person", "stop sign", "backpack", "toothbrush"}
    assert (stuff[91], stuff[181], sum(v < 91 for v in stuff)) == ("banner", "wood", 80)


def test_names_are_in_mmsegmentations_order():
    from mmseg.datasets import CityscapesDataset, COCOStuffDataset, PascalVOCDataset

    sets = {"voc": PascalVOCDataset, "cityscapes": CityscapesDataset, "coco_stuff": COCOStuffDataset}
    assert {name: kind.METAINFO["classes"] for name, kind in sets.items()} == {name: NAMES[name] for name in sets}


def test_cityscapes_needs_train_ids(tmp_path):
    picture = np.zeros((4, 5, 3), np.uint8)
    for city in ("ulm", "aachen"):
        written(tmp_path / f"leftImg8bit/train/{city}/{city}_0_leftImg8bit.png", picture)
        written(tmp_path / f"gtFine/train/{city}/{city}_0_gtFine_labelTrainIds.png", picture[:, :, 0])
        written(tmp_path / f"gtFine/train/{city}/{city}_0_gtFine_labelIds.png", picture[:, :, 0])
    found = list_cityscapes(tmp_path, "train", CLASSES["cityscapes"])
    assert [example.mask.name for example in found] == ["aachen_0_gtFine_labelTrainIds.png", "ulm_0_gtFine_labelTrainIds.png"]
    found[1].mask.unlink()
    with pytest.raises(UserError, match=r"ulm_0_leftImg8bit.png has no mask .*csCreateTrainIdLabelImgs"):
        list_cityscapes(tmp_path, "train", CLASSES["cityscapes"])
    with pytest.raises(UserError, match="leftImg8bit/test does not exist"):
        list_cityscapes(tmp_path, "test", CLASSES["cityscapes"])


@pytest.mark.parametrize(("images", "maps"), [("", "stuffthingmaps"), ("images", "annotations")])
def test_coco_stuff_takes_the_released_maps_wherever_they_lie(tmp_path, images, maps):
    for name in ("1", "2"):
        written(tmp_path / images / f"val2017/{name}.jpg", np.zeros((4, 5, 3), np.uint8))
        written(tmp_path / maps / f"val2017/{name}.png", np.zeros((4, 5), np.uint8))
    written(tmp_path / maps / "val2017/1_labelTrainIds.png", np.zeros((4, 5), np.uint8))
    found = list_coco_stuff(tmp_path, "val2017", CLASSES["coco_stuff"])
    assert [(example.image.name, example.mask.name) for example in found] == [("1.jpg", "1.png"), ("2.jpg", "2.png")]
    with pytest.raises(UserError, match="train2017 does not exist"):
        list_coco_stuff(tmp_path, "train2017", CLASSES["coco_stuff"])
