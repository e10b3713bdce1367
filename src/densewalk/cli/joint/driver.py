"""Let jobs share entries of Slurm's queue, while to Snakemake each stays a job of its own. Free of torch.

    Joint(scheduler, rules, ...)        # once, when a run of the workflow starts (workflow/rules/joint.smk)

Scheduler: it selects entries instead of jobs, and an entry counts once among the jobs in the queue (`selecting`, `run`).
Slurm's executor: it submits an entry as it would a group, and asks Slurm for the entry's state. How each job has ended is read from files
of the node (plan.py). So Snakemake is told of each job as soon as it ends, and a failure is that of one job (`check_active_jobs`, `tell`).
An entry that ends before all of its jobs (killed, time limit, lost node): `give_up` says which of them fail.
"""

import shutil
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from densewalk.cli.joint.entries import Entry, Job, share

Select = Callable[..., Sequence[Job] | None]


class Joint:
    """The entries of a run of the workflow.

    Args:
        scheduler: Snakemake's, whose executor is Slurm's. rules: whose jobs may share an entry. make: writes the plan of an entry.
        command: of an entry. note_log: told the log that Slurm keeps of a job, where that may say what has ended the job.
        latency: seconds in which files of other nodes become visible.
    """

    def __init__(
        self,
        scheduler: Any,
        rules: Collection[str],
        make: Callable[[Sequence[Job]], Entry],
        command: Callable[[Entry], str],
        note_log: Callable[[Job, Path], None],
        latency: float,
    ) -> None:
        self.scheduler, self.executor = scheduler, scheduler._executor
        executor = self.executor
        self.rules, self.make, self.note_log, self.latency = rules, make, note_log, latency
        self.selected: dict[Job, list[Job]] = {}  # the first job of an entry that is to be submitted -> all of its jobs
        self.over: dict[Entry, tuple[float, Any, dict[str, Any]]] = {}  # entries that Slurm calls failed -> since when, info, why
        self.submit, self.succeed, self.fail = scheduler.run, executor.report_job_success, executor.report_job_error
        self.check, command_of_job = executor.check_active_jobs, executor.format_job_exec
        scheduler._job_selector = self.selecting(scheduler._job_selector)
        scheduler.job_selector_greedy = self.selecting(scheduler.job_selector_greedy)
        scheduler.run = self.run
        executor.format_job_exec = lambda job: command(job) if isinstance(job, Entry) else command_of_job(job)
        executor.report_job_success, executor.report_job_error = self.report_job_success, self.report_job_error
        executor.check_active_jobs = self.check_active_jobs

    # -- the scheduler's ---------------------------------------------------------------------------------------------------

    def selecting(self, select: Select) -> Select:
        """A selection of jobs that selects entries: the first job of each stands for all, and counts for all."""

        def selected(jobs: Iterable[Job], *others: Any) -> Sequence[Job] | None:
            entries = {entry[0]: entry for entry in share(jobs, self.rules)}
            for first, *rest in entries.values():
                if first._scheduler_resources == {}:  # it did not count in another entry
                    first._scheduler_resources = None
                for job in rest:
                    job._scheduler_resources = {}
            chosen = select(list(entries), *others)
            if chosen is None:
                return None
            self.selected |= {first: entries[first] for first in chosen if len(entries[first]) > 1}
            return [job for first in chosen for job in entries[first]]

        return selected

    def run(self, jobs: Iterable[Job], executor: Any = None) -> None:
        """Submit entries, and the other jobs as before."""
        jobs = list(jobs)
        entries = [self.selected.pop(job) for job in jobs if job in self.selected]
        shared = {job for entry in entries for job in entry}
        self.submit([*(job for job in jobs if job not in shared), *map(self.make, entries)], executor=executor)

    # -- the executor's ----------------------------------------------------------------------------------------------------

    async def check_active_jobs(self, active: Iterable[Any]) -> AsyncIterator[Any]:
        """Report the jobs that have ended, ask Slurm for the others, and yield what is still at work."""
        asked = []
        told = False
        for info in active:
            told |= isinstance(info.job, Entry) and self.report_ended(info)
            if not isinstance(info.job, Entry) or (info.job.left and info.job not in self.over):
                asked.append(info)
        async for info in self.check(asked):
            yield info
        for entry, (since, info, why) in list(self.over.items()):
            if entry.is_known() or time.monotonic() - since > self.latency:
                del self.over[entry]
                self.give_up(info, why)
            else:
                yield info
        if told:
            self.executor.next_seconds_between_status_checks = self.executor.workflow.executor_settings.init_seconds_before_status_checks

    def report_job_success(self, info: Any) -> None:
        """Slurm says that it has ended well. Snakemake itself looks for the outputs of a job of which no more is known."""
        if not isinstance(info.job, Entry):
            self.succeed(info)
            return
        self.report_ended(info)
        for job in list(info.job.left):
            self.tell(info, job, True)

    def report_job_error(self, info: Any, msg: str | None = None, **more: Any) -> None:
        """Slurm says that it has failed. How the last jobs of an entry have ended may take a while to be seen here."""
        if not isinstance(info.job, Entry):
            self.fail(info, msg=msg, **more)
            return
        self.report_ended(info)
        why = {"msg": msg, **more}
        if info.external_jobid is None:  # it was not submitted
            self.give_up(info, why)
        elif info.job.left:
            self.over[info.job] = (time.monotonic(), info, why)

    def report_ended(self, info: Any) -> bool:
        """Report each job of an entry that has come to its end; whether there was one."""
        told = False
        for job in list(info.job.left):
            progress = info.job.progress(job)
            if progress is not None and progress.status is not None:
                why = f"It ended with exit status {progress.status} in Slurm job {info.external_jobid}. "
                self.tell(info, job, progress.status == 0, msg=why)
                told = True
        return told

    def give_up(self, info: Any, why: dict[str, Any]) -> None:
        """Report what an entry has left as failed.

        What had not begun keeps its attempts and may share an entry again, if another job was at work: that one has ended, or loses an
        attempt and is alone from now on. If none had begun, the entry itself may be at fault, and each job is tried alone.
        """
        entry, failed = info.job, list(info.job.left)
        begun = {job for job in entry.jobs if (progress := entry.progress(job)) is not None and progress.begun}
        for job in failed:
            said = why
            if job in begun:
                self.note_log(job, info.aux["slurm_logfile"])
            elif begun:
                job.attempt -= 1  # Snakemake adds 1
                said = {**why, "msg": f"It had not begun when Slurm job {info.external_jobid} ended. "}
            entry.settle(job, success=False)
            self.executor.print_job_error(replace(info, job=job), **said)
        with self.scheduler._lock:  # at once: the next selection must see all that may share an entry
            self.scheduler._toerror += failed
        self.scheduler._open_jobs.release()
        self.clear(info)

    def tell(self, info: Any, job: Job, success: bool, **why: Any) -> None:
        """Report the end of one job of an entry."""
        info.job.settle(job, success=success)
        if success:
            self.succeed(replace(info, job=job))
        else:
            self.fail(replace(info, job=job), **why)
        if not info.job.left:
            self.clear(info)

    def clear(self, info: Any) -> None:
        """Remove the files of an entry, and Slurm's log of one that has ended well, as Slurm's executor does."""
        shutil.rmtree(info.job.folder, ignore_errors=True)
        if not info.job.failed and not self.executor.workflow.executor_settings.keep_successful_logs:
            with suppress(OSError):  # it is not there yet, or not any more
                info.aux["slurm_logfile"].unlink()
