"""On a real Slurm, evaluations of one backbone are one entry of the queue, and each is still a job of its own.

The fixture `shared` runs a study in which the data of one evaluation are damaged, and whose entry is preempted after its first record.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from densewalk.__main__ import main
from tests.fixtures.cluster import PATIENCE, ask, run, wait_for
from tests.fixtures.studies import REPOSITORY, TINY, planned, snakemake, write_study

pytestmark = [pytest.mark.slurm, pytest.mark.workflow, pytest.mark.slow]

DAVIS, INCONTEXT = (TINY["evaluations"][name] for name in ("davis", "incontext"))
CLIPS = {"root": "data/DAVIS", "dataset": "synthetic DAVIS layout", "layout": "davis", "size": 64}
EVALUATIONS = {
    "davis": DAVIS,
    "incontext": INCONTEXT,
    "clips": {"protocol": "clip_propagation", "settings": CLIPS},
    "damaged": {**DAVIS, "settings": {**DAVIS["settings"], "root": "damaged/DAVIS", "dataset": "damaged"}},
}
GOOD = ("davis", "incontext", "clips")
SOON = ["--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "10"]
RECORDS = "results/start/s0"


@dataclass
class Shared:
    """The study after its first run. said: of the driver. preempted: the entry's Slurm job."""

    folder: Path
    said: str
    preempted: str


@pytest.fixture(scope="module")
def shared(slurm, tmp_path_factory):
    runs = {"start": {**TINY["runs"]["start"], "seeds": [0]}}
    folder = write_study(tmp_path_factory.mktemp("study"), {**TINY, "runs": runs, "evaluations": EVALUATIONS})
    snakemake(folder, f"{RECORDS}/backbone.safetensors", "data/receipt.json")
    shutil.copytree(folder / "data/DAVIS", folder / "damaged/DAVIS")
    mask = damaged_mask(folder)
    mask.write_bytes(mask.read_bytes()[:60])
    driver = on_slurm(folder, "--retries", "0", *(f"{RECORDS}/{name}.json" for name in EVALUATIONS))
    try:
        job = hold_after_first_record(folder)
        preempt(job)
        said, _ = driver.communicate(timeout=PATIENCE)
    finally:
        if driver.poll() is None:
            driver.send_signal(signal.SIGINT)
            driver.wait(60)
    assert driver.returncode != 0, "one evaluation fails"
    return Shared(folder, said, job)


def on_slurm(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "snakemake", "--profile", "slurm", "--directory", str(folder), *SOON, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=REPOSITORY, env=environment, start_new_session=True, **pipes)


def hold_after_first_record(folder: Path) -> str:
    """Hold the entry's process once a record is there, so that it does not end before it is stopped; the entry's number.

    Slurm wakes it up when it asks it to stop.
    """
    wait_for(lambda: records(folder), "a record", seconds=PATIENCE)
    os.kill(node_process(folder), signal.SIGSTOP)
    return ask("squeue", "-h", "-t", "RUNNING", "-o", "%i")


def preempt(job: str) -> None:
    """Let a job that goes before all others take both nodes."""
    run("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: ask("squeue", "-h", "-j", job, "-o", "%T") == "PENDING", "the entry to be queued again", seconds=60)

    def hurry() -> bool:  # Slurm would wait two minutes
        run("scontrol", "update", f"jobid={job}", "StartTime=now", check=False)
        time.sleep(1)
        return ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T") != "PENDING"

    wait_for(hurry, "the entry to begin again", seconds=60)


def node_process(folder: Path) -> int:
    """The process that runs the jobs of the study's entry; not srun's, nor Slurm's."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_text().split("\0")
        except OSError:  # it has ended
            continue
        if words[1:4] == ["-P", "-m", "densewalk.cli.joint.node"] and words[4].startswith(str(folder.resolve())):
            return int(file.parent.name)
    raise AssertionError("no process of an entry")


def damaged_mask(folder: Path) -> Path:
    return sorted((folder / "damaged/DAVIS/Annotations").rglob("*.png"))[1]


def records(folder: Path) -> set[str]:
    return {path.stem for path in (folder / RECORDS).glob("*.json")} & EVALUATIONS.keys()


def submitted(said: str) -> list[str]:
    """Numbers of the Slurm jobs, as the driver prints them."""
    return re.findall(r"has been submitted with SLURM jobid (\d+)", said)


def test_evaluations_are_one_entry_of_the_queue(shared):
    assert submitted(shared.said) == [shared.preempted]
    logs = [(shared.folder / f"results/logs/start/s0/{name}.log").read_text() for name in EVALUATIONS]
    assert [f"Slurm job {shared.preempted}" in log for log in logs] == [True] * len(logs)
    assert [log for log in logs if "by itself" in log] == [], "each is a fork of the entry's process"
    comments = ask("squeue", "-h", "-t", "all", "-o", "%k").split()
    assert comments.count("rule_evaluations_wildcards_start_s0") == 1


def test_a_failure_of_one_loses_no_other(shared):
    assert records(shared.folder) == {*GOOD}
    assert "cannot be read as an image" in shared.said
    assert shared.said.count("Error in rule") == 1
    assert not list((shared.folder / ".snakemake/incomplete").iterdir())


def test_a_preempted_entry_makes_nothing_twice(shared):
    attempts = {name: (shared.folder / f"results/logs/start/s0/{name}.log").read_text().count("==== attempt") for name in GOOD}
    assert attempts == dict.fromkeys(GOOD, 1)


def test_records_are_those_of_evaluations_computed_alone(shared, tmp_path, monkeypatch):
    monkeypatch.chdir(shared.folder)
    specs = [json.loads(file.read_text()) | {"file": str(file)} for file in Path("results/specs").glob("[0-9a-f]*.json")]
    execution = ["--execution", '{"device": "cpu", "workers": 0}', "--threads", "1"]
    for name in GOOD:
        spec = next(spec["file"] for spec in specs if spec.get("evaluation") == name)
        out, backbone = tmp_path / f"{name}.json", f"{RECORDS}/backbone.safetensors"
        job = ["evaluate", "--spec", spec, "--backbone", backbone, "--state", str(tmp_path / name), "--out", str(out), *execution]
        assert main(job) == 0
        alone, joint = json.loads(out.read_text()), json.loads(Path(f"{RECORDS}/{name}.json").read_text())
        same = ("metrics", "details", "backbone_sha256", "config_hash")
        assert {key: alone[key] for key in same} == {key: joint[key] for key in same}


def test_a_rerun_computes_what_has_failed(shared):
    folder = shared.folder
    mask = damaged_mask(folder)
    shutil.copy(folder / "data" / mask.relative_to(folder / "damaged"), mask)
    wanted = [f"{RECORDS}/{name}.json" for name in EVALUATIONS]
    assert planned(folder, *wanted) == {f"{RECORDS}/damaged.json"}
    before = {name: (folder / f"{RECORDS}/{name}.json").stat().st_mtime_ns for name in GOOD}
    driver = on_slurm(folder, *wanted)
    said, _ = driver.communicate(timeout=PATIENCE)
    assert driver.returncode == 0, said[-3000:]
    assert records(folder) == EVALUATIONS.keys()
    assert {name: (folder / f"{RECORDS}/{name}.json").stat().st_mtime_ns for name in GOOD} == before
    values = [json.loads((folder / f"{RECORDS}/{name}.json").read_text())["metrics"] for name in ("davis", "damaged")]
    assert values[0] == values[1]


def test_a_canceled_entry_costs_an_attempt_only_of_what_was_at_work(shared):
    folder = shared.folder
    for name in EVALUATIONS:
        (folder / f"{RECORDS}/{name}.json").unlink(missing_ok=True)
    driver = on_slurm(folder, "--retries", "1", *(f"{RECORDS}/{name}.json" for name in GOOD))
    try:
        canceled = hold_after_first_record(folder)
        run("scancel", canceled)
        said, _ = driver.communicate(timeout=PATIENCE)
    finally:
        if driver.poll() is None:
            driver.send_signal(signal.SIGINT)
            driver.wait(60)
    assert driver.returncode == 0, said[-3000:]
    assert records(folder) == {*GOOD}
    assert submitted(said)[0] == canceled
    assert len(submitted(said)) <= len(GOOD), "what had ended is not made again"
    assert f"It had not begun when Slurm job {canceled} ended" in said
    assert not list((folder / ".snakemake/incomplete").iterdir())
    assert not list((folder / ".snakemake/joint").iterdir()), "nothing is left of entries"
