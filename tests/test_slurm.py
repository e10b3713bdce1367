"""The study on a real Slurm: what a cluster does to jobs must change no number."""

import copy
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests import cluster
from tests.cluster import Cluster, ask, run, wait_for
from tests.studies import REPOSITORY, TINY, TRAINING, planned, snakemake, write_study

pytestmark = [pytest.mark.slurm, pytest.mark.workflow, pytest.mark.slow]

# small machines, short waits; all else is the profile that users get
OVERRIDES = [
    *("--set-resources", "train_dora:gpu=1", "train_dino:gpu=2", "train_dino:runtime=attempt", "train_neco:gpu=1", "evaluate_davis:gpu=1"),
    *("--set-threads", "train_dora=1", "prepare_video=1"),
    *("--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "10"),
]
# small heads: every step of these trainings is written to the disk
SMALL = {**TRAINING, "out_dim": 16, "head_hidden": 16, "head_bottleneck": 8, "local_crops": 2, "warmup_epochs": 0}
DORA = {**SMALL, "frames": 2, "steps": 60}
DINO = {**SMALL, "steps": 120}
FAULTS = ("killed", "cancelled", "spoilt", "preempted")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    reason = cluster.missing()
    if reason:
        pytest.skip(f"no Slurm cluster can be started here: {reason}")
    with Cluster(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture(scope="module")
def disturbed():
    """A study with a run for each fault, among them one on two processes with a time limit of a minute."""
    study = copy.deepcopy(TINY)
    study["runs"] = {
        name: {"method": "dora", "init": "random", "arch": "vit_nano_patch16", "data": ["walk"], "settings": {**DORA}} for name in FAULTS
    }
    study["runs"]["limited"] = {"method": "dino", "init": "random", "arch": "vit_nano_patch16", "data": ["walk"], "settings": DINO}
    study["runs"]["descendant"] = {"method": "neco", "init": "killed", "data": ["coco"], "settings": TRAINING}
    del study["evaluations"]["incontext"]
    study["execution"] |= {"checkpoint_minutes": 0.0, "metrics_every": 1}
    return study


@pytest.fixture(scope="module")
def undisturbed(disturbed, tmp_path_factory):
    """The same study on this machine, where nothing happens to it."""
    folder = write_study(tmp_path_factory.mktemp("undisturbed"), disturbed)
    snakemake(folder, "all", "--set-resources", "train_dino:gpu=2")
    return folder


def start_driver(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """`snakemake --profile slurm all` in a process group of its own; what it prints goes to driver.log."""
    command = [sys.executable, "-m", "snakemake", "--profile", "slurm", "--directory", str(folder), *OVERRIDES, *arguments, "--", "all"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder / "driver.log", "a") as log:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, text=True, env=environment, start_new_session=True)


def finish(driver: "subprocess.Popen[str]", folder: Path, seconds: float = 600) -> None:
    """Wait for the driver's good end; one that hangs is interrupted, which cancels its jobs."""
    try:
        status = driver.wait(seconds)
    except subprocess.TimeoutExpired:
        driver.send_signal(signal.SIGINT)
        driver.wait(60)
        status = "hangs"
    assert status == 0, (folder / "driver.log").read_text()[-6000:]


def state_of(folder: Path, name: str) -> Path:
    """The folder of a run's resumable state, once it holds a complete checkpoint."""
    found: list[Path] = []
    wait_for(lambda: found.extend(folder.glob(f"results/state/{name}-s0-*/step-*.json")) or found, f"a checkpoint of {name}", seconds=240)
    return found[0].parent


def newest_step(state: Path) -> int:
    return max(int(path.stem.removeprefix("step-")) for path in state.glob("step-*.json"))


def holder(state: Path) -> tuple[int, str]:
    """Process and job that work in a state folder."""
    process, job = re.fullmatch(r"process (\d+) on \S+, Slurm job (\d+)", (state / ".holder").read_text()).groups()
    return int(process), job


def job_state(job: str) -> str:
    """RUNNING, PENDING, TIMEOUT, ..."""
    return ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")


def resumed_at(folder: Path, name: str) -> int:
    """The step that the last attempt went on after."""
    log = (folder / "results" / "logs" / name / "s0" / "train.log").read_text()
    return int(re.search(r"resuming after step (\d+)", log)[1])


def require_equal(one: Path, two: Path, runs: list[str]) -> None:
    """Equal weights to the last bit, and equal tables."""
    for name in runs:
        a, b = (folder / "results" / name / "s0" / "backbone.safetensors" for folder in (one, two))
        assert a.read_bytes() == b.read_bytes(), name
    for table in one.glob("results/tables/*.csv"):
        if table.name != "all.csv":  # holds times
            assert table.read_bytes() == (two / "results" / "tables" / table.name).read_bytes(), table.name
    values = [pd.read_csv(folder / "results" / "tables" / "all.csv")[["run", "metric", "value"]] for folder in (one, two)]
    assert values[0].equals(values[1])


def test_whatever_hits_the_jobs_the_tables_are_the_same(slurm, disturbed, undisturbed, tmp_path):
    folder = write_study(tmp_path / "study", disturbed)
    driver = start_driver(folder)
    losses = {}

    state = state_of(folder, "killed")
    losses["killed"] = newest_step(state)
    os.kill(holder(state)[0], signal.SIGKILL)

    state = state_of(folder, "cancelled")
    losses["cancelled"] = newest_step(state)
    run("scancel", holder(state)[1])

    state = state_of(folder, "spoilt")
    wait_for(lambda: len(list(state.glob("step-*.json"))) > 1, "a second checkpoint")
    process = holder(state)[0]
    os.kill(process, signal.SIGSTOP)
    losses["spoilt"] = newest_step(state) - 1
    newest = state / f"step-{newest_step(state):08d}.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    os.kill(process, signal.SIGKILL)

    # Slurm's minutes are long: these two sleep until their time has come; Slurm wakes up what it asks to stop
    jobs = {}
    for name in ("limited", "preempted"):
        state = state_of(folder, name)
        losses[name] = newest_step(state)
        process, jobs[name] = holder(state)
        os.kill(process, signal.SIGSTOP)
    wait_for(lambda: job_state(jobs["limited"]) == "TIMEOUT", "the time limit", seconds=150)
    run("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: job_state(jobs["preempted"]) == "PENDING", "the job to be preempted and queued again")
    for job in ask("squeue", "-h", "-t", "PENDING", "-o", "%i").split():
        run("scontrol", "update", f"jobid={job}", "StartTime=now", check=False)  # Slurm would wait two minutes

    slurm.restart_controller(away=1.0)
    finish(driver, folder)
    require_equal(folder, undisturbed, [*disturbed["runs"]])
    assert all(resumed_at(folder, name) >= step for name, step in losses.items()), losses
    # and what is done stays done: one changed hyperparameter is a matter of its descendants
    changed = copy.deepcopy(disturbed)
    changed["runs"]["killed"]["settings"]["objects"] = 2
    write_study(folder, changed)
    jobs = planned(folder, "--set-resources", "train_dino:gpu=2")
    assert {path.split("/")[1] for path in jobs if path.startswith("results/") and "/s0/" in path} == {"killed", "descendant"}


def test_a_driver_that_was_killed_is_started_again(slurm, disturbed, undisturbed, tmp_path):
    study = copy.deepcopy(disturbed)
    study["runs"] = {"killed": study["runs"]["killed"], "descendant": study["runs"]["descendant"]}
    folder = write_study(tmp_path / "study", study)
    driver = start_driver(folder)
    state = state_of(folder, "killed")
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert Path(f"/proc/{holder(state)[0]}").exists(), "the job runs on without its driver"
    # while the orphan trains, a second job is turned away by the lock on the state, and tries again
    snakemake(folder, "--unlock")
    finish(start_driver(folder), folder)
    require_equal_runs = [*study["runs"]]
    for name in require_equal_runs:
        a, b = (f / "results" / name / "s0" / "backbone.safetensors" for f in (folder, undisturbed))
        assert a.read_bytes() == b.read_bytes(), name


def test_a_full_disk_stops_a_training_that_goes_on_once_there_is_room(slurm, disturbed, undisturbed, tmp_path):
    study = copy.deepcopy(disturbed)
    study["runs"] = {"killed": study["runs"]["killed"]}
    folder = write_study(tmp_path / "study", study)
    snakemake(folder, "results/data/walk.json")
    state = folder / "results" / "state"
    state.mkdir(parents=True)
    done = run("mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(state), check=False)
    if done.returncode:
        pytest.skip(f"no small disk can be mounted here: {done.stderr}")
    try:
        (state / "ballast").write_bytes(bytes(5_000_000))
        assert start_driver(folder, "--retries", "0").wait(300) != 0
        log = (folder / "results" / "logs" / "killed" / "s0" / "train.log").read_text()
        assert "cannot be written" in log
        assert "make room" in log
        assert "Traceback" not in log
        assert not list(state.rglob("*.tmp*")), "what was half written is gone"
        (state / "ballast").unlink()
        run("mount", "-o", "remount,size=200m", str(state))
        finish(start_driver(folder), folder)
        backbones = [f / "results" / "killed" / "s0" / "backbone.safetensors" for f in (folder, undisturbed)]
        assert backbones[0].read_bytes() == backbones[1].read_bytes()
    finally:
        run("umount", str(state), check=False)
        shutil.rmtree(state, ignore_errors=True)
