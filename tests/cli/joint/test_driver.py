"""In the driver: to Snakemake's scheduler each job stays one of its own, to Slurm's executor an entry is one job."""

import asyncio
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from densewalk.cli.joint.driver import Joint
from densewalk.cli.joint.entries import Entry
from densewalk.cli.joint.plan import Progress, write_progress
from tests.cli.joint.jobs import FakeJob

RULES = {"evaluate_davis"}


@dataclass
class Info:
    """What Slurm's executor knows of a submitted job."""

    job: Any
    external_jobid: str | None
    aux: dict[str, Any]


class Executor:
    """Slurm's, as far as it is replaced. states: of its jobs, by number, as Slurm tells them."""

    def __init__(self) -> None:
        self.told: list[tuple[str, bool]] = []
        self.states: dict[str, str] = {}
        self.next_seconds_between_status_checks = 180
        settings = SimpleNamespace(keep_successful_logs=False, init_seconds_before_status_checks=40)
        self.workflow = SimpleNamespace(executor_settings=settings)

    def format_job_exec(self, job):
        return f"snakemake {job.evaluation}"

    def report_job_success(self, info):
        self.told.append((info.job.evaluation, True))

    def report_job_error(self, info, msg=None, **more):
        self.print_job_error(info, msg=msg, **more)

    def print_job_error(self, info, msg=None, **_):
        self.told.append((info.job.evaluation, False))

    async def check_active_jobs(self, active):
        for info in active:
            state = self.states.get(info.external_jobid, "RUNNING")
            if state == "COMPLETED":
                self.report_job_success(info)
            elif state == "FAILED":
                self.report_job_error(info, msg="failed", aux_logs=["slurm.log"])
            else:
                yield info


class Scheduler:
    """Snakemake's, which selects the most urgent jobs for which there is room."""

    def __init__(self) -> None:
        self._executor = Executor()
        self._job_selector = self.job_selector_greedy = self.select
        self.submitted: list[Any] = []
        self._lock, self._open_jobs, self._toerror = threading.Lock(), threading.Semaphore(0), []

    def select(self, jobs, _remaining, resources, _sizes):
        jobs = sorted(jobs, key=lambda job: -job.priority)
        return jobs[: resources["_nodes"]]

    def run(self, jobs, executor=None):
        self.submitted += jobs


class Driven:
    """A scheduler whose jobs share entries."""

    def __init__(self, folder: Path, latency: float = 0.0) -> None:
        self.folder, self.logs = folder, []
        self.scheduler = Scheduler()
        self.executor = self.scheduler._executor
        self.joint = Joint(self.scheduler, RULES, self.entry, lambda _: "step", lambda *noted: self.logs.append(noted), latency)

    def entry(self, jobs):
        return Entry(jobs, Path(tempfile.mkdtemp(dir=self.folder)))

    def start(self, jobs, room=20):
        """Select and submit as Snakemake does."""
        chosen = self.scheduler._job_selector(jobs, jobs, {"_nodes": room}, {})
        used = sum(job.scheduler_resources.get("_nodes", 0) for job in chosen)
        self.scheduler.run(chosen)
        return used

    def info(self, entry, number="7"):
        log = self.folder / f"{number}.log"
        log.touch()
        return Info(entry, number, {"slurm_logfile": log})

    def check(self, active):
        """The jobs that are still at work."""

        async def all_of():
            return [info async for info in self.executor.check_active_jobs(active)]

        return asyncio.run(all_of())


@pytest.fixture
def driven(tmp_path):
    return Driven(tmp_path)


def shared(driven, names="abc"):
    """An entry that was submitted."""
    driven.start([FakeJob(name, priority=-ord(name)) for name in names])
    return driven.info(driven.scheduler.submitted[-1])


def retry(*jobs):
    """Try jobs again that have failed, as Snakemake does."""
    for job in jobs:
        job.attempt += 1


def test_an_entry_counts_once_among_the_jobs_in_the_queue(driven):
    jobs = [FakeJob(name, run=run) for run in ("dora", "neco", "ibot") for name in "abc"]
    assert driven.start(jobs, room=2) == 2
    assert [len(entry.jobs) for entry in driven.scheduler.submitted] == [3, 3]
    first, *others = driven.scheduler.submitted[0].jobs
    assert (first.scheduler_resources, [job.scheduler_resources for job in others]) == ({"_nodes": 1}, [{}, {}])


def test_the_place_is_free_when_the_last_job_has_ended(driven):
    info = shared(driven)
    entry, freed = info.job, []
    for number, job in enumerate(entry.jobs):
        write_progress(entry.folder, number, Progress(status=0, over=True))
        driven.joint.report_ended(info)
        freed.append(job.scheduler_resources.get("_nodes", 0))
    assert freed == [0, 0, 1]


def test_a_job_alone_is_submitted_as_ever_and_counts_again(driven):
    job, other = FakeJob("a", priority=2), FakeJob("b")
    driven.start([job, other], room=1)
    assert other.scheduler_resources == {}
    other.attempt = 2
    driven.start([other])
    assert driven.scheduler.submitted[-1] is other
    assert other.scheduler_resources == {"_nodes": 1}
    assert driven.executor.format_job_exec(other) == "snakemake b"
    assert driven.executor.format_job_exec(driven.scheduler.submitted[0]) == "step"


def test_each_job_is_reported_as_soon_as_it_has_ended(driven):
    info = shared(driven)
    assert driven.check([info]) == [info]
    write_progress(info.job.folder, 0, Progress(status=0, over=True))
    write_progress(info.job.folder, 1, Progress(status=2, over=True))
    write_progress(info.job.folder, 2, Progress())
    assert driven.check([info]) == [info]
    assert driven.executor.told == [("a", True), ("b", False)]
    assert driven.executor.next_seconds_between_status_checks == 40
    write_progress(info.job.folder, 2, Progress(status=0, over=True))
    assert driven.check([info]) == []
    assert driven.executor.told == [("a", True), ("b", False), ("c", True)]
    assert not info.job.folder.exists()
    assert info.aux["slurm_logfile"].exists(), "a job has failed"


def test_nothing_is_left_of_an_entry_that_has_ended_well(driven):
    info = shared(driven)
    for number in range(3):
        write_progress(info.job.folder, number, Progress(status=0, over=True))
    assert driven.check([info]) == []
    assert not info.job.folder.exists()
    assert not info.aux["slurm_logfile"].exists()


def test_an_entry_that_was_killed_fails_only_what_has_not_ended(driven):
    info = shared(driven)
    write_progress(info.job.folder, 0, Progress(status=0, over=True))
    write_progress(info.job.folder, 1, Progress())
    driven.executor.states["7"] = "FAILED"
    assert driven.check([info]) == []
    assert driven.executor.told == [("a", True), ("b", False), ("c", False)]
    begun, not_begun = info.job.jobs[1:]
    assert driven.logs == [(begun, info.aux["slurm_logfile"])], "Slurm's log may say that memory was short: of what was running"
    assert driven.scheduler._toerror == [begun, not_begun]
    retry(begun, not_begun)
    assert (begun.attempt, not_begun.attempt) == (2, 1), "what had not begun has lost no attempt"
    driven.start([begun, not_begun, other := FakeJob("d", priority=-999)])
    alone, entry = driven.scheduler.submitted[1:]
    assert alone is begun
    assert entry.jobs == [not_begun, other]


def test_jobs_of_an_entry_that_has_not_begun_are_tried_alone(driven):
    """It may have been canceled, or its node may be at fault: what is tried again must come to an end."""
    info = shared(driven)
    driven.executor.states["7"] = "FAILED"
    assert driven.check([info]) == []
    retry(*info.job.jobs)
    driven.start(info.job.jobs)
    assert driven.scheduler.submitted[1:] == info.job.jobs
    assert [job.attempt for job in info.job.jobs] == [2, 2, 2]
    assert driven.logs == []


def test_the_end_of_a_job_may_be_seen_late(tmp_path):
    """As on a disk of a network: the queue says that the entry has failed before the node's last file is there."""
    driven = Driven(tmp_path, latency=1.0)
    info = shared(driven, "ab")
    write_progress(info.job.folder, 1, Progress(status=2, over=True))
    driven.executor.states["7"] = "FAILED"
    assert driven.check([info]) == [info]
    write_progress(info.job.folder, 0, Progress(status=0, over=True))
    assert driven.check([info]) == []
    assert driven.executor.told == [("b", False), ("a", True)]
    late = shared(driven, "cd")
    late.external_jobid = "8"
    driven.executor.states["8"] = "FAILED"
    assert driven.check([late]) == [late]
    time.sleep(1.1)
    assert driven.check([late]) == []
    assert driven.executor.told[2:] == [("c", False), ("d", False)]


def test_of_a_good_end_snakemake_looks_for_the_outputs_itself(driven):
    info = shared(driven)
    driven.executor.states["7"] = "COMPLETED"
    assert driven.check([info]) == []
    assert driven.executor.told == [("a", True), ("b", True), ("c", True)]


def test_what_cannot_be_submitted_has_failed(driven):
    info = shared(driven)
    driven.executor.report_job_error(Info(info.job, None, None), "sbatch failed")
    assert [job.attempt for job in info.job.jobs] == [1, 1, 1], "the next attempt is alone: the entry may ask for too much"
    assert driven.executor.told == [("a", False), ("b", False), ("c", False)]
