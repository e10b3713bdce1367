"""The study on a real Slurm: what a cluster does to jobs must change no number.

The fixture `survived` runs one study and lets everything happen to it. A training is held, by SIGSTOP, at a checkpoint, so that no fault
comes too late; Slurm wakes up what it asks to stop. Meanwhile the same study runs undisturbed.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pytest
import yaml

from densewalk.core.text.attempts import latest_attempt
from densewalk.study.config import load_study
from tests.fixtures import cluster
from tests.fixtures.cluster import PATIENCE, Cluster, ask, run, wait_for
from tests.fixtures.studies import REPOSITORY, TINY, TRAINING, planned, snakemake, write_study

pytestmark = [pytest.mark.slurm, pytest.mark.workflow, pytest.mark.slow]

# small machines, short waits; all else is the profile that users get. DINO trains on two nodes and is warned of its time limit, NeCo is not
OVERRIDES = [
    "--set-resources",
    *("train_dora:gpu=1", "train_timetuning:gpu=1", "evaluate_davis:gpu=1"),
    *("train_dino:gpu=0", "train_dino:nodes=2", "train_dino:gres=gpu:1", "train_dino:runtime=2*attempt"),
    "train_dino:slurm_extra='--signal=USR1@10'",
    *("train_neco:gpu=1", "train_neco:runtime=attempt", "train_neco:slurm_extra=''"),
    *("--set-threads", *(f"train_{method}=1" for method in ("dora", "dino", "neco", "timetuning"))),
    *("--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "10"),
]  # fmt: skip
LOCALLY = ["--set-resources", "train_dino:gpu=2"]
# small heads: every step of these trainings is written to the disk
SMALL = {**TRAINING, "out_dim": 16, "head_hidden": 16, "head_bottleneck": 8, "local_crops": 2, "warmup_epochs": 0}
NANO = {"init": "random", "arch": "vit_nano_patch16"}
RUNS = {
    # killed, cancelled, its newest checkpoint spoilt, preempted; and on a disk that is full
    **{name: {**NANO, "method": "dora", "data": ["walk"], "settings": {**SMALL, "frames": 2, "steps": 40}} for name in ("unlucky", "full")},
    "warned": {**NANO, "method": "dino", "data": ["walk"], "settings": {**SMALL, "steps": 24}},
    "limited": {**NANO, "method": "neco", "data": ["coco"], "settings": {**TRAINING, "steps": 24}},
    "orphaned": {
        "method": "timetuning",
        "init": "limited",
        "data": ["walk"],
        "settings": {"steps": 24, "batch_size": 2, "size": 64, "prototypes": 16, "head_widths": [32, 16]},
    },
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
    """Two folders of the same study, and what was seen on the way, by fault."""

    folder: Path
    undisturbed: Path
    node_disk: Path
    checkpoint: dict[str, int] = field(default_factory=dict)  # step of the newest intact one when the fault came
    resumed: dict[str, int | None] = field(default_factory=dict)  # step that the next attempt went on after
    said: dict[str, str] = field(default_factory=dict)  # logs of attempts that failed


@pytest.fixture(scope="module")
def survived(slurm, tmp_path_factory):
    """The study, finished in spite of everything."""
    study = {**TINY, "runs": RUNS, "execution": {**TINY["execution"], "checkpoint_minutes": 0.0, "metrics_every": 1}}
    study["evaluations"] = {"davis": {**TINY["evaluations"]["davis"], "runs": ["warned", "orphaned"]}}
    undisturbed = write_study(tmp_path_factory.mktemp("undisturbed"), study)
    snakemake(undisturbed, "results/data/walk.json")
    archive = shutil.make_archive(str(undisturbed / "data/coco/train2017"), "tar", undisturbed / "data/coco", "train2017")
    study["images"] = {"coco": {"source": str(Path(archive).relative_to(undisturbed))}}
    write_study(undisturbed, study)
    snakemake(undisturbed, "results/data/coco.json")
    folder = tmp_path_factory.mktemp("disturbed") / "study"
    shutil.copytree(undisturbed, folder, copy_function=shutil.copy2)
    study["execution"]["stage"] = "$NODE_DISK"
    write_study(folder, study)
    story = Story(slurm, Survived(folder, undisturbed, tmp_path_factory.mktemp("node_disk")))
    with SmallDisk(state_folder(folder, "full")) as story.disk:
        try:
            story.tell()
        finally:
            for driver in story.drivers:
                interrupt(driver)
        yield story.survived


class Story:
    """What happens to the study, in this order."""

    disk: "SmallDisk"

    def __init__(self, slurm: Cluster, survived: Survived) -> None:
        self.slurm, self.survived, self.folder = slurm, survived, survived.folder
        self.drivers: list[subprocess.Popen[str]] = []
        self.held: dict[str, tuple[int, str]] = {}  # process and job, by run
        self.preempted: set[str] = set()  # runs whose held process this was the end of

    def tell(self) -> None:
        """All faults, and the end."""
        self.start_driver()
        self.until(lambda: [name for name in ("unlucky", "limited", "warned") if not self.holds(name)] == [], "a checkpoint of each run")
        self.drivers.append(start(self.survived.undisturbed, self.survived.node_disk, "--cores", "1", *LOCALLY))
        self.strike("killed", lambda process, _: os.kill(process, signal.SIGKILL))
        self.strike("cancelled", lambda _, job: run("scancel", job))
        self.strike("spoilt", self.spoil_and_kill)
        self.until(lambda: not self.disk.full, "the disk to be full")
        self.until(lambda: "warned" in self.survived.said, "the signal before the time limit")
        self.until(lambda: state_of_job(self.held["limited"][1]) == "TIMEOUT", "the time limit")
        self.preempt()
        self.lose_driver()
        self.lose_controller()
        finish(self.drivers[-1], self.folder)
        finish(self.drivers[1], self.survived.undisturbed)
        for fault, name in (("preempted", "unlucky"), ("limited", "limited"), ("warned", "warned")):
            self.survived.resumed[fault] = resumed_at(self.folder, name)

    def start_driver(self) -> None:
        self.drivers.append(start(self.folder, self.survived.node_disk, "--profile", "slurm", *OVERRIDES))

    def until(self, happened: Callable[[], object], what: str) -> None:
        """Wait, and do meanwhile what may be due at any time."""

        def look() -> bool:
            self.free_disk()
            self.hear_warning()
            self.holds("orphaned", again="orphaned" in self.preempted)
            return bool(happened())

        wait_for(look, what, seconds=PATIENCE)

    def state(self, name: str) -> Path:
        return state_folder(self.folder, name)

    def holds(self, name: str, *, again: bool = False) -> bool:
        """Stop the training of a run once this attempt (one that resumes if `again`) has written two checkpoints; whether it is."""
        state, before = self.state(name), self.held.get(name)
        if before and not again:
            return True
        if (
            holder(state) in (None, before)
            or (first := resumed_at(self.folder, name) if again else 0) is None
            or newest_step(state) < first + 2
        ):
            return False
        self.held[name] = process, _ = holder(state)
        os.kill(process, signal.SIGSTOP)
        self.survived.checkpoint[name] = newest_step(state)
        return True

    def strike(self, fault: str, do: Callable[[int, str], object]) -> None:
        """Let the fault come over `unlucky`, and hold its next attempt."""
        step = newest_step(self.state("unlucky"))
        self.survived.checkpoint[fault] = step - (fault == "spoilt")
        do(*self.held["unlucky"])
        self.until(lambda: self.holds("unlucky", again=True), f"the attempt after the one that was {fault}")
        self.survived.resumed[fault] = resumed_at(self.folder, "unlucky")

    def spoil_and_kill(self, process: int, _job: str) -> None:
        """The newest checkpoint is cut short: the one before it is what must not be lost."""
        state = self.state("unlucky")
        newest = state / f"step-{newest_step(state):08d}.pt"
        newest.write_bytes(newest.read_bytes()[:-1000])
        os.kill(process, signal.SIGKILL)

    def hear_warning(self) -> None:
        """Note how the warned job ends, and all that it has said by then, before its next attempt begins a new log."""
        if "warned" in self.held and "warned" not in self.survived.said:
            state = state_of_job(self.held["warned"][1])
            if state not in ("RUNNING", "SIGNALING", ""):  # the second while the signal is on its way
                self.survived.said |= {"warned": said(self.folder, "warned"), "end of warned": state}

    def free_disk(self) -> None:
        """Make room as soon as the job has said that there is none."""
        if self.disk.full and "cannot be written" in (log := said(self.folder, "full")):
            self.survived.said["full"] = log
            self.survived.said["left"] = " ".join(path.name for path in self.disk.folder.rglob(".*.tmp*"))
            self.disk.make_room()

    def preempt(self) -> None:
        """A job that goes before all others takes both nodes."""
        job, orphan = self.held["unlucky"][1], self.held.get("orphaned")
        self.survived.checkpoint["preempted"] = newest_step(self.state("unlucky"))
        run("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
        self.until(lambda: state_of_job(job) == "PENDING", "the job to be preempted and queued again")
        if orphan:
            self.preempted.add("orphaned")
            self.until(lambda: self.hurry() or self.held["orphaned"] != orphan, "the next attempt of orphaned")

    def hurry(self) -> None:
        """Have preempted jobs started at once: Slurm would wait two minutes."""
        for waiting in ask("squeue", "-h", "-t", "PENDING", "-o", "%i").split():
            run("scontrol", "update", f"jobid={waiting}", "StartTime=now", check=False)
        time.sleep(1)

    def lose_controller(self) -> None:
        """slurmctld is away for longer than Slurm's own commands have patience; jobs run on."""
        self.slurm.end_controller()
        self.until(lambda: run("pgrep", "-x", "sacct", check=False).returncode == 0, "the driver to miss the controller")
        time.sleep(15)
        self.slurm.start_controller()

    def lose_driver(self) -> None:
        """The driver is killed while `orphaned` trains; the next one's job for it must be turned away."""
        self.until(lambda: self.hurry() or "orphaned" in self.held, "a checkpoint of orphaned")
        self.until(lambda: newest_step(self.state("unlucky")) > self.survived.checkpoint["preempted"], "the preempted job to go on")
        os.killpg(self.drivers[0].pid, signal.SIGKILL)
        self.drivers[0].wait()
        snakemake(self.folder, "--unlock")
        self.start_driver()
        self.until(lambda: "is being worked in by" in said(self.folder, "orphaned"), "a second job of orphaned")
        self.survived.said["orphaned"] = said(self.folder, "orphaned")
        os.kill(self.held["orphaned"][0], signal.SIGCONT)


# -- drivers ---------------------------------------------------------------------------------------------------------


def start(folder: Path, node_disk: Path, *arguments: str) -> "subprocess.Popen[str]":
    """`snakemake all` in a process group of its own; what it prints goes to driver.log."""
    command = [sys.executable, "-m", "snakemake", "--directory", str(folder), *arguments, "--", *TARGETS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NODE_DISK": str(node_disk)}
    with open(folder / "driver.log", "a") as log:
        return subprocess.Popen(command, cwd=REPOSITORY, stdout=log, stderr=log, text=True, env=environment, start_new_session=True)


def finish(driver: "subprocess.Popen[str]", folder: Path) -> None:
    """Wait for the driver's good end."""
    try:
        status = str(driver.wait(PATIENCE))
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
    return load_study(folder / "config.yaml").run_spec(name, 0).state(folder / "results")


def newest_step(state: Path) -> int:
    """0 before the first checkpoint."""
    return max((int(path.stem.removeprefix("step-")) for path in state.glob("step-*.json")), default=0)


def holder(state: Path) -> tuple[int, str] | None:
    """Process and job that work in a state folder; None before there are any."""
    file = state / ".holder"
    match = re.fullmatch(r"process (\d+) on \S+, Slurm job (\d+)", file.read_text()) if file.exists() else None
    return (int(match[1]), match[2]) if match else None


def state_of_job(job: str) -> str:
    """RUNNING, PENDING, TIMEOUT, ..."""
    return ask("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")


def said(folder: Path, name: str) -> str:
    """The log of a run's latest attempt."""
    log = folder / "results" / "logs" / name / "s0" / "train.log"
    return log.read_text() if log.exists() else ""


def resumed_at(folder: Path, name: str) -> int | None:
    """The step that the latest attempt went on after; None before it has said so."""
    match = re.search(r"resuming after step (\d+)", latest_attempt(said(folder, name)))
    return int(match[1]) if match else None


class SmallDisk:
    """A folder on a disk of its own that is all but full of another folder's file; `full` is false where none can be mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.disk = folder, folder.with_name("disk")

    def __enter__(self) -> "SmallDisk":
        self.folder.mkdir(parents=True)
        self.disk.mkdir()
        self.full = run("mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(self.disk), check=False).returncode == 0
        if self.full:
            (self.disk / "ballast").write_bytes(bytes(5_000_000))
            (self.disk / "state").mkdir()
            run("mount", "--bind", str(self.disk / "state"), str(self.folder))
        return self

    def make_room(self) -> None:
        (self.disk / "ballast").unlink()
        run("mount", "-o", "remount,size=200m", str(self.disk))
        self.full = False

    def __exit__(self, *_: object) -> None:
        for mounted in (self.folder, self.disk):
            run("umount", "--lazy", str(mounted), check=False)


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


def test_jobs_read_copies_on_the_disk_of_their_node(survived):
    copies = {path.name for path in survived.node_disk.glob("densewalk-*/*/*")}
    assert copies == {"train2017.tar", "walk.mp4"}
    for name in ("unlucky", "limited"):
        assert "is read where it lies" not in said(survived.folder, name)


@pytest.mark.parametrize("fault", ["killed", "cancelled", "spoilt", "preempted", "limited", "warned"])
def test_no_checkpoint_is_lost(survived, fault):
    assert survived.resumed[fault] >= survived.checkpoint[fault]


def test_a_job_that_is_warned_of_its_time_limit_saves(survived):
    assert "SIGUSR1: saving after this step" in survived.said["warned"]
    assert "state saved in" in survived.said["warned"]
    assert survived.said["end of warned"] in ("COMPLETING", "FAILED"), "before the time limit"


def test_a_full_disk_is_one_clear_error_and_room_is_enough(survived):
    if "full" not in survived.said:
        pytest.skip("no small disk can be mounted here")
    assert "make room" in survived.said["full"]
    assert "Traceback" not in survived.said["full"]
    assert survived.said["left"] == "", "what was half written is gone"


def test_a_second_job_is_turned_away_while_an_orphan_works(survived):
    assert "error: " in survived.said["orphaned"]
    assert "Traceback" not in survived.said["orphaned"]


def test_a_changed_hyperparameter_is_a_matter_of_its_descendants(survived):
    study = yaml.safe_load((survived.folder / "config.yaml").read_text())
    study["runs"]["limited"]["settings"]["steps"] = 25
    write_study(survived.folder, study)
    jobs = planned(survived.folder, *LOCALLY)
    assert {path.split("/")[1] for path in jobs if "/s0/" in path} == {"limited", "orphaned"}
