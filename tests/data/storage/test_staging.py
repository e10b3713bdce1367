"""Copies on a node's own disk: one for all processes, whole or not there, and the data themselves where none can be made."""

import hashlib
import multiprocessing
import os
import time
from pathlib import Path

import pytest
from pydantic import ValidationError

from densewalk.core.errors import UserError
from densewalk.data.storage import staging as module
from densewalk.data.storage.staging import local_copy, staging
from densewalk.training.execution import Execution

CONTENT = os.urandom(100_000)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "data" / "train 2017's $HOME.tar"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def disk(tmp_path, monkeypatch):
    folder = tmp_path / "node's disk"
    folder.mkdir()
    monkeypatch.setenv("NODE_DISK", str(folder))
    return folder


def copies(disk):
    return [p for p in disk.rglob("*") if p.is_file() and p.suffix != ".lock"]


def test_a_file_is_copied_once_and_found_again_by_the_next_job(source, disk, caplog):
    caplog.set_level("INFO")
    with staging("${NODE_DISK}"):
        copy = local_copy(source)
        assert copy.is_relative_to(disk)
        assert copy.read_bytes() == CONTENT
        assert copy.name == source.name
        assert local_copy(source) == copy
    with staging("$NODE_DISK"):
        assert local_copy(source, hashlib.sha256(CONTENT).hexdigest()) == copy
    assert caplog.text.count("copied and checked") == 1
    assert local_copy(source) == source  # outside of a job
    assert copies(disk) == [copy]


def test_a_file_that_has_changed_is_copied_again(source, disk):
    with staging(str(disk)):
        before = local_copy(source)
    source.write_bytes(CONTENT[::-1])
    os.utime(source, ns=(0, 1))
    with staging(str(disk)):
        assert local_copy(source) != before
        assert local_copy(source).read_bytes() == CONTENT[::-1]


def _copy(source, disk, queue):
    with staging(str(disk)):
        queue.put((local_copy(source).read_bytes() == CONTENT, os.getpid()))


def test_processes_of_a_node_make_one_copy(source, disk, monkeypatch):
    made, transfer = multiprocessing.Value("i", 0), module._transfer

    def slowly(*args):
        with made.get_lock():
            made.value += 1
        time.sleep(0.3)
        return transfer(*args)

    monkeypatch.setattr(module, "_transfer", slowly)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    children = [context.Process(target=_copy, args=(source, disk, queue)) for _ in range(4)]
    for child in children:
        child.start()
    found = [queue.get(timeout=60) for _ in children]
    for child in children:
        child.join()
    assert all(good for good, _ in found)
    assert made.value == 1


def test_a_job_reads_a_copy_while_another_job_reads_it(source, disk):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with staging(str(disk)):
        path, lock = local_copy(source), module._COPIES[os.path.realpath(source)][1]
        child = context.Process(target=_read_in_another_job, args=(source, disk, queue))
        child.start()
        assert queue.get(timeout=60) == str(path), "without waiting for the end of this one"
        child.join()
        assert os.fstat(lock).st_nlink == 1, "which holds its lock meanwhile"


def _read_in_another_job(source, disk, queue):
    module._COPIES.clear()  # not by the lock that a fork inherits
    with staging(str(disk)):
        queue.put(str(local_copy(source)))


@pytest.mark.parametrize(
    ("stage", "reason"),
    [("$NOT_SET_ANYWHERE", "the variable is not set"), ("/no/such/folder", "is no folder"), ("$RELATIVE", "is no absolute path")],
)
def test_a_folder_that_is_not_there_is_one_line_and_the_data_are_read_in_place(source, monkeypatch, caplog, stage, reason):
    monkeypatch.setenv("RELATIVE", "relative")
    with staging(stage):
        assert local_copy(source) == source
    assert f"execution.stage: {stage}: " in caplog.text
    assert reason in caplog.text


def test_a_disk_that_is_too_small_is_one_line(source, disk, monkeypatch, caplog):
    monkeypatch.setattr(module, "SPARE", 2**60)
    with staging(str(disk)):
        assert local_copy(source) == source
        assert local_copy(source) == source
    assert caplog.text.count("the disk is too small") == 1
    assert f"{source} is read where it lies, not from {disk}" in caplog.text
    assert not copies(disk)


def test_room_is_made_by_what_no_job_reads(source, disk, monkeypatch):
    """The one that was unused for longest first; one that a job reads stays."""
    others = []
    for i in range(3):
        path = source.with_name(f"{i}.tar")
        path.write_bytes(CONTENT)
        with staging(str(disk)):
            others.append(local_copy(path))
        os.utime(others[-1].parent.with_suffix(".lock"), (i + 1, i + 1))
    free = 2**30
    usage = type("Usage", (), {})()

    def disk_usage(_):
        usage.free = free - sum(p.stat().st_size for p in copies(disk))
        return usage

    monkeypatch.setattr(module.shutil, "disk_usage", disk_usage)
    monkeypatch.setattr(module, "SPARE", free - 3 * len(CONTENT))
    held = os.open(others[0].parent.with_suffix(".lock"), os.O_RDWR)
    module.fcntl.flock(held, module.fcntl.LOCK_SH)
    with staging(str(disk)):
        copy = local_copy(source)
    os.close(held)
    assert copy.read_bytes() == CONTENT
    assert [other.exists() for other in others] == [True, False, True]


def test_a_copy_with_another_content_is_not_used(source, disk, monkeypatch, caplog):
    monkeypatch.setattr(module, "_crc", lambda _: 0)
    with staging(str(disk)):
        assert local_copy(source) == source
    assert "the copy has another content" in caplog.text
    assert not copies(disk)


def test_a_file_that_is_not_the_receipts_is_an_error(source, disk):
    with staging(str(disk)), pytest.raises(UserError, match="is not the file that its receipt describes"):
        local_copy(source, "0" * 64)
    assert not copies(disk)


@pytest.mark.parametrize("kind", ["link", "open"])
def test_another_users_folder_is_not_trusted(source, disk, tmp_path, caplog, kind):
    own = disk / f"densewalk-{os.getuid()}"
    if kind == "link":
        (tmp_path / "elsewhere").mkdir()
        own.symlink_to(tmp_path / "elsewhere")
    else:
        own.mkdir()
        own.chmod(0o777)
    with staging(str(disk)):
        assert local_copy(source) == source
    assert "is another user's, or others can write in it" in caplog.text


def test_what_a_killed_process_left_is_removed(source, disk):
    with staging(str(disk)):
        copy = local_copy(source)
    copy.rename(copy.with_name(f".{copy.name}.{os.uname().nodename}.999999999.tmp.tar"))
    from densewalk.core import files

    files._swept.clear()
    with staging(str(disk)):
        assert local_copy(source) == copy
    assert copies(disk) == [copy]


@pytest.mark.parametrize("good", ["$TMPDIR", "${TMPDIR}/data", "/scratch/$USER", "/local disk/it's"])
def test_folders_that_may_be_named(good):
    assert Execution(stage=good).stage == good


@pytest.mark.parametrize("bad", ["", "data", "~/x", "$(rm -rf x)", "`x`", "${TMPDIR:-/tmp}", "/x/$", "/a*", "/a\nb", "$"])
def test_what_only_a_shell_would_understand_is_refused(bad):
    with pytest.raises(ValidationError):
        Execution(stage=bad)


def test_a_text_stays_a_text(monkeypatch, disk, source):
    """A folder's name with quotes and variables' signs goes through no shell."""
    monkeypatch.setenv("NODE_DISK", str(disk))
    with staging("$NODE_DISK"):
        assert Path(os.environ[module.STAGE]) == disk
        assert local_copy(source).name == "train 2017's $HOME.tar"
