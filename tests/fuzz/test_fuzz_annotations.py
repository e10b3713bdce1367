"""Damaged annotation files and lists: `densewalk doctor` counts what is there, or says in one line which file and entry is wrong."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densewalk.core.errors import UserError
from densewalk.jobs.doctor import data_of
from densewalk.study.registry import parse_evaluation
from tests.fixtures.layouts import write_coco, write_got10k, write_voc
from tests.fixtures.mmdata import write_coco as write_instances
from tests.fuzz.budget import examples
from tests.fuzz.mutations import damaged, damaged_bytes

pytest.importorskip("densewalk.data.benchmarks.coco", reason="the checked reader of annotation files is not there")
VOC = "VOCdevkit/VOC2007"
# protocol, its settings, how the data are made, the files that are damaged
LAYOUTS = {
    "instances": ("coco", {}, write_instances, ["annotations/instances_train2017.json", "annotations/instances_val2017.json"]),
    "boxes of COCO": ("discovery", {"layout": "coco"}, write_coco, ["annotations/instances_train2014.json"]),
    "boxes of VOC": (
        "discovery", {"layout": "voc", "year": 2007}, write_voc,
        [f"{VOC}/Annotations/000005.xml", f"{VOC}/Annotations/000007.xml", f"{VOC}/ImageSets/Main/trainval.txt"],
    ),
    "tracks": (
        "tracking", {}, write_got10k,
        ["val/list.txt", "val/GOT-10k_Val_000001/groundtruth.txt", "val/GOT-10k_Val_000001/absence.label",
         "val/GOT-10k_Val_000002/cover.label"],
    ),
}  # fmt: skip
JSON = {name: layout for name, layout in LAYOUTS.items() if layout[3][0].endswith(".json")}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The data sets, each made once, and what their files hold."""
    roots = {}
    for name, (_, _, write, files) in LAYOUTS.items():
        root = tmp_path_factory.mktemp("data") / "set"
        root.mkdir()
        root = write(root)
        roots[name] = (root, {file: (root / file).read_bytes() for file in files})
    return roots


def look(name, root, content, whole):
    """Look at the data with one file changed; the file is as it was afterwards."""
    protocol, settings, *_ = LAYOUTS[name]
    file, changed = content
    (root / file).write_bytes(changed)
    try:
        found = data_of(protocol, parse_evaluation(protocol, {"root": str(root), "dataset": "x", **settings}))
    except UserError as error:
        found, refusal = None, str(error)
    finally:
        (root / file).write_bytes(whole[file])
    if found is None:
        assert str(root) in refusal
        assert len(refusal) < 2000
    return found


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_undamaged_data_are_counted(made, name):
    root, whole = made[name]
    for file, content in whole.items():
        assert look(name, root, (file, content), whole), file


@pytest.mark.parametrize("name", JSON)
@examples(100)
@given(st.data())
def test_annotations_with_wrong_values(made, name, data):
    root, whole = made[name]
    file = data.draw(st.sampled_from(sorted(whole)))
    look(name, root, (file, json.dumps(data.draw(damaged(json.loads(whole[file])))).encode()), whole)


@pytest.mark.parametrize("name", LAYOUTS)
@examples(40)
@given(st.data())
def test_annotations_with_damaged_bytes(made, name, data):
    root, whole = made[name]
    file = data.draw(st.sampled_from(sorted(whole)))
    look(name, root, (file, data.draw(damaged_bytes(whole[file]))), whole)
