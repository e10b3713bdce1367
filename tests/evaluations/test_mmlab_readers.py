"""One reader of images and masks: frozen evaluations and the toolboxes see the same pixels and labels."""

import cv2
import numpy as np
import pytest
from mmengine.registry import TRANSFORMS
from PIL import Image

from densewalk.data.benchmarks.label_maps import list_folders, read_example
from densewalk.data.benchmarks.label_rules import class_rule
from densewalk.data.image_files import TURNS, read_image
from densewalk.evaluations.mmlab import segmentation  # noqa: F401  registers the readers
from tests.fixtures.helpers import shared


def tagged(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def phone(path, labels, orientation, drawn):
    """An image that a phone stored turned, and its mask drawn on the shown or on the stored image."""
    image = np.stack([labels * 40, 255 - labels * 20, labels * 9], axis=-1).astype(np.uint8)
    stored = Image.fromarray(image)
    (path / "images").mkdir(parents=True, exist_ok=True)
    (path / "annotations").mkdir(exist_ok=True)
    stored.save(path / "images/a.png", exif=tagged(orientation))
    mask = Image.fromarray(labels)
    (mask.transpose(TURNS[orientation]) if drawn == "shown" else mask).save(path / "annotations/a.png")


@pytest.mark.parametrize("drawn", ["shown", "stored"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_frozen_and_trained_rooms_see_the_same_upright_pixels(tmp_path, orientation, drawn):
    """One study had two rules once: 0.98 for 2.39 in one room, the right number in the other."""
    labels = np.random.default_rng(0).integers(0, 5, (40, 60)).astype(np.uint8)
    phone(tmp_path, labels, orientation, drawn)
    (example,) = list_folders(tmp_path / "images", tmp_path / "annotations", class_rule(tuple(range(5))))
    frozen_image, frozen_labels = read_example(example)
    results = {"img_path": str(example.image), "seg_map_path": str(example.mask), "seg_fields": []}
    for transform in ({"type": "ReadImage"}, {"type": "LoadClasses", "rule": example.rule}):
        results = TRANSFORMS.build(transform)(results)
    assert np.array_equal(results["img"][..., ::-1], np.asarray(frozen_image))
    assert np.array_equal(results["gt_seg_map"], frozen_labels)
    assert np.array_equal(np.asarray(frozen_image)[..., 0] // 40, frozen_labels)
    assert frozen_image.size == (40, 60)


@pytest.mark.parametrize("mode", ["L", "I;16", "RGBA", "P", "CMYK", "1"])
def test_every_kind_of_image_is_the_same_in_both_rooms(tmp_path, mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8))
    image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 251) if mode == "I;16" else image.convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    found = TRANSFORMS.build({"type": "ReadImage"})({"img_path": str(path)})
    assert np.array_equal(found["img"][..., ::-1], np.asarray(read_image(path)))
    assert found["img_shape"] == found["ori_shape"] == (9, 11)


def test_the_reader_changes_no_number_of_the_toolboxes():
    """Published numbers were made with OpenCV's decoder: pixels of real JPEGs are the same."""
    for path in sorted(shared("data/coco/val2017").glob("*.jpg")):
        found = TRANSFORMS.build({"type": "ReadImage"})({"img_path": str(path)})
        assert np.array_equal(found["img"], cv2.imread(str(path)))
