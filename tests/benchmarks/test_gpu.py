"""The check for GPUs works: each of its parts runs on a CPU at small size, and what fails is said."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import machine
from benchmarks.gpu.report import Finding, Setting, Skipped, Table

from densewalk.study.gpus import GPUS
from tests.fixtures.studies import REPOSITORY


def lines(text):
    return [re.split(r"\s{2,}", line) for line in text.splitlines()]


@pytest.mark.slow
def test_every_check_runs_on_a_cpu(tmp_path):
    """From another folder, without PYTHONPATH, so that the script finds the package by itself."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPOSITORY / "benchmarks/gpu/__main__.py"), "--rehearse"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    rows = lines(done.stdout)[2:]
    assert [*dict.fromkeys(row[0] for row in rows)] == [*program.CHECKS, "all"]
    assert {row[-1].split()[-1] for row in rows} == {"yes"}


class Broken:
    """A check of which one part fails."""

    @staticmethod
    def check(setting):
        yield Finding("first", 1.0, at_most=2.0)
        yield Finding("second", 3.0, at_most=2.0)
        yield Finding("third", 1.0)


@pytest.fixture
def broken(monkeypatch):
    """`sorting` is broken, `search` raises, `methods` cannot be done here."""

    def error(setting):
        yield Finding("before", 1.0)
        raise RuntimeError("CUDA error: an illegal memory access")

    def impossible(setting):
        raise Skipped("not on this machine")
        yield

    found = {"sorting": Broken, "search": type("", (), {"check": staticmethod(error)})}
    found["methods"] = type("", (), {"check": staticmethod(impossible)})
    monkeypatch.setattr(importlib, "import_module", lambda name: found[name.rpartition(".")[2]])


def test_the_first_failure_ends_it_with_status_1(broken, capsys):
    assert program.run_checks(["sorting", "search"], small=True, stop=True) == 1
    rows = lines(capsys.readouterr().out)[2:]
    assert [(row[1], row[-1].split()[-1]) for row in rows] == [("first", "yes"), ("second", "NO")]
    assert program.run_checks(["sorting", "search", "methods"], small=True, stop=False) == 1
    out, err = capsys.readouterr()
    assert [row[1] for row in lines(out)[2:]] == [
        "first",
        "second",
        "third",
        "before",
        "RuntimeError: CUDA error: an illegal memory access",
        "not on this machine",
        "seconds in all",
    ]
    assert "Traceback" in err


def test_a_missing_package_skips_its_checks_by_name(monkeypatch, capsys):
    monkeypatch.setitem(program.CHECKS, "sorting", (("no_such_package",), ()))
    assert program.run_checks(["sorting"], small=True, stop=True) == 0
    assert "no_such_package not installed" in capsys.readouterr().out


def test_without_what_everything_needs_it_says_so(monkeypatch, capsys):
    monkeypatch.setitem(program.REQUIRED, "no_such_package", "no-such-package")
    monkeypatch.setattr(sys, "argv", ["gpu", "--rehearse"])
    assert program.main() == 2
    assert "pip install no-such-package" in capsys.readouterr().err


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    assert program.main() == 2
    assert "there is no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("finding", "ok", "rehearsed"),
    [
        (Finding("x", 1.0), True, True),
        (Finding("x", float("nan")), False, False),
        (Finding("x", float("nan"), at_most=1.0), False, False),
        (Finding("x", 2.0, at_most=1.0), False, False),
        (Finding("x", 2.0, at_least=3.0), False, False),
        (Finding("x", 2.0, at_most=1.0, slow=True), False, True),
    ],
)
def test_bounds(finding, ok, rehearsed):
    assert (finding.ok(small=False), finding.ok(small=True)) == (ok, rehearsed)


def test_an_error_is_a_line_of_the_table(capsys):
    def check():
        raise ValueError("first line\nsecond line")
        yield

    with pytest.raises(ValueError, match="first line"):
        Table(small=False).fill("name", check(), stop=True)
    assert "ValueError: first line " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "key"),
    [("NVIDIA H200", "h200"), ("NVIDIA A100-SXM4-80GB", "a100"), ("NVIDIA GeForce RTX 4090", "rtx4090"), ("Tesla T4", None)],
)
def test_cards_are_known_by_their_names(monkeypatch, name, key):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    assert machine.this_gpu(torch.device("cuda", 0)) == (None if key is None else GPUS[key])
    assert machine.this_gpu(torch.device("cpu")) is None


def test_make_runs_it_with_any_python():
    def recipe(*words):
        return subprocess.run(
            ["make", "--no-print-directory", "-n", "gpu-check", *words], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout.strip()

    assert recipe("PYTHON=python3.12") == "python3.12 -m benchmarks.gpu"
    environment = ".venv/bin/python" if (REPOSITORY / ".venv/bin/python").exists() else "python3"
    assert recipe() == f"{environment} -m benchmarks.gpu"


def test_a_batch_that_the_plan_does_not_fit_is_halved(monkeypatch):
    from benchmarks.gpu import speed

    training = speed.small()[0]
    monkeypatch.setattr(speed, "room", lambda device: speed.planned(training) - 1e-9)
    setting = Setting(torch.device("cuda", 0), small=False, folder=Path())
    assert speed.fitting(training, setting).settings.batch_size == training.settings.batch_size // 2
