"""Faults of the machine are one line, and what dead processes left half written is removed."""

import errno
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from densewalk.__main__ import main
from densewalk.core import files, machine
from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write, sweep, temporary_name, write_json
from densewalk.core.machine import machine_fault, usable_workers

FAULTS = {
    "system": (OSError(errno.ENOSPC, "No space left on device", "x"), "make room"),
    "no file": (OSError(errno.EROFS, "Read-only file system"), "make it writable"),
    "torch": (RuntimeError("unable to mmap 8 bytes from file <x>: Too many open files (24)"), "raise the limit of open files"),
    "loader": (
        OSError("Caught OSError in DataLoader worker process 0.\nOriginal Traceback:\nOSError: [Errno 24] Too many open files: 'a'"),
        "ulimit",
    ),
    "bus": (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible ..."), "execution.workers to 0"),
    "shm": (RuntimeError("unable to open shared memory object </torch_1> in read-write mode: No such file or directory (2)"), "/dev/shm"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_of_the_machine_is_one_line(case):
    error, todo = FAULTS[case]
    line = str(machine_fault(error))
    assert todo in line
    assert "\n" not in line


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("shapes differ"), ValueError("[Errno 28]"), OSError("nothing of ours")])
def test_other_errors_are_not_the_machine_s(error):
    assert machine_fault(error) is None
    ours = KeyError("y")
    ours.__context__ = OSError(errno.EEXIST, "File exists", "x")  # while one of the system's was handled
    assert machine_fault(ours) is None


def test_a_file_in_a_folders_place_is_named(tmp_path):
    (tmp_path / "results").write_text("kept")
    with pytest.raises(UserError, match=rf"^{tmp_path}/results is a file where a folder should be; to do: move it away"):
        write_json(tmp_path / "results" / "a" / "b.json", {})
    assert (tmp_path / "results").read_text() == "kept"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # torch keeps the file open that it could not write


def numpy_writer(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros(2**20))


WRITERS = {
    "text": lambda path: path.write_text("x" * 2**23),
    "torch": lambda path: torch.save(torch.zeros(2**20), path),
    "safetensors": lambda path: save_file({"x": torch.zeros(2**20)}, path),
    "numpy": numpy_writer,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_on_a_full_disk_the_earlier_file_stays(small_disk, writer):
    path = small_disk / "weights.bin"
    path.write_text("before")
    with pytest.raises(UserError, match=rf"^{path} cannot be written: .*; to do: make room"), atomic_write(path) as temporary:
        WRITERS[writer](temporary)
    assert path.read_text() == "before"
    assert os.listdir(small_disk) == ["weights.bin"]


def test_an_error_about_another_file_is_passed_on(tmp_path):
    with pytest.raises(FileNotFoundError, match="source"), atomic_write(tmp_path / "copy"):
        (tmp_path / "source").read_text()
    with pytest.raises(ValueError, match="ours"), atomic_write(tmp_path / "copy"):
        raise ValueError("ours")
    assert os.listdir(tmp_path) == []


# -- what dead processes left ----------------------------------------------------------------------------------------


def dead_process():
    return int(subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True).stdout)


def test_temporary_files_of_dead_processes_are_swept_at_the_next_write(tmp_path):
    host = temporary_name("x").split(".")[2]
    dead, alive = dead_process(), os.getppid()
    gone = [f".walk.mp4.{host}.{dead}.tmp.mp4", f".a.{host}.{dead}.tmp", f".old.{dead}.tmp.pt", f".walk.mp4.elsewhere.{alive}.tmp.mp4"]
    kept = [f".b.{host}.{alive}.tmp", ".c.elsewhere.1.tmp", ".d.part", "e.tmp", ".f.tmp"]
    for name in [*gone, *kept]:
        (tmp_path / name).write_text("half")
    for name in gone[2:]:  # of another machine, or of an earlier version: given up after an hour
        os.utime(tmp_path / name, (1e9, 1e9))
    (tmp_path / f".archive.{host}.{dead}.tmp.x1").mkdir()
    (tmp_path / f".archive.{host}.{dead}.tmp.x1" / "inside").write_text("half")
    write_json(tmp_path / "other.json", {})
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "other.json"])


def test_a_number_that_was_given_again_does_not_protect_a_temporary_file(tmp_path):
    path = tmp_path / temporary_name("x")  # of a process with this one's number, before this one began
    path.write_text("half")
    os.utime(path, (1e9, 1e9))
    sweep(tmp_path)
    assert not path.exists()


def test_a_killed_writer_leaves_nothing_after_the_next_start(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from densewalk.core.files import atomic_write
with atomic_write(Path({str(tmp_path)!r}) / "walk.mp4") as temporary:
    temporary.write_bytes(bytes(2**20))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(os.listdir(tmp_path)) == 1
    files._swept.clear()
    write_json(tmp_path / "walk.json", {})
    assert os.listdir(tmp_path) == ["walk.json"]


# -- the command line ------------------------------------------------------------------------------------------------


def test_without_shared_memory_data_are_loaded_by_the_process_itself(monkeypatch, caplog):
    assert usable_workers(0) == 0

    def refuse(**_):
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", refuse)
    assert usable_workers(4) == 0
    assert "data are loaded by the process itself" in caplog.text


def test_errors_of_the_system_end_a_command_with_one_line(tmp_path, caplog, monkeypatch):
    (tmp_path / "out").write_text("kept")
    assert main(["tables", "--table", "all", "--out", str(tmp_path / "out" / "all.csv")]) == UserError.exit_status
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert line.startswith(f"error: {tmp_path}/out is a file where a folder should be")
