"""Boxes: overlap against a loop, and the official layouts, whole and broken."""

import numpy as np
import pytest
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.data.benchmarks import boxes
from tests.fixtures.helpers import shared
from tests.fixtures.layouts import OBJECT, XML, write_coco, write_got10k, write_image, write_voc

# -- overlap -----------------------------------------------------------------------------------------------------------


def test_iou_equals_counting_pixels():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 12, (40, 2, 2))
    sample = np.concatenate([corners.min(1), corners.max(1)], axis=1).astype(float)
    y, x = np.mgrid[:12, :12]
    masks = [(x >= b[0]) & (x < b[2]) & (y >= b[1]) & (y < b[3]) for b in sample]
    found = boxes.iou(sample[:, None], sample[None])
    for i, one in enumerate(masks):
        for j, other in enumerate(masks):
            union = (one | other).sum()
            assert found[i, j] == pytest.approx((one & other).sum() / union if union else 0.0, abs=1e-12)


def test_iou_parity_with_lost():
    values = np.load(shared("parity/lost.npz"))
    assert np.allclose(boxes.iou(values["iou/b"].astype(float), values["iou/gt"].astype(float)), values["iou/y"], atol=1e-6)


def test_boxes_turned_inside_out_overlap_nothing():
    assert boxes.iou(np.array([5.0, 5, 1, 9]), np.array([0.0, 0, 9, 9])) == 0


# -- images ------------------------------------------------------------------------------------------------------------


def test_voc_counts_from_one_and_takes_all_objects(tmp_path):
    first, second = boxes.read_voc_boxes(write_voc(tmp_path), 2007)
    assert first.image.name == "000005.jpg"
    assert first.boxes.tolist() == [[0, 0, 40, 30], [10, 5, 20, 25]]
    assert second.boxes.tolist() == [[1, 2, 4, 5]]
    assert boxes.read_voc_boxes(tmp_path / "VOCdevkit/VOC2007", 2007)[0].image == first.image


def test_coco_rounds_and_leaves_out_crowds(tmp_path):
    write_coco(tmp_path)
    found = boxes.read_coco_boxes(tmp_path, "train2014", "annotations/instances_train2014.json")
    assert [example.boxes.tolist() for example in found] == [[[10, 5, 31, 15]], [[2, 2, 12, 12]], []]
    (tmp_path / "coco20k.txt").write_text("train2014/COCO_train2014_000000000030.jpg\n9\n")
    chosen = boxes.read_coco_boxes(tmp_path, "train2014", "annotations/instances_train2014.json", "coco20k.txt")
    assert [example.image.name[-6:] for example in chosen] == ["30.jpg", "09.jpg"]


def test_real_coco():
    found = boxes.read_coco_boxes(shared("data/coco"), "val2017", "annotations/instances_val2017.json")
    assert len(found) == 18
    assert sum(len(example.boxes) for example in found) > 80


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("Annotations/000007.xml", "<annotation><object>", r"000007\.xml is no annotation of Pascal VOC"),
        ("Annotations/000007.xml", '<!DOCTYPE x [<!ENTITY a "b">]><annotation/>', r"000007\.xml declares a document type"),
        (
            "Annotations/000007.xml",
            "<annotation><object><bndbox><xmin>a</xmin></bndbox></object></annotation>",
            r"000007\.xml is no annotation of Pascal VOC: 'a' is no number",
        ),
        (
            "Annotations/000007.xml",
            XML.format(name="x", objects=OBJECT.format(9, 9, 3, 12, difficult=0)),
            r"000007\.xml has the box 8, 8, 3, 12",
        ),
        ("ImageSets/Main/trainval.txt", "000009\n", r"JPEGImages/000009\.jpg does not exist"),
        ("ImageSets/Main/trainval.txt", "", r"trainval\.txt is empty"),
    ],
)
def test_broken_voc_is_named(tmp_path, file, text, message):
    (write_voc(tmp_path) / "VOCdevkit/VOC2007" / file).write_text(text)
    with pytest.raises(UserError, match=message):
        boxes.read_voc_boxes(tmp_path, 2007)


def test_missing_voc_is_named(tmp_path):
    with pytest.raises(UserError, match="VOCdevkit is not Pascal VOC's folder VOC2012 and holds none"):
        boxes.read_voc_boxes(write_voc(tmp_path), 2012)
    with pytest.raises(UserError, match=r"val\.txt does not exist; allowed: trainval"):
        boxes.read_voc_boxes(tmp_path, 2007, "val")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no annotation file of COCO"),
        ('{"images": [{"id": 9, "file_name": "a.jpg"}]}', "is no annotation file of COCO"),
        ('{"images": [], "annotations": []}', "lists no image"),
        ('{"images": [{"id": 9}], "annotations": []}', r"images\[0\] \(id 9\): file_name is missing"),
        (
            '{"images": [{"id": 9, "file_name": "9.jpg"}], "annotations": [{"image_id": 9}]}',
            r"annotations\[0\]: bbox is missing",
        ),
        (
            '{"images": [{"id": 9, "file_name": "9.jpg"}], "annotations": [{"image_id": 9, "bbox": [1, 2, -3, 4]}]}',
            r"annotations\[0\]: bbox is \[1, 2, -3, 4\]",
        ),
        ('{"images": [{"id": 9, "file_name": "a.jpg"}], "annotations": []}', r"train2014/a\.jpg does not exist"),
    ],
)
def test_broken_coco_is_named(tmp_path, content, message):
    write_image(write_coco(tmp_path) / "train2014/9.jpg")
    (tmp_path / "annotations/instances_train2014.json").write_text(content)
    with pytest.raises(UserError, match=message):
        boxes.read_coco_boxes(tmp_path, "train2014", "annotations/instances_train2014.json")


@pytest.mark.parametrize(("text", "message"), [("31\n", "lists 31, which"), ("all\n", "lists all, which"), ("", "is empty")])
def test_a_wrong_list_of_coco_images_is_named(tmp_path, text, message):
    (write_coco(tmp_path) / "ids.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        boxes.read_coco_boxes(tmp_path, "train2014", "annotations/instances_train2014.json", "ids.txt")


# -- videos ------------------------------------------------------------------------------------------------------------


def test_got10k_layout(tmp_path):
    first, second = boxes.read_tracks(write_got10k(tmp_path))
    assert (first.name, second.name) == ("GOT-10k_Val_000001", "GOT-10k_Val_000002")
    assert first.boxes[:2].tolist() == [[8, 16, 32, 40], [12, 16, 36, 40]]
    assert first.visible.tolist() == [True, True, False, True, True]
    assert first.size == (96, 64)
    (tmp_path / "val/GOT-10k_Val_000001/cover.label").unlink()
    (tmp_path / "val/GOT-10k_Val_000001/absence.label").write_text("0\n0\n0\n1\n0\n")
    assert boxes.read_tracks(tmp_path, only=["GOT-10k_Val_000001"])[0].visible.tolist() == [True, True, True, False, True]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("groundtruth.txt", "1,2,3,4\n" * 4, r"groundtruth\.txt has 4 lines for 5 frames"),
        ("groundtruth.txt", "1,2,3,4\n" * 3 + "1,2,3\n1,2,3,4\n", r"groundtruth\.txt, line 4: '1,2,3'; allowed: 4 numbers"),
        ("groundtruth.txt", "1,2,3,nan\n" + "1,2,3,4\n" * 4, r"groundtruth\.txt, line 1: '1,2,3,nan'"),
        ("groundtruth.txt", "1,2,3,4\n" * 4 + "one,2,3,4\n", r"groundtruth\.txt, line 5"),
        ("groundtruth.txt", "1,2,-3,4\n" * 5, r"groundtruth\.txt has the box 1, 2, -2, 6"),
        ("cover.label", "8\n" * 6, r"cover\.label has 6 lines for 5 frames"),
        ("absence.label", "0\n0\nno\n0\n0\n", r"absence\.label, line 3"),
    ],
)
def test_broken_got10k_is_named(tmp_path, file, text, message):
    (write_got10k(tmp_path) / "val/GOT-10k_Val_000002" / file).write_text(text)
    with pytest.raises(UserError, match=message):
        boxes.read_tracks(tmp_path)


def test_missing_got10k_is_named(tmp_path):
    write_got10k(tmp_path)
    with pytest.raises(UserError, match="does not list bird; allowed: GOT-10k_Val_000001"):
        boxes.read_tracks(tmp_path, only=["bird"])
    for path in (tmp_path / "val/GOT-10k_Val_000001").glob("*.jpg"):
        path.unlink()
    with pytest.raises(UserError, match="GOT-10k_Val_000001 has 0 frames"):
        boxes.read_tracks(tmp_path)
    with pytest.raises(UserError, match=r"GOT-10k's folder .*test does not exist"):
        boxes.read_tracks(tmp_path, "test")


# -- annotations that do not belong to their images --------------------------------------------------------------------


def voc_file(root, text, **options):
    path = write_voc(root) / "VOCdevkit/VOC2007/Annotations/000007.xml"
    path.write_text(text, **options)
    return boxes.read_voc_boxes(root, 2007)


def xml(box=(2, 3, 4, 5), size=(40, 30)):
    text = XML.format(name="000007", objects=OBJECT.format(*box, difficult=0))
    return text.replace("<width>40</width><height>30</height>", f"<width>{size[0]}</width><height>{size[1]}</height>")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (xml(size=(30, 40)), r"000007\.xml says 30x40 \(width and height are swapped\), but .*000007\.jpg is 40x30"),
        (xml(size=(41, 30)), r"000007\.xml says 41x30, but .*000007\.jpg is 40x30"),
        (xml(size=("", 30)), r"000007\.xml is no annotation of Pascal VOC"),
        (xml(box=(2, 3, 90, 5)), r"000007\.xml has the box 1, 2, 90, 5, which leaves the image of 40x30"),
        (xml(box=("nan", 3, 4, 5)), r"'nan' is no number"),
        (xml(box=("1_0", 3, 14, 5)), r"'1_0' is no number"),
        (xml(box=("1e400", 3, 4, 5)), r"has the box inf"),
        (xml().replace("annotation>", "data>"), r"its root is <data>, not <annotation>"),
        ("<html><body/></html>", r"its root is <html>"),
        (xml().replace("<ymax>5</ymax>", ""), r"'' is no number"),
    ],
)
def test_voc_boxes_that_do_not_fit_are_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        voc_file(tmp_path, text)


def test_voc_files_may_begin_with_a_mark_and_leave_the_size_out(tmp_path):
    text = "\N{ZERO WIDTH NO-BREAK SPACE}" + xml().replace("<size>", "<other>").replace("</size>", "</other>")
    assert voc_file(tmp_path, text, encoding="utf-8")[1].boxes.tolist() == [[1, 2, 4, 5]]


@pytest.mark.parametrize(("orientation", "stored"), [(3, (40, 30)), (6, (40, 30)), (6, (30, 40))])
def test_boxes_on_turned_images(tmp_path, orientation, stored):
    tags = Image.Exif()
    tags[0x0112] = orientation
    base = write_voc(tmp_path) / "VOCdevkit/VOC2007"
    Image.new("RGB", stored).save(base / "JPEGImages/000007.jpg", exif=tags)
    if stored == (30, 40):  # turned, it has the size that the annotation states
        assert boxes.read_voc_boxes(tmp_path, 2007)[1].boxes.tolist() == [[1, 2, 4, 5]]
    else:
        with pytest.raises(UserError, match=r"000007\.jpg has the EXIF orientation 3|000007\.xml says 40x30.*000007\.jpg is 30x40"):
            boxes.read_voc_boxes(tmp_path, 2007)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("groundtruth.txt", "50,30,74,54\n" * 5, r"groundtruth\.txt, line 1: the box 50, 30, 124, 84 leaves the frame of 96x64.*corners"),
        ("groundtruth.txt", "8,16,24,24\n" * 4 + "96,16,5,5\n", r"groundtruth\.txt, line 5: the box 96, 16, 101, 21 leaves the frame"),
        ("groundtruth.txt", "8,16,2_4,24\n" * 5, r"groundtruth\.txt, line 1: '8,16,2_4,24'"),
        ("cover.label", "8\n8\n9\n8\n8\n", r"cover\.label, line 3: 9; allowed: whole numbers from 0 to 8"),
        ("absence.label", "0\n0\n0\n2\n0\n", r"absence\.label, line 4: 2; allowed: whole numbers from 0 to 1"),
        ("cover.label", "8\n8\n0.5\n8\n8\n", r"cover\.label, line 3: 0\.5"),
    ],
)
def test_got10k_that_does_not_fit_its_frames_is_named(tmp_path, file, text, message):
    (write_got10k(tmp_path) / "val/GOT-10k_Val_000002" / file).write_text(text)
    with pytest.raises(UserError, match=message):
        boxes.read_tracks(tmp_path)


def test_hidden_objects_may_have_any_box(tmp_path):
    path = write_got10k(tmp_path) / "val/GOT-10k_Val_000002/groundtruth.txt"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([*rows[:2], "0,0,0,0", *rows[3:]]))
    assert boxes.read_tracks(tmp_path)[1].visible.tolist() == [True, True, False, True, True]
