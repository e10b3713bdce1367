"""ImageNet's layout, whole and broken."""

import shutil

import pytest

from densewalk.core.errors import UserError
from densewalk.data.benchmarks.classification import list_imagenet
from tests.fixtures.helpers import shared
from tests.fixtures.layouts import write_classes


@pytest.fixture
def root(tmp_path):
    return write_classes(tmp_path / "imagenet", {"train": {"n02": 2, "n01": 3}, "val": {"n01": 1, "n02": 2}})


def test_classes_are_numbered_by_name_and_images_sorted(root):
    (root / "train/n02/notes.txt").write_text("no picture")
    training, validation = list_imagenet(root)
    assert training.names == validation.names == ["n01", "n02"]
    assert training.targets == [0, 0, 0, 1, 1]
    assert validation.targets == [0, 1, 1]
    assert training.paths == sorted(training.paths)


def test_real_layout():
    training, validation = list_imagenet(shared("data/imagenet"))
    assert (len(training), len(validation), len(training.names)) == (48, 24, 8)


def remove(path):
    shutil.rmtree(path)


def empty(path):
    for file in path.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: remove(root / "val"), r"imagenet/val does not exist"),
        (lambda root: remove(root / "train/n02"), r"class folder .*train/n02 does not exist, but .*val/n02 does"),
        (lambda root: remove(root / "val/n01"), r"class folder .*val/n01 does not exist, but .*train/n01 does"),
        (lambda root: empty(root / "val/n01"), r"class folder .*val/n01 holds no image"),
        (lambda root: [remove(root / "val" / name) for name in ("n01", "n02")], r"imagenet/val has no class folder"),
    ],
)
def test_what_is_missing_is_named(root, damage, message):
    damage(root)
    with pytest.raises(UserError, match=message):
        list_imagenet(root)
