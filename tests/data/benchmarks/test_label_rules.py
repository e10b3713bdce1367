import numpy as np
import pytest
from PIL import Image

import densewalk.evaluations.mmlab  # noqa: F401  stands in for mmcv's operators, which mmseg imports
from densewalk.core.errors import UserError
from densewalk.data.benchmarks import label_maps as labelled
from densewalk.data.benchmarks import label_maps as layouts
from densewalk.data.benchmarks.label_rules import NAMES, RULES, LabelRule, counted
from densewalk.evaluations.segmentation.settings import Ade20kLinearSettings


def rules():
    return RULES | {"ade20k": Ade20kLinearSettings(root="x", dataset="x").rule}


def written(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).convert(mode).save(path) if mode else Image.fromarray(array).save(path)
    return path


@pytest.mark.parametrize("rule", [*RULES.values(), counted(151, 0), counted(4, 1), counted(3, None), LabelRule((7, 300, 9), 65_535)])
def test_classes_are_looked_up_value_by_value(tmp_path, rule):
    rng = np.random.default_rng(0)
    known = [*rule.values, *([] if rule.ignored is None else [rule.ignored])]
    labels = rng.choice(known, (20, 30)).astype(np.uint16 if max(known) > 255 else np.uint8)
    expected = np.empty(labels.shape, np.uint8)
    for at, label in np.ndenumerate(labels):
        expected[at] = layouts.IGNORE if label == rule.ignored else rule.values.index(label)
    found = layouts.read_classes(written(tmp_path / "mask.png", labels), rule)
    assert found.dtype == np.uint8
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("layout", "value", "message"),
    [
        ("ade20k", 151, "holds label 151; allowed: the 150 classes from 1 to 150, and 0 for pixels that are not scored"),
        ("voc", 21, "holds label 21; allowed: the 21 classes from 0 to 20, and 255"),
        ("cityscapes", 33, "holds label 33"),  # labelIds instead of labelTrainIds
        ("coco_stuff", 11, "holds label 11"),  # a gap of the list of 182
    ],
)
def test_a_label_of_no_class_is_named(tmp_path, layout, value, message):
    mask = np.full((4, 5), rules()[layout].values[0], np.uint8)
    mask[2, 3] = value
    with pytest.raises(UserError, match=rf"mask.png {message}"):
        layouts.read_classes(written(tmp_path / "mask.png", mask), rules()[layout])


def test_label_rules_are_the_benchmarks():
    assert {name: (len(rule.values), rule.label_values, rule.ignored) for name, rule in rules().items()} == {
        "ade20k": (150, 151, 0),
        "voc": (21, 21, 255),
        "cityscapes": (19, 19, 255),
        "coco_stuff": (171, 182, 255),
    }
    assert all(len(names) == len(rules()[layout].values) for layout, names in NAMES.items())
    # of COCO's 91 ids of things, 80 are used; COCO-Stuff's maps hold ids less one
    stuff = dict(zip(RULES["coco_stuff"].values, NAMES["coco_stuff"], strict=True))
    assert {stuff[k - 1] for k in (1, 13, 27, 90)} == {"person", "stop sign", "backpack", "toothbrush"}
    assert (stuff[91], stuff[181], sum(v < 91 for v in stuff)) == ("banner", "wood", 80)


def test_names_are_in_mmsegmentations_order():
    from mmseg.datasets import CityscapesDataset, COCOStuffDataset, PascalVOCDataset

    sets = {"voc": PascalVOCDataset, "cityscapes": CityscapesDataset, "coco_stuff": COCOStuffDataset}
    assert {name: kind.METAINFO["classes"] for name, kind in sets.items()} == NAMES | {"voc": tuple(labelled.VOC_NAMES)}


def test_cityscapes_needs_train_ids(tmp_path):
    picture = np.zeros((4, 5, 3), np.uint8)
    for city in ("ulm", "aachen"):
        written(tmp_path / f"leftImg8bit/train/{city}/{city}_0_leftImg8bit.png", picture)
        written(tmp_path / f"gtFine/train/{city}/{city}_0_gtFine_labelTrainIds.png", picture[:, :, 0])
        written(tmp_path / f"gtFine/train/{city}/{city}_0_gtFine_labelIds.png", picture[:, :, 0])
    found = labelled.cityscapes(tmp_path, "train", "labelTrainIds")
    assert [example.mask.name for example in found] == ["aachen_0_gtFine_labelTrainIds.png", "ulm_0_gtFine_labelTrainIds.png"]
    found[1].mask.unlink()
    with pytest.raises(UserError, match=r"ulm_0_leftImg8bit.png has no mask .*csCreateTrainIdLabelImgs"):
        labelled.cityscapes(tmp_path, "train", "labelTrainIds")
    with pytest.raises(UserError, match="leftImg8bit/test does not exist"):
        labelled.cityscapes(tmp_path, "test", "labelTrainIds")


@pytest.mark.parametrize(("images", "maps"), [("", "stuffthingmaps"), ("images", "annotations")])
def test_coco_stuff_takes_the_released_maps_wherever_they_lie(tmp_path, images, maps):
    for name in ("1", "2"):
        written(tmp_path / images / f"val2017/{name}.jpg", np.zeros((4, 5, 3), np.uint8))
        written(tmp_path / maps / f"val2017/{name}.png", np.zeros((4, 5), np.uint8))
    written(tmp_path / maps / "val2017/1_labelTrainIds.png", np.zeros((4, 5), np.uint8))
    found = layouts.coco_stuff(tmp_path, "val2017")
    assert [(example.image.name, example.mask.name) for example in found] == [("1.jpg", "1.png"), ("2.jpg", "2.png")]
    with pytest.raises(UserError, match="train2017 does not exist"):
        layouts.coco_stuff(tmp_path, "train2017")
