"""The locks are of the requirements that stand next to them, hold a pin of each, and a changed requirement is found without a network."""

import re
import shutil

import pytest
from envs import lock

from tests.fixtures.studies import REPOSITORY

FILES = ("requirements.txt", "requirements-dev.txt", "requirements-mm.txt", "pyproject.toml", *lock.LOCKS)


@pytest.fixture
def copy(tmp_path):
    for name in FILES:
        shutil.copy2(REPOSITORY / name, tmp_path / name)
    return tmp_path


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_locks_fit_the_requirements():
    assert lock.problems(REPOSITORY) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("requirements.txt", "timm==1.0.31", "timm==1.0.32", ["requirements.lock", "requirements.lock"]),
        ("requirements-dev.txt", "ruff==", "ruff_==", ["requirements.lock", "requirements.lock"]),
        ("requirements-mm.txt", "mmdet==3.3.0", "mmdet==3.2.0", ["requirements-mm.lock", "requirements-mm.lock"]),
        ("requirements-mm.txt", "mmdet==3.3.0\n", "", ["requirements-mm.lock"]),
        ("pyproject.toml", 'requires-python = ">=3.11', 'requires-python = ">=3.10', ["requirements.lock", "requirements-mm.lock"]),
        ("requirements.lock", "safetensors==0.8.0", "safetensors==0.7.0", ["requirements.lock"]),
        ("requirements.lock", "opencv-python-headless==", "opencv-python==1\nopencv-python-headless==", ["requirements.lock"]),
    ],
)
def test_a_stale_lock_is_named(copy, file, old, new, stale):
    edit(copy / file, old, new)
    assert [line.split(":")[0] for line in lock.problems(copy)] == stale


def test_a_missing_lock_is_named(copy):
    (copy / "requirements-mm.lock").unlink()
    assert [line.split(":")[0] for line in lock.problems(copy)] == ["requirements-mm.lock"] * 2


def test_every_package_of_a_lock_has_a_hash_and_no_address():
    for name in lock.LOCKS:
        text = (REPOSITORY / name).read_text()
        packages = re.split(r"\n(?=\w)", text.split("\n", 1)[1])
        assert all("==" in package and "--hash=sha256:" in package for package in packages)
        assert "://" not in text


def test_the_second_lock_is_of_the_packages_that_are_named_and_no_other():
    assert lock.pins((REPOSITORY / "requirements-mm.lock").read_text()) == lock.pins((REPOSITORY / "requirements-mm.txt").read_text())


def test_names_are_compared_as_package_indexes_do():
    assert lock.pins("types_PyYAML==1 ; x\n    --hash=a==b\n# c==2\n") == {"types-pyyaml==1"}
