"""The jobs of a run on this machine come from one server, and make what a process of their own makes."""

import json
import pstats
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from densewalk.__main__ import main
from densewalk.cli import profiling
from tests.fixtures.studies import REPOSITORY

pytestmark = pytest.mark.workflow
EXECUTION = ["--execution", '{"device": "cpu", "workers": 0}', "--threads", "1"]


def spec_of(folder, **wanted):
    """The specification with these entries."""
    for file in (folder / "results/specs").glob("[0-9a-f]*.json"):
        content = json.loads(file.read_text())
        if all(content.get(key) == value for key, value in wanted.items()):
            return str(file)
    raise AssertionError(f"no specification of {wanted}")


def test_forked_jobs_make_what_a_process_of_its_own_makes_also_while_it_is_profiled(study, tmp_path, monkeypatch):
    """The finished study's jobs were forked; this process is none of them."""
    assert not [log for log in (study / "results/logs").rglob("*.log") if "by itself" in log.read_text()]
    monkeypatch.chdir(study)
    out = tmp_path / "dora"
    data = ["--data", "results/data/walk.json"]
    spec = spec_of(study, run="dora", seed=0, method="dora")
    assert main(["train", "--spec", spec, *data, "--state", str(tmp_path / "a"), "--out", str(out), *EXECUTION]) == 0
    one, two = load_file(out / "backbone.safetensors"), load_file("results/dora/s0/backbone.safetensors")
    assert one.keys() == two.keys()
    assert all((one[name] == two[name]).all() for name in one)
    backbone, result = "results/dora/s0/backbone.safetensors", tmp_path / "incontext.json"
    spec = spec_of(study, run="dora", seed=0, evaluation="incontext")
    monkeypatch.setenv(profiling.VARIABLE, str(tmp_path / "profiles"))
    assert main(["evaluate", "--spec", spec, "--backbone", backbone, "--state", str(tmp_path / "b"), "--out", str(result), *EXECUTION]) == 0
    alone, forked = json.loads(result.read_text()), json.loads(Path("results/dora/s0/incontext.json").read_text())
    assert alone["metrics"] == forked["metrics"]
    assert alone["details"] == forked["details"]
    (profile,) = (tmp_path / "profiles").glob("*incontext.json.prof")
    profiled = pstats.Stats(str(profile))
    assert any(file.endswith("evaluations/incontext/evaluate.py") and name == "evaluate" for file, _, name in profiled.stats)
    assert profiled.total_tt > 0
    assert 0 < forked["cpu_seconds"] < 60
    assert forked["peak_rss_mib"] > 50


def children(process):
    """Process -> command line of those that a process has started."""
    found = {}
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in task.read_text().split():
            found[int(child)] = Path(f"/proc/{child}/cmdline").read_text()
    return found


def test_the_workflow_starts_one_server_and_ends_it(study):
    tables = ["results/tables/davis.csv", "results/tables/cost.csv"]
    before = {name: (study / name).read_bytes() for name in tables}
    for name in tables:
        (study / name).unlink()
    command = [sys.executable, "-m", "snakemake", "--directory", str(study), "--cores", "2", "--quiet", "all", "--", *tables]
    driver = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    servers = set()
    while driver.poll() is None:
        try:
            servers |= {process for process, line in children(driver.pid).items() if "densewalk.cli.forkserver.server" in line}
        except OSError:  # one that has ended meanwhile
            continue
        time.sleep(0.05)
    assert driver.returncode == 0, driver.stdout.read()
    assert len(servers) == 1
    assert not Path(f"/proc/{servers.pop()}").exists()
    assert {name: (study / name).read_bytes() for name in tables} == before
    assert not [log for log in (study / "results/logs/tables").glob("*.log") if "by itself" in log.read_text()]
