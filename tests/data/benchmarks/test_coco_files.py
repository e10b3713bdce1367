"""COCO's annotation files: everything that mmdetection or the metric would stumble on, or get wrong in silence, is named first."""

import copy
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.boxes import read_coco_boxes
from densewalk.data.benchmarks.coco import read_instances
from densewalk.data.benchmarks.coco_panoptic import read_panoptic
from densewalk.data.benchmarks.run_lengths import runs_bounds, runs_of
from tests.fixtures.helpers import shared

WIDTH, HEIGHT = 60, 40


def rectangle(x, y, w, h):
    return [[x, y, x + w, y, x + w, y + h, x, y + h]]


def mask_of(x, y, w, h):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    return mask


def compressed(x, y, w, h):
    found = coco_mask.encode(mask_of(x, y, w, h))
    return {"size": found["size"], "counts": found["counts"].decode()}


def plain(x, y, w, h):
    flat = mask_of(x, y, w, h).ravel(order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=0, append=0))
    runs = np.diff([0, *edges, len(flat)]) if len(edges) else [len(flat)]
    return {"size": [HEIGHT, WIDTH], "counts": [int(run) for run in runs]}


BOXES = {1: (10, 5, 20, 15), 2: (30, 20, 25, 15), 3: (0, 0, WIDTH, HEIGHT), 4: (2, 3, 4, 30)}


def good():
    """Two images, four objects: polygons, both forms of run lengths, a crowd."""
    forms = {1: rectangle, 2: plain, 3: rectangle, 4: compressed}
    return {
        "images": [
            {"id": 7, "file_name": "a.jpg", "width": WIDTH, "height": HEIGHT},
            {"id": 8, "file_name": "b.jpg", "width": WIDTH, "height": HEIGHT},
        ],
        "categories": [{"id": 3, "name": "car"}, {"id": 1, "name": "person"}],
        "annotations": [
            {
                "id": n,
                "image_id": 7 + n % 2,
                "category_id": 1 + 2 * (n % 2),
                "bbox": list(box),
                "area": box[2] * box[3],
                "iscrowd": int(n == 2),
                "segmentation": forms[n](*box),
            }
            for n, box in BOXES.items()
        ],
    }


@pytest.fixture
def write(tmp_path):
    """Writes a file, as JSON if it is none yet, beside its images, and checks it as the detector does."""

    def check(content, masks=True):
        (tmp_path / "images").mkdir(exist_ok=True)
        for name in ("a.jpg", "b.jpg"):
            if not (tmp_path / "images" / name).exists():
                Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / name)
        path = tmp_path / "instances.json"
        path.write_bytes(content) if isinstance(content, bytes) else path.write_text(json.dumps(content))
        return read_instances(path, tmp_path / "images", masks=masks)

    return check


def test_a_good_file_is_read(write):
    found = write(good())
    assert [(image.name, image.size) for image in found.images.values()] == [("a.jpg", (WIDTH, HEIGHT)), ("b.jpg", (WIDTH, HEIGHT))]
    assert found.categories == {3: "car", 1: "person"}
    assert [o.box for o in found.objects] == list(BOXES.values())
    assert [o.crowd for o in found.objects] == [False, True, False, False]
    assert [o.image for o in found.objects] == [8, 7, 8, 7]


def test_what_pycocotools_does_without_may_be_missing(write):
    content = good()
    for annotation in content["annotations"]:
        del annotation["iscrowd"]
    assert not any(o.crowd for o in write(content).objects)


def test_real_files_are_read():
    for split in ("train2017", "val2017"):
        path = shared(f"data/coco/annotations/instances_{split}.json")
        found = read_instances(path, shared(f"data/coco/{split}"))
        assert len(found.objects) == len(json.loads(path.read_text())["annotations"])


def entry(**changes):
    """Change keys of the first annotation; None takes it away."""

    def change(content):
        for key, value in changes.items():
            if value is None:
                content["annotations"][0].pop(key)
            else:
                content["annotations"][0][key] = value

    return change


def image(**changes):
    return lambda content: content["images"][0].update(changes)


def every(**functions):
    """Change a key of every annotation."""

    def change(content):
        for annotation in content["annotations"]:
            for key, function in functions.items():
                annotation[key] = function(annotation)

    return change


def corners_of(annotation):
    x, y, width, height = annotation["bbox"]
    return [x, y, x + width, y + height]


def half_of(annotation):
    x, y, width, height = annotation["bbox"]
    return [x, y, width / 2, height / 2]


NAN = float("nan")
X, Y, W, H = BOXES[1]
WRONG = {
    "width and height swapped": (image(width=HEIGHT, height=WIDTH), r"image 7 says 40x60 \(width and height are swapped\)"),
    "another width": (image(width=WIDTH + 1), r"image 7 says 61x40, but .*a\.jpg is 60x40"),
    "width missing": (lambda c: c["images"][0].pop("width"), r"images\[0\] \(id 7\): width is missing"),
    "width a text": (image(width="60"), r"width is '60'; allowed: a whole number, not text"),
    "width a fraction": (image(width=60.0), "width is 60.0"),
    "width 0": (image(width=0), "width is 0"),
    "area of 400 digits": (entry(area=10**400), "area"),
    "polygon of 400 digits": (entry(segmentation=[[1, 1, 10**400, 1, 5, 5]]), "polygon"),
    "image id a text": (image(id="7"), r"images\[0\] \(id '7'\): id is '7'; allowed: a whole number, not text"),
    "image id true": (image(id=True), "id is True"),
    "image id huge": (image(id=2**64), "id is 18446744073709551616"),
    "image twice": (image(id=8), r"images\[1\] \(id 8\): id is that of image a\.jpg, too"),
    "file twice": (image(file_name="b.jpg"), r"file_name b\.jpg is that of image 7, too"),
    "file leads away": (image(file_name="../images/a.jpg"), r"'\.\./images/a\.jpg' is no file inside"),
    "file absolute": (image(file_name="/etc/a.jpg"), "is no file inside"),
    "file missing": (image(file_name="c.jpg"), r"lists 1 images .*c\.jpg does not exist"),
    "file a number": (image(file_name=7), "file_name is 7"),
    "image a list": (lambda c: c["images"].append([]), r"images\[2\] is \[\]"),
    "annotation a text": (lambda c: c["annotations"].append("x"), r"annotations\[4\] is 'x'"),
    "annotations null": (lambda c: c.update(annotations=None), "annotations is None"),
    "annotations a dictionary": (lambda c: c.update(annotations={"1": {}}), "annotations is "),
    "no categories": (lambda c: c.pop("categories"), "it has no categories"),
    "no images": (lambda c: c["images"].clear(), "lists no image"),
    "category twice": (lambda c: c["categories"][1].update(id=3), r"categories\[1\] \(id 3\): id is that of car, too"),
    "category name twice": (lambda c: c["categories"][1].update(name="car"), "name car is that of another category"),
    "category without a name": (lambda c: c["categories"][1].pop("name"), r"categories\[1\] \(id 1\): name is missing"),
    "category name a number": (lambda c: c["categories"][1].update(name=5), "name is 5"),
    "category id a text": (lambda c: c["categories"][1].update(id="1"), r"categories\[1\] \(id '1'\): id is '1'"),
    "unknown category": (entry(category_id=2), r"annotations\[0\] \(id 1\): category_id 2 is the id of no category"),
    "category a text": (entry(category_id="3"), "category_id is '3'"),
    "category missing": (entry(category_id=None), "category_id is missing"),
    "unknown image": (entry(image_id=9), "image_id 9 is the id of no image"),
    "image_id a text": (entry(image_id="7"), "image_id is '7'; allowed: a whole number, not text"),
    "image_id missing": (entry(image_id=None), "image_id is missing"),
    "annotation id missing": (entry(id=None), r"annotations\[0\]: id is missing"),
    "annotation id a text": (entry(id="1"), r"annotations\[0\] \(id '1'\): id is '1'"),
    "annotation id 0": (entry(id=0), "id is 0; allowed: a whole number from 1"),
    "annotation id twice": (entry(id=4), r"annotations\[3\] \(id 4\): id is that of annotations\[0\], too"),
    "area missing": (entry(area=None), r"annotations\[0\] \(id 1\): area is missing"),
    "area a text": (entry(area="300"), "area is '300'"),
    "area NaN": (entry(area=NAN), "area is nan"),
    "area below 0": (entry(area=-1), "area is -1"),
    "area 0": (entry(area=0), r"1 of 4 objects have no area, .*annotations\[0\]"),
    "bbox missing": (entry(bbox=None), r"annotations\[0\] \(id 1\): bbox is missing"),
    "bbox short": (entry(bbox=[1, 2, 3]), r"bbox is \[1, 2, 3\]; allowed: four finite numbers: x, y, width, height"),
    "bbox text": (entry(bbox="1,2,3,4"), "bbox is '1,2,3,4'"),
    "bbox of text": (entry(bbox=["1", 2, 3, 4]), "bbox is "),
    "bbox NaN": (entry(bbox=[NAN, 2, 3, 4]), r"bbox is \[nan"),
    "bbox infinite": (entry(bbox=[1, 2, float("inf"), 4]), r"bbox is \[1, 2, inf"),
    "bbox null": (entry(bbox=[None] * 4), "bbox is "),
    "bbox negative": (entry(bbox=[30, 20, -20, -15]), "no negative width or height"),
    "bbox as corners": (entry(bbox=[X, Y, X + W, Y + H]), r"bbox \[10, 5, 30, 20\] fits the segmentation only as two corners"),
    "bbox as center": (entry(bbox=[X + W / 2, Y + H / 2, W, H]), "only as center, width, height"),
    "bbox as rows first": (entry(bbox=[Y, X, H, W]), "only as y, x, height, width"),
    "all as corners": (every(bbox=corners_of), r"corners"),
    "all relative": (every(bbox=lambda a: [v / 60 for v in a["bbox"]]), "between 0 and 1"),
    "bbox outside": (entry(bbox=[70, 5, 20, 15]), r"leaves the image of 60x40"),
    "bbox far from its mask": (entry(bbox=[40, 25, 10, 10]), "lies outside its segmentation"),
    "bbox empty": (entry(bbox=[X, Y, 0, H]), "less than a pixel wide"),
    "segmentation missing": (entry(segmentation=None), "segmentation is missing"),
    "segmentation empty": (entry(segmentation=[]), "segmentation is empty"),
    "flat polygon": (entry(segmentation=rectangle(X, Y, W, H)[0]), "is a polygon that is in no list of polygons"),
    "polygon of two corners": (entry(segmentation=[[1, 2, 3, 4]]), r"has the polygon \[1, 2, 3, 4\]"),
    "polygon odd": (entry(segmentation=[[1, 2, 3, 4, 5, 6, 7]]), "has the polygon"),
    "polygon NaN": (entry(segmentation=[[1, 2, 3, 4, NAN, 6]]), "has the polygon"),
    "polygon of text": (entry(segmentation=[["1", "2", "3", "4", "5", "6"]]), "has the polygon"),
    "polygon of pairs": (entry(segmentation=[[[1, 2], [3, 4], [5, 6]]]), "has the polygon"),
    "segmentation a text": (entry(segmentation="abc"), "segmentation is 'abc'"),
    "counts missing": (entry(segmentation={"size": [40, 60]}), "segmentation is "),
    "size swapped": (entry(segmentation={**plain(*BOXES[1]), "size": [60, 40]}), r"has the size \[60, 40\]; allowed: .*: \[40, 60\]"),
    "counts of fewer pixels": (entry(segmentation={"size": [40, 60], "counts": [5, 5]}), "counts of 10 pixels; allowed: 2400"),
    "counts negative": (entry(segmentation={"size": [40, 60], "counts": [2410, -10]}), "the run -10"),
    "counts of text": (entry(segmentation={"size": [40, 60], "counts": ["1"]}), "not all are whole numbers"),
    "counts cut": (entry(segmentation={**compressed(*BOXES[1]), "counts": compressed(*BOXES[1])["counts"][:-2]}), "counts"),
    "counts base64": (entry(segmentation={"size": [40, 60], "counts": "eJwLMLVyTg=="}), "counts"),
    "counts a number": (entry(segmentation={"size": [40, 60], "counts": 5}), "int instead of a list or text"),
    "iscrowd 2": (entry(iscrowd=2), "iscrowd is 2"),
    "iscrowd a text": (entry(iscrowd="0"), "iscrowd is '0'"),
    "ignored by the training alone": (entry(ignore=1), "training would leave the object out"),
    "area of more than the image": (entry(area=1e11), r"area is 100000000000.0, more than the image of 60x40"),
    "area beyond float": (entry(area=10**400), "area is 1000"),
    "bbox beyond float": (entry(bbox=[10**400, 2, 3, 4]), r"bbox is \[1000"),
    "polygon beyond float": (entry(segmentation=[[10**400, 2, 3, 4, 5, 6]]), "has the polygon"),
    "polygon that leaves the image": (entry(segmentation=[[10, 5, 1e9, 5, 30, 20, 10, 20]]), r"reaches from 10, 5 to 1e\+09, 20"),
    "boxes of half the size": (every(bbox=half_of), "IoU below 0.5 with their masks"),
    "objects twice": (lambda c: c["annotations"].extend([{**a, "id": a["id"] + 9} for a in c["annotations"]]), "4 of 8 objects are there"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named_with_file_and_entry(write, name):
    change, message = WRONG[name]
    content = good()
    change(content)
    with pytest.raises(UserError, match=message) as error:
        write(content)
    assert "instances.json" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"<html></html>", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b"\xff\xfe{\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"images": [], "images": []}', "not JSON: the key 'images' is there twice"),
        (b'{"annotations": [{"id": 1, "category_id": 1, "category_id": 2}]}', "the key 'category_id' is there twice"),
        (b"[]", r"it holds \[\]"),
        (b"null", "it holds None"),
        (b"{}", "it has no images"),
    ],
)
def test_what_is_no_such_file_is_said(write, content, message):
    with pytest.raises(UserError, match=rf"instances\.json is no annotation file of COCO: .*{message}"):
        write(content)


@pytest.mark.parametrize(
    ("orientation", "swapped", "said"), [(3, False, "orientation 3"), (6, False, "says 60x40"), (6, True, None), (8, True, None)]
)
def test_turned_pictures(write, tmp_path, orientation, swapped, said):
    """The picture is turned: boxes fit if the file states the turned size, else nothing tells, or they do not."""
    tags = Image.Exif()
    tags[0x0112] = orientation
    (tmp_path / "images").mkdir()
    size = (HEIGHT, WIDTH) if swapped else (WIDTH, HEIGHT)  # stored
    Image.new("RGB", size).save(tmp_path / "images/a.jpg", exif=tags)
    if said:
        with pytest.raises(UserError, match=rf"a\.jpg.*{said}|{said}.*a\.jpg"):
            write(good())
    else:
        write(good())


def test_boxes_alone_need_less_and_check_what_is_there(write):
    content = good()
    for annotation in content["annotations"]:
        for key in ("area", "segmentation", "category_id", "id"):
            del annotation[key]
    del content["categories"]
    for entry_ in content["images"]:
        del entry_["width"], entry_["height"]
    assert [o.box for o in write(content, masks=False).objects] == list(BOXES.values())
    for name in (
        "image_id a text",
        "unknown image",
        "bbox as corners",
        "bbox NaN",
        "bbox outside",
        "annotation id twice",
        "file twice",
        "another width",
    ):
        content = good()
        WRONG[name][0](content)
        if name == "bbox as corners":  # nothing but the image's sides can tell
            content["annotations"][1]["bbox"] = [30, 20, 55, 35]
        with pytest.raises(UserError, match=r"instances\.json"):
            write(content, masks=False)


def test_discovery_reads_the_same_file(tmp_path, write):
    write(good())
    assert len(read_coco_boxes(tmp_path, "images", "instances.json")) == 2
    (tmp_path / "ids.txt").write_text("7\na_000000000007.jpg\n")
    with pytest.raises(UserError, match=r"lists 7 and a_000000000007\.jpg, which are one image"):
        read_coco_boxes(tmp_path, "images", "instances.json", "ids.txt")


# -- run lengths -------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_run_lengths_are_pycocotools(height, width, data):
    bits = data.draw(st.lists(st.booleans(), min_size=height * width, max_size=height * width))
    mask = np.asfortranarray(np.array(bits, np.uint8).reshape(height, width))
    runs = runs_of(coco_mask.encode(mask)["counts"].decode())
    assert np.array_equal(np.repeat(np.arange(len(runs)) % 2, runs).reshape(width, height).T, mask)
    y, x = np.nonzero(mask)
    assert runs_bounds(runs, height) == ((x.min(), y.min(), x.max() + 1, y.max() + 1) if len(x) else None)


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=20), st.lists(st.one_of(st.integers(), st.none(), st.floats()), max_size=5), st.none(), st.integers()))
def test_other_counts_are_refused_or_whole(counts):
    try:
        runs = runs_of(counts)
    except ValueError:
        return
    assert all(type(run) is int and run >= 0 for run in runs)


# -- anything ----------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 10), st.floats(), st.text(max_size=3), st.just(2**70)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.sampled_from(["id", "bbox", "size", "counts"]), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value, path=()):
    """Every place in a file."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


PLACES = [path for path in places(good()) if path]


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(place=st.sampled_from(PLACES), value=JSON, masks=st.booleans())
def test_any_value_anywhere_is_read_or_named(write, place, value, masks):
    content = copy.deepcopy(good())
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    try:
        found = write(content, masks)
    except UserError as error:
        assert "instances.json" in str(error)  # noqa: PT017
        return
    assert all(len(o.box) == 4 and np.isfinite(o.box).all() for o in found.objects)


# -- panoptic files ----------------------------------------------------------------------------------------------------


def panoptic():
    return {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}],
        "categories": [{"id": 1, "isthing": 1, "supercategory": "person"}],
        "annotations": [{"image_id": i, "file_name": f"{i}.png", "segments_info": [{"id": 5, "category_id": 1}]} for i in (7, 8)],
    }


def first(**changes):
    return lambda content: content["annotations"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first(image_id=8), r"annotations\[1\]: image_id or file_name \(8, 8\.png\) is that of another annotation"),
        (first(file_name="8.png"), "is that of another annotation"),
        (first(image_id=9), "image_id 9 is the id of no image"),
        (first(file_name="../7.png"), "is no file inside"),
        (first(segments_info=None), r"segments_info\[0\] is None"),
        (first(segments_info=[{"id": "5", "category_id": 1}]), r"annotations\[0\]\.segments_info\[0\] \(id '5'\): id is '5'"),
        (first(segments_info=[{"id": 5, "category_id": 2}]), "category_id 2 is the id of no category"),
        (first(segments_info=[{"id": 5, "category_id": 1}] * 2), "is that of another segment of the image"),
        (lambda c: c["annotations"].pop(), r"1 images have no annotation, e\.g\. b\.jpg"),
        (lambda c: c["categories"][0].pop("isthing"), "isthing is missing"),
        (lambda c: c["categories"][0].update(isthing=2), "isthing is 2"),
        (lambda c: c["categories"].append(c["categories"][0]), "two categories have one id"),
        (lambda c: c["images"][0].update(file_name="b.jpg"), "is that of image 7, too"),
    ],
)
def test_panoptic_files_are_checked_alike(tmp_path, change, message):
    content = panoptic()
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    assert [s.pairs for s in read_panoptic(tmp_path / "panoptic.json")[0]] == [((5, 1),)] * 2
    change(content)
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"panoptic\.json: .*{message}"):
        read_panoptic(tmp_path / "panoptic.json")
