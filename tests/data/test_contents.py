"""Contents of files and folders are known without reading them again, and never taken from something else."""

import os

import pytest

from densewalk.core.errors import UserError
from densewalk.core.hashing import file_sha256
from densewalk.data import contents as module
from densewalk.data.contents import Contents, of_sequences


@pytest.fixture
def reads(monkeypatch):
    """Which files are read."""
    found = []
    monkeypatch.setattr(module, "file_sha256", lambda path: found.append(str(path)) or file_sha256(path))
    return found


def test_a_file_is_read_once_as_long_as_size_time_and_place_are_the_same(tmp_path, reads):
    file, cache = tmp_path / "walk.mp4", tmp_path / "specs" / "contents.json"
    cache.parent.mkdir()
    file.write_bytes(b"walk")

    def look():
        contents = Contents(cache)
        found = contents.of(file)
        contents.save()
        return found

    first = look()
    assert look() == first == file_sha256(file)
    assert reads == [str(file)]
    os.utime(file, (1, 1))
    assert look() == first
    assert len(reads) == 2, "touched: read once more"
    status = file.stat()
    (tmp_path / "other").write_bytes(b"talk")
    os.replace(tmp_path / "other", file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    second = look()
    assert second != first, "another file of the same size and time"
    file.write_bytes(b"walk")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert look() == first, "written over in place, with the old size and the old time"


def test_a_folder_is_its_names_and_sizes(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder / "inner").mkdir(parents=True)
        (tmp_path / folder / "inner" / "1.jpg").write_bytes(b"image")
    contents = Contents(tmp_path / "contents.json")
    before = contents.of(tmp_path / "a")
    assert before == contents.of(tmp_path / "b"), "a copy elsewhere"
    contents.save()
    (tmp_path / "a" / "inner" / "2.jpg").write_bytes(b"image")
    again = Contents(tmp_path / "contents.json")
    assert again.of(tmp_path / "a") != before, "a file more, in a folder below"
    assert again.of(tmp_path / "b") == before
    assert contents.changed_since(tmp_path / "b", 0.0)
    assert not contents.changed_since(tmp_path / "b", 4e9)
    (tmp_path / "b" / "inner" / "1.jpg").write_bytes(b"another image")
    assert again.of(tmp_path / "b") == before, "a file that was written over leaves no trace in its folder"
    assert again.look_again(tmp_path / "b") != before
    assert again.of(tmp_path / "b") != before
    assert of_sequences(before, None) == before != of_sequences(before, ["bear"]) != of_sequences(before, ["bear", "camel"])


def test_what_is_not_there_has_no_content(tmp_path):
    contents = Contents(tmp_path / "contents.json")
    assert contents.of(tmp_path / "nowhere.mp4") is None
    contents.save()
    assert not (tmp_path / "contents.json").exists(), "nothing was read"


def test_a_cache_that_cannot_be_written_stops_nothing_and_a_damaged_one_is_named(tmp_path, caplog):
    (tmp_path / "file").write_bytes(b"walk")
    contents = Contents(tmp_path / "file" / "contents.json")
    assert contents.of(tmp_path / "file") == file_sha256(tmp_path / "file")
    contents.save()
    assert "contents are read again next time" in caplog.text
    (tmp_path / "contents.json").write_text('{"known": 3}')
    with pytest.raises(UserError, match="cache of contents"):
        Contents(tmp_path / "contents.json")
