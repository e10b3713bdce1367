"""The study on a real Slurm: what a cluster does to jobs must change no number.

One study has a run for each fault, and the fixture `survived` lets them all happen. Every training is held, by SIGSTOP, at its first
checkpoint, so that a fault never comes too late; Slurm wakes up what it asks to stop. Meanwhile the same study runs undisturbed.
"""

import copy
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
import yaml

from densewalk.config import load_study
from densewalk.provenance import config_hash
from tests import cluster
from tests.cluster import Cluster, ask, run, wait_for
from tests.studies import REPOSITORY, TINY, TRAINING, planned, snakemake, write_study

pytestmark = [pytest.mark.slurm, pytest.mark.workflow, pytest.mark.slow]

# small machines, short waits; all else is the profile that users get. DINO trains on two nodes and is warned of its time limit; NeCo in
# two processes of one node, without a warning
OVERRIDES = [
    "--set-resources",
    *("train_dora:gpu=1", "evaluate_davis:gpu=1"),
    *("train_dino:gpu=0", "train_dino:nodes=2", "train_dino:gres=gpu:1", "train_dino:runtime=attempt", "train_dino:slurm_extra='--signal=USR1@10'"),
    *("train_neco:gpu=2", "train_neco:runtime=attempt", "train_neco:slurm_extra=''"),
    *("--set-threads", *(f"train_{method}=1" for method in ("dora", "dino", "neco"))),
    *("--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "10"),
]  # fmt: skip
LOCALLY = ["--set-resources", "train_dino:gpu=2", "train_neco:gpu=2"]
# small heads: every step of these trainings is written to the disk
SMALL = {**TRAINING, "out_dim": 16, "head_hidden": 16, "head_bottleneck": 8, "local_crops": 2, "warmup_epochs": 0}
DORA = {"method": "dora", "data": ["walk"], "init": "random", "arch": "vit_nano_patch16", "settings": {**SMALL, "frames": 2, "steps": 24}}
DINO = {"method": "dino", "data": ["walk"], "init": "random", "arch": "vit_nano_patch16", "settings": {**SMALL, "steps": 40}}
RUNS = {
    **{name: copy.deepcopy(DORA) for name in ("killed", "cancelled", "spoilt", "preempted", "full")},
    "warned": DINO,
    "limited": {"method": "neco", "init": "random", "arch": "vit_nano_patch16", "data": ["coco"], "settings": {**TRAINING, "steps": 24}},
    "orphaned": {"method": "neco", "init": "limited", "data": ["coco"], "settings": {**TRAINING, "steps": 8}},
}
TARGETS = ["all", *(f"results/{name}/s0/backbone.safetensors" for name in RUNS)]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    reason = cluster.missing()
    if reason:
        pytest.skip(f"no Slurm cluster can be started here: {reason}")
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        started.__enter__()
    except (OSError, RuntimeError, TimeoutError) as error:
        started.__exit__()
        pytest.skip(f"no Slurm cluster can be started here: {error}")
    yield started
    started.__exit__()


@dataclass
class Survived:
    """Two folders of the same study, and what was seen on the way."""

    folder: Path
    undisturbed: Path
    steps: dict[str, int] = field(default_factory=dict)  # newest intact checkpoint when the fault came
    seen: dict[str, str] = field(default_factory=dict)  # what jobs said that did not end


@pytest.fixture(scope="module")
def survived(slurm, tmp_path_factory):
    """The study, finished in spite of everything."""
    study = copy.deepcopy({**TINY, "runs": RUNS})
    study["execution"] |= {"checkpoint_minutes": 0.0, "metrics_every": 1}
    study["evaluations"] = {"davis": {**study["evaluations"]["davis"], "runs": ["limited", "orphaned"]}}
    undisturbed = write_study(tmp_path_factory.mktemp("undisturbed"), study)
    snakemake(undisturbed, "results/data/walk.json", "results/data/coco.json")
    folder = tmp_path_factory.mktemp("disturbed") / "study"
    shutil.copytree(undisturbed, folder, copy_function=shutil.copy2)
    survived = Survived(folder, undisturbed)
    with SmallDisk(state_folder(folder, "full")) as disk:
        drivers = [start(undisturbed, "--cores", "1", *LOCALLY), start_driver(folder)]
        try:
            faults(slurm, survived, disk)
            wait_for(lambda: hold(folder, "orphaned"), "a checkpoint of orphaned", seconds=240)
            drivers.append(kill_and_restart(drivers.pop(), survived))
            finish(drivers[1], folder)
            finish(drivers[0], undisturbed)
        finally:
            for driver in drivers:
                interrupt(driver)
        yield survived


def faults(slurm: Cluster, survived: Survived, disk: "SmallDisk") -> None:
    """Everything that happens to jobs, and the controller's absence."""
    process, job = hold_all(survived, disk)
    os.kill(process["killed"], signal.SIGKILL)
    run("scancel", job["cancelled"])
    spoil_newest(survived)
    os.kill(process["spoilt"], signal.SIGKILL)
    wait_for(lambda: free(disk, survived), "the disk to be full", seconds=240)
    wait_for(lambda: is_warned(process["warned"]), "the signal before the time limit", seconds=120)
    os.kill(process["warned"], signal.SIGCONT)
    wait_for(lambda: state_of_job(job["warned"]) == "FAILED", "the warned job to save and end")
    survived.seen["warned"] = said(survived.folder, "warned")
    wait_for(lambda: state_of_job(job["limited"]) == "TIMEOUT", "the time limit", seconds=150)
    run("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: state_of_job(job["preempted"]) == "PENDING", "the job to be preempted and queued again")
    for waiting in ask("squeue", "-h", "-t", "PENDING", "-o", "%i").split():
        run("scontrol", "update", f"jobid={waiting}", "StartTime=now", check=False)  # Slurm would wait two minutes
    slurm.end_controller()
    wait_for(lambda: is_running("sacct"), "the driver to miss the controller", seconds=90)
    time.sleep(15)  # longer than Slurm's own commands have patience here
    slurm.start_controller()


def hold_all(survived: Survived, disk: "SmallDisk") -> tuple[dict[str, int], dict[str, str]]:
    """Stop the runs of independent faults once they have a checkpoint; process and job of each."""
    held: dict[str, Path] = {}

    def all_held() -> bool:
        free(disk, survived)
        for name in {*RUNS} - {*held, "full", "orphaned"}:
            if state := hold(survived.folder, name, checkpoints=2 if name == "spoilt" else 1):
                held[name] = state
        return len(held) == len(RUNS) - 2

    wait_for(all_held, "a checkpoint of each run", seconds=300)
    survived.steps |= {name: newest_step(state) for name, state in held.items()}
    holders = {name: holder(state) for name, state in held.items()}
    return {name: process for name, (process, _) in holders.items()}, {name: job for name, (_, job) in holders.items()}


# -- drivers ---------------------------------------------------------------------------------------------------------


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """`snakemake all` in a process group of its own; what it prints goes to driver.log."""
    command = [sys.executable, "-m", "snakemake", "--directory", str(folder), *arguments, "--", *TARGETS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder / "driver.log", "a") as log:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, text=True, env=environment, start_new_session=True)


def start_driver(folder: Path) -> "subprocess.Popen[str]":
    return start(folder, "--profile", "slurm", *OVERRIDES)


def kill_and_restart(driver: "subprocess.Popen[str]", survived: Survived) -> "subprocess.Popen[str]":
    """A driver killed while `orphaned` trains; the next one's job for it must be turned away."""
    process = holder(only(survived.folder.glob("results/state/orphaned-s0-*")))[0]
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    snakemake(survived.folder, "--unlock")
    driver = start_driver(survived.folder)
    wait_for(lambda: "is being worked in by" in said(survived.folder, "orphaned"), "a second job of orphaned", seconds=120)
    survived.seen["orphaned"] = said(survived.folder, "orphaned")
    os.kill(process, signal.SIGCONT)
    return driver


def finish(driver: "subprocess.Popen[str]", folder: Path) -> None:
    """Wait for the driver's good end."""
    try:
        status = str(driver.wait(300))
    except subprocess.TimeoutExpired:
        status = "hangs"
    assert status == "0", f"{status}: {(folder / 'driver.log').read_text()[-6000:]}"


def interrupt(driver: "subprocess.Popen[str]") -> None:
    """End a driver that has not ended; it cancels its jobs."""
    if driver.poll() is None:
        driver.send_signal(signal.SIGINT)
        driver.wait(60)


# -- states, processes, jobs -----------------------------------------------------------------------------------------


def state_folder(folder: Path, name: str) -> Path:
    return folder / "results" / "state" / f"{name}-s0-{config_hash(load_study(folder / 'config.yaml').run_spec(name, 0))}"


def hold(folder: Path, name: str, checkpoints: int = 1) -> Path | None:
    """Stop a run's training where it has so many checkpoints; the folder of its state."""
    seals = list(folder.glob(f"results/state/{name}-s0-*/step-*.json"))
    if len(seals) < checkpoints:
        return None
    state = seals[0].parent
    os.kill(holder(state)[0], signal.SIGSTOP)
    return state


def newest_step(state: Path) -> int:
    return max(int(path.stem.removeprefix("step-")) for path in state.glob("step-*.json"))


def spoil_newest(survived: Survived) -> None:
    """Cut the newest checkpoint of `spoilt` short: the one before it is what must not be lost."""
    state = state_folder(survived.folder, "spoilt")
    newest = state / f"step-{newest_step(state):08d}.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    survived.steps["spoilt"] -= 1


def holder(state: Path) -> tuple[int, str]:
    """Process and job that work in a state folder."""
    process, job = re.fullmatch(r"process (\d+) on \S+, Slurm job (\d+)", (state / ".holder").read_text()).groups()
    return int(process), job


def state_of_job(job: str) -> str:
    """RUNNING, PENDING, TIMEOUT, ..."""
    return ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")


def is_warned(process: int) -> bool:
    """Whether SIGUSR1 waits for a stopped process to wake up."""
    pending = re.search(r"ShdPnd:\s*(\w+)", Path(f"/proc/{process}/status").read_text())[1]
    return bool(int(pending, 16) >> (signal.SIGUSR1 - 1) & 1)


def is_running(name: str) -> bool:
    """Whether a process of this name exists."""
    return run("pgrep", "-x", name, check=False).returncode == 0


def said(folder: Path, name: str) -> str:
    """The log of a run's latest attempt."""
    log = folder / "results" / "logs" / name / "s0" / "train.log"
    return log.read_text() if log.exists() else ""


def only(paths) -> Path:
    (path,) = paths
    return path


class SmallDisk:
    """A folder on a disk of its own that is all but full; `full` stays false where none can be mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.full, self.mounted = folder, False, False

    def __enter__(self) -> "SmallDisk":
        self.folder.mkdir(parents=True)
        self.mounted = self.full = run("mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(self.folder), check=False).returncode == 0
        if self.full:
            (self.folder / "ballast").write_bytes(bytes(5_000_000))
        return self

    def __exit__(self, *_: object) -> None:
        if self.mounted:
            run("umount", "--lazy", str(self.folder), check=False)


def free(disk: SmallDisk, survived: Survived) -> bool:
    """Make room as soon as the job has said that there is none; whether there is now."""
    if disk.full and "cannot be written" in (log := said(survived.folder, "full")):
        survived.seen["full"] = log
        survived.seen["left"] = " ".join(path.name for path in disk.folder.rglob(".*.tmp*"))
        (disk.folder / "ballast").unlink()
        run("mount", "-o", "remount,size=200m", str(disk.folder))
        disk.full = False
    return not disk.full


# -- what must hold --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_weights_are_those_of_an_undisturbed_run(survived, name):
    one, two = (folder / "results" / name / "s0" / "backbone.safetensors" for folder in (survived.folder, survived.undisturbed))
    assert one.read_bytes() == two.read_bytes()


def test_tables_are_those_of_an_undisturbed_study(survived):
    one, two = (folder / "results" / "tables" for folder in (survived.folder, survived.undisturbed))
    assert (one / "davis.csv").read_bytes() == (two / "davis.csv").read_bytes()
    values = [pd.read_csv(tables / "all.csv")[["run", "metric", "value"]] for tables in (one, two)]
    assert values[0].equals(values[1])


@pytest.mark.parametrize("name", ["killed", "cancelled", "spoilt", "preempted", "limited", "warned"])
def test_no_checkpoint_is_lost(survived, name):
    assert int(re.search(r"resuming after step (\d+)", said(survived.folder, name))[1]) >= survived.steps[name]


def test_a_job_that_is_warned_of_its_time_limit_saves(survived):
    assert "SIGUSR1: saving after this step" in survived.seen["warned"]
    assert "the state is saved" in survived.seen["warned"]


def test_a_full_disk_is_one_clear_error_and_room_is_enough(survived):
    if "full" not in survived.seen:
        pytest.skip("no small disk can be mounted here")
    assert "make room" in survived.seen["full"]
    assert "Traceback" not in survived.seen["full"]
    assert survived.seen["left"] == "", "what was half written is gone"


def test_a_second_job_is_turned_away_while_an_orphan_works(survived):
    assert "error: " in survived.seen["orphaned"]
    assert "Traceback" not in survived.seen["orphaned"]


def test_a_changed_hyperparameter_is_a_matter_of_its_descendants(survived):
    study = yaml.safe_load((survived.folder / "config.yaml").read_text())
    study["runs"]["limited"]["settings"]["steps"] = 25
    write_study(survived.folder, study)
    jobs = planned(survived.folder, *LOCALLY)
    assert {path.split("/")[1] for path in jobs if "/s0/" in path} == {"limited", "orphaned"}
