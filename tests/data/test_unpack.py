import errno
import io
import os
import stat
import tarfile
import zipfile

import pytest

from densewalk.core.errors import UserError
from densewalk.data.download.unpack import unpack

CONTENT = {"set/images/a.jpg": b"a" * 5000, "set/images/b.jpg": os.urandom(5000), "set/list.txt": b"a\nb\n"}
KINDS = ["zip", "tar", "tar.gz"]


def archive(path, content, kind):
    """An archive of regular files."""
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
            for name, body in content:
                made.writestr(zipfile.ZipInfo(name), body)
    else:
        with tarfile.open(path, "w:gz" if kind.endswith("gz") else "w") as made:
            for name, body in content:
                info = tarfile.TarInfo(name)
                info.size = len(body)
                made.addfile(info, io.BytesIO(body))
    return path


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_files_come_out_whole_and_twice_is_the_same(tmp_path, kind):
    made = archive(tmp_path / f"x.{kind}", [*CONTENT.items(), ("__MACOSX/set/._a", b"rubbish")], kind)
    found = unpack(made, tmp_path / "out")
    assert tree(tmp_path / "out") == CONTENT
    assert found == [tmp_path / "out" / name for name in sorted(CONTENT)]
    (tmp_path / "out" / "set" / "list.txt").unlink()  # as after an interruption
    unpack(made, tmp_path / "out")
    assert tree(tmp_path / "out") == CONTENT


@pytest.mark.parametrize("kind", KINDS)
def test_archives_of_one_folder_are_joined(tmp_path, kind):
    (tmp_path / "out" / "set" / "other").mkdir(parents=True)
    unpack(archive(tmp_path / f"x.{kind}", CONTENT.items(), kind), tmp_path / "out")
    unpack(archive(tmp_path / f"y.{kind}", [("set/more/c.jpg", b"c")], kind), tmp_path / "out")
    assert tree(tmp_path / "out") == {**CONTENT, "set/more/c.jpg": b"c"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["../escaped", "set/../../escaped", "/tmp/densewalk_escaped", "..\\escaped", "C:/escaped"])
def test_a_path_that_leads_outside_is_refused(tmp_path, kind, name):
    made = archive(tmp_path / f"x.{kind}", [*CONTENT.items(), (name, b"bad")], kind)
    with pytest.raises(UserError, match="which lies outside; to do: do not use this archive"):
        unpack(made, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["out", f"x.{kind}"]


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "device", "fifo"])
def test_a_tar_with_more_than_files_is_refused(tmp_path, kind):
    types = {"symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE, "device": tarfile.CHRTYPE, "fifo": tarfile.FIFOTYPE}
    with tarfile.open(archive(tmp_path / "x.tar", CONTENT.items(), "tar"), "a") as made:
        info = tarfile.TarInfo("set/link")
        info.type, info.linkname = types[kind], "../../outside"
        made.addfile(info)
    with pytest.raises(UserError, match=r"holds 'set/link', a (link|device); allowed: files and folders"):
        unpack(tmp_path / "x.tar", tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_a_zip_with_a_link_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as made:
        info = zipfile.ZipInfo("set/link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(info, "/etc")
        made.writestr("set/link/passwd", "bad")
    with pytest.raises(UserError, match="holds 'set/link', a link or device"):
        unpack(tmp_path / "x.zip", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_another_file_is_never_replaced(tmp_path, kind):
    made = archive(tmp_path / f"x.{kind}", CONTENT.items(), kind)
    mine = tmp_path / "out" / "set" / "list.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"would replace .*list.txt; to do: move that one away"):
        unpack(made, tmp_path / "out")
    assert tree(tmp_path / "out") == {"set/list.txt": b"mine"}


def test_a_link_that_is_there_is_not_written_through(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "set").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=r"would write through .*set, which is no folder"):
        unpack(archive(tmp_path / "x.zip", CONTENT.items(), "zip"), tmp_path / "out")
    assert tree(tmp_path / "outside") == {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.3, 0.6, 0.99])
def test_a_truncated_archive_leaves_nothing(tmp_path, kind, share):
    made = archive(tmp_path / f"x.{kind}", CONTENT.items(), kind)
    body = made.read_bytes()
    # a tar is filled up with zeros, which may be missing
    length = sum(512 + -(-len(v) // 512) * 512 for v in CONTENT.values()) if kind == "tar" else len(body)
    made.write_bytes(body[: int(share * length)])
    with pytest.raises(UserError, match=r"cannot be unpacked: .*; to do: remove it and fetch it again"):
        unpack(made, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tar_that_ends_between_two_files_is_truncated(tmp_path):
    made = archive(tmp_path / "x.tar", CONTENT.items(), "tar")
    made.write_bytes(made.read_bytes()[: 2 * (512 + 5120)])
    with pytest.raises(UserError, match="its end is missing"):
        unpack(made, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_byte_is_found(tmp_path, kind):
    if kind == "tar":
        pytest.skip("a plain tar has no checksums of its files; the download's sha256 guards it")
    made = archive(tmp_path / f"x.{kind}", CONTENT.items(), kind)
    body = bytearray(made.read_bytes())
    body[len(body) // 2] ^= 255
    made.write_bytes(body)
    with pytest.raises(UserError, match="cannot be unpacked"):
        unpack(made, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_size_and_repetition_are_bounded(tmp_path, kind):
    made = archive(tmp_path / f"x.{kind}", CONTENT.items(), kind)
    with pytest.raises(UserError, match="unpacks to 10004 bytes; allowed: at most 10000"):
        unpack(made, tmp_path / "out", largest=10_000)
    with pytest.warns(UserWarning, match="Duplicate name") if kind == "zip" else io.BytesIO():
        twice = archive(tmp_path / f"y.{kind}", [("a.txt", b"1"), ("./a.txt" if kind != "zip" else "a.txt", b"2")], kind)
    with pytest.raises(UserError, match=r"holds 'a.txt' twice"):
        unpack(twice, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "x.zip").write_text("<html>")
    with pytest.raises(UserError, match="it is no whole zip or tar archive"):
        unpack(tmp_path / "x.zip", tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [[("a", b"1"), ("a/b", b"2")], [("a/b", b"2"), ("a", b"1")], [("a/", b""), ("./a", b"1")]])
def test_a_name_that_is_both_file_and_folder_is_refused(tmp_path, kind, content):
    if kind != "zip" and content[0][0] == "a/":
        pytest.skip("archive() writes files only")
    made = archive(tmp_path / f"x.{kind}", content, kind)
    with pytest.raises(UserError, match="holds 'a' as a file and as a folder; to do: do not use"):
        unpack(made, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x" * 300, "."])
def test_a_name_that_cannot_be_written_is_one_clear_error(tmp_path, kind, name):
    with pytest.raises(UserError, match=r"cannot be unpacked: |as a file and as a folder"):
        unpack(archive(tmp_path / f"x.{kind}", [(name, b"1")], kind), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path):
    inner = archive(tmp_path / "inner.zip", CONTENT.items(), "zip").read_bytes()
    unpack(archive(tmp_path / "x.tar", [("a.txt", b"1"), ("inner.zip", inner)], "tar"), tmp_path / "out")
    assert tree(tmp_path / "out") == {"a.txt": b"1", "inner.zip": inner}


@pytest.mark.parametrize("name", ["set/empty/", "set/link/file"])
def test_nothing_is_made_behind_a_link(tmp_path, name):
    (tmp_path / "outside" / "deep").mkdir(parents=True)
    (tmp_path / "out" / "set").mkdir(parents=True)
    link = tmp_path / "out" / ("set/link" if "link" in name else "set")
    if link.is_dir():
        link.rmdir()
    link.symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=r"would (write through|replace) "):
        unpack(archive(tmp_path / "x.zip", [(name, b"")], "zip"), tmp_path / "out")
    assert [p.name for p in (tmp_path / "outside").iterdir()] == ["deep"]


def test_a_dangling_link_is_not_replaced(tmp_path):
    (tmp_path / "out" / "set").mkdir(parents=True)
    (tmp_path / "out" / "set" / "list.txt").symlink_to("/nowhere/list.txt")
    with pytest.raises(UserError, match=r"would replace .*list.txt"):
        unpack(archive(tmp_path / "x.zip", CONTENT.items(), "zip"), tmp_path / "out")
    assert (tmp_path / "out" / "set" / "list.txt").is_symlink()
    assert tree(tmp_path / "out") == {}


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tarfile.TarFile, "extractall", full)
    with pytest.raises(UserError, match="cannot be unpacked: No space left on device; to do: make room"):
        unpack(archive(tmp_path / "x.tar", CONTENT.items(), "tar"), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
