"""Boxes: overlap against a loop, and the official layouts, whole and broken."""

import json

import numpy as np
import pytest
from PIL import Image

from densewalk.core.errors import UserError
from densewalk.data.benchmarks import boxes
from tests.fixtures.helpers import shared

XML = """<annotation><folder>VOC2007</folder><filename>{name}.jpg</filename>
<size><width>40</width><height>30</height><depth>3</depth></size>
{objects}</annotation>"""
OBJECT = (
    "<object><name>dog</name><truncated>1</truncated><difficult>{difficult}</difficult><bndbox><xmin>{0}</xmin><ymin>{1}</ymin>"
    "<xmax>{2}</xmax><ymax>{3}</ymax></bndbox><part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax>"
    "</bndbox></part></object>"
)


def picture(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)).save(path)


def write_voc(root, year=2007):
    """Two images, the first with a difficult object, too."""
    base = root / f"VOCdevkit/VOC{year}"
    found = {"000005": [(1, 1, 40, 30), (11, 6, 20, 25)], "000007": [(2, 3, 4, 5)]}
    for folder in ("Annotations", "ImageSets/Main"):
        (base / folder).mkdir(parents=True)
    for name, rows in found.items():
        picture(base / "JPEGImages" / f"{name}.jpg")
        objects = "\n".join(OBJECT.format(*row, difficult=i) for i, row in enumerate(rows))
        (base / "Annotations" / f"{name}.xml").write_text(XML.format(name=name, objects=objects))
    (base / "ImageSets/Main/trainval.txt").write_text("\n".join(found) + "\n")
    return root


def write_coco(root):
    """Image 9 with an object and a crowd, image 30 with one, image 45 without."""
    names = {9: "COCO_train2014_000000000009.jpg", 30: "COCO_train2014_000000000030.jpg", 45: "COCO_train2014_000000000045.jpg"}
    for name in names.values():
        picture(root / "train2014" / name)
    rows = [(9, [10.4, 4.6, 20.2, 10.0], 0), (9, [0, 0, 40, 30], 1), (30, [1.5, 2.5, 10, 10], 0)]
    content = {
        "images": [{"id": i, "file_name": name, "width": 40, "height": 30} for i, name in names.items()],
        "annotations": [
            {"id": n, "image_id": i, "category_id": 1, "bbox": box, "area": 1, "iscrowd": crowd} for n, (i, box, crowd) in enumerate(rows)
        ],
        "categories": [{"id": 1, "name": "person"}],
    }
    (root / "annotations").mkdir()
    (root / "annotations/instances_train2014.json").write_text(json.dumps(content))
    return root


def write_got10k(root, frames=5, names=("GOT-10k_Val_000001", "GOT-10k_Val_000002")):
    """A square of another colour that moves by 4 pixels a frame; in the third frame it is said to be hidden."""
    base = root / "val"
    for number, name in enumerate(names):
        (base / name).mkdir(parents=True)
        rows = []
        rng = np.random.default_rng(number)
        background, texture = rng.integers(0, 90, (64, 96, 3)), rng.integers(150, 256, (24, 24, 3))
        for t in range(frames):
            image = background.astype(np.uint8).copy()
            image[16:40, 8 + 4 * t : 32 + 4 * t] = texture
            Image.fromarray(image).save(base / name / f"{t + 1:08d}.jpg", quality=95)
            rows.append(f"{8 + 4 * t}.0000,16.0000,24.0000,24.0000")
        (base / name / "groundtruth.txt").write_text("\n".join(rows) + "\n")
        (base / name / "cover.label").write_text("\n".join("0" if t == 2 else "8" for t in range(frames)) + "\n")
        (base / name / "absence.label").write_text("0\n" * frames)
    (base / "list.txt").write_text("\n".join(names) + "\n")
    return root


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
            r"000007\.xml is no annotation of Pascal VOC: could not convert",
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
        ('{"images": [{"id": 9}], "annotations": []}', "an entry of images has no file_name"),
        ('{"images": [{"id": 9, "file_name": "a.jpg"}], "annotations": [{"image_id": 9}]}', "an entry of annotations has no bbox"),
        ('{"images": [{"id": 9, "file_name": "a.jpg"}], "annotations": [{"image_id": 9, "bbox": [1, 2, -3, 4]}]}', "image 9 has the box"),
        ('{"images": [{"id": 9, "file_name": "a.jpg"}], "annotations": []}', r"train2014/a\.jpg does not exist"),
    ],
)
def test_broken_coco_is_named(tmp_path, content, message):
    (write_coco(tmp_path) / "annotations/instances_train2014.json").write_text(content)
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
