"""A change of an evaluation's files changes its fingerprint; a copy of them with the same times does not."""

import os
import shutil

import pytest

from densewalk.data.fingerprint import LARGE, fingerprint


@pytest.fixture
def data(tmp_path):
    root = tmp_path / "data"
    for name in ("images/a.jpg", "images/b.jpg", "masks/a.png", "masks/b.png", "lists/val.txt", "big.png", "instances.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode() * (LARGE if name in ("big.png", "instances.json") else 1))
    return root


def rewrite(path, content):
    """Other content of the same length, and the same times."""
    before = path.stat()
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def touch(path):
    os.utime(path, (1e9, 1e9))


CHANGES = {
    "label, same size and time": lambda root: rewrite(root / "masks/a.png", b"masks/A.png"),
    "list, same size and time": lambda root: rewrite(root / "lists/val.txt", b"lists/vaL.txt"),
    "large annotations, same size and time": lambda root: rewrite(root / "instances.json", b"instances.jsoN" * LARGE),
    "image, later": lambda root: touch(root / "images/a.jpg"),
    "large mask or image, later": lambda root: touch(root / "big.png"),
    "image, longer": lambda root: (root / "images/a.jpg").write_bytes(b"longer than before"),
    "removed": lambda root: (root / "images/a.jpg").unlink(),
    "added": lambda root: (root / "masks/c.png").touch(),
    "renamed": lambda root: (root / "masks/a.png").rename(root / "masks/c.png"),
    "swapped": lambda root: [(root / "masks/a.png").rename(root / "x"), (root / "masks/b.png").rename(root / "masks/a.png")],
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(data, change):
    before = fingerprint([data])
    assert fingerprint([data]) == before
    CHANGES[change](data)
    assert fingerprint([data]) != before


def test_what_is_no_data_changes_nothing(data, tmp_path, monkeypatch):
    monkeypatch.chdir(data)
    before = fingerprint(["."])
    (data / ".hidden").touch()
    (data / ".snakemake").mkdir()
    (data / ".snakemake" / "log").touch()
    (data / "results").mkdir()
    (data / "results" / "a.json").touch()
    os.mkfifo(data / "masks" / "pipe.png")
    (data / "latest").symlink_to(".")
    (data / "gone.png").symlink_to("nowhere")
    touch(data / "masks/a.png")
    assert fingerprint(["."]) == before


def test_a_copy_with_its_times_has_the_same_fingerprint(data, tmp_path):
    shutil.copytree(data, tmp_path / "copy")
    assert fingerprint([tmp_path / "copy"]) == fingerprint([data])
    assert fingerprint([data / "images", data / "masks"]).files == 4
    assert fingerprint([data / "big.png"]).files == 1
    assert fingerprint([tmp_path / "nowhere"]).files == 0


def test_by_sizes_alone_times_do_not_count(data):
    before = fingerprint([data], sizes_only=True)
    touch(data / "images/a.jpg")
    assert fingerprint([data], sizes_only=True) == before
    (data / "images/a.jpg").write_bytes(b"longer than before")
    assert fingerprint([data], sizes_only=True) != before


def test_files_of_thousands_are_counted_without_being_opened(tmp_path, monkeypatch):
    for kind, ending in (("images", "jpg"), ("masks", "png")):
        (tmp_path / kind).mkdir()
        for i in range(1_500):
            (tmp_path / kind / f"{i:06d}.{ending}").write_bytes(b"x" * 1000)
    opened = []
    monkeypatch.setattr("builtins.open", lambda *args, **options: opened.append(args))
    monkeypatch.setattr("io.open", lambda *args, **options: opened.append(args))
    assert fingerprint([tmp_path]).files == 3_000
    assert opened == []
