"""Run the jobs of an entry of a cluster's queue, one after the other, as forks of one process that has imported what they need.

    python -P -m densewalk.cli.joint.node FOLDER        # within a step of a Slurm job (step.py)

A job that fails stops no other. After a signal no further job is begun. An entry that Slurm queues again goes on: a job that has ended, or
whose outputs were made meanwhile, is not run again.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from densewalk.cli.forkserver.protocol import FOLDERS, THREADS
from densewalk.cli.forkserver.start import serve_jobs
from densewalk.cli.joint.plan import Progress, planned_at, read_plan, read_progress, write_progress
from densewalk.core.errors import UserError

WARNING = signal.SIGUSR1  # of Slurm, before the time limit, to all processes of the step
FAILED, LEFT = 1, 75  # exit status: a job has failed; a job has not been run to its end (sysexits' EX_TEMPFAIL)
DELAY = 1.0  # seconds: a signal to all processes may end the job before this process has it


class Node:
    """The jobs of an entry, on the node that runs them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.plan, self.planned_at = folder, read_plan(folder), planned_at(folder)
        self.stopped = False

    def run(self) -> int:
        """Run all jobs that have not ended; the exit status."""
        os.chdir(self.plan.folder)
        members = self.plan.members
        earlier = [read_progress(self.folder, number) for number in range(len(members))]
        statuses = [progress and progress.status for progress in earlier]
        todo = [number for number, status in enumerate(statuses) if status is None]
        ignore_warning()  # what the fork server inherits
        serve_jobs(Counter(members[number].rule for number in todo))
        for stop in (WARNING, signal.SIGTERM, signal.SIGINT):
            signal.signal(stop, self._stop)
        for number in todo:
            statuses[number] = self._run_member(number)
        return LEFT if None in statuses else FAILED if any(statuses) else 0

    def _stop(self, number: int, _frame: object) -> None:
        self.stopped = True
        say(f"{signal.Signals(number).name}: no further job is begun")

    def _run_member(self, number: int) -> int | None:
        """Run a job, unless there was a signal or another has made its outputs meanwhile; its exit status if it has come to its end."""
        status, begun = None, False
        if self._is_made(number):
            status = 0
        elif not self.stopped:
            begun = True
            write_progress(self.folder, number, Progress())
            status = self._execute(number)
            if status and not self.stopped:
                time.sleep(DELAY)
            if status and self.stopped:  # it was the signal's end as well
                status = 0 if self._is_made(number) else None
        if status == 0:
            for marker in self.plan.members[number].markers:
                Path(marker).unlink(missing_ok=True)
        write_progress(self.folder, number, Progress(begun=begun, status=status, over=True))
        return status

    def _is_made(self, number: int) -> bool:
        """True if the outputs were made after the entry was planned: by an earlier start of it, or by another Snakemake."""
        outputs = [Path(output) for output in self.plan.members[number].outputs]
        return all(output.is_file() and output.stat().st_mtime > self.planned_at for output in outputs)

    def _execute(self, number: int) -> int:
        """Run a job's command as Snakemake does; its exit status."""
        member = self.plan.members[number]
        self._wait_for(member.inputs)
        for output in member.outputs:
            Path(output).unlink(missing_ok=True)
        for folder in member.folders:
            Path(folder).mkdir(parents=True, exist_ok=True)
        say(f"{member.outputs[0]}: begun")
        environment = os.environ | environment_of_job(member.threads)
        command = ["bash", "-c", f"set -euo pipefail; {member.command}"]
        ended = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, preexec_fn=ignore_warning, check=False)
        status = ended.returncode if ended.returncode >= 0 else 128 - ended.returncode
        say(f"{member.outputs[0]}: ended with exit status {status}")
        return status

    def _wait_for(self, inputs: Sequence[str]) -> None:
        """Wait for files that another node has written; the job itself says which are missing."""
        until = time.monotonic() + self.plan.latency
        while not self.stopped and time.monotonic() < until and not all(Path(file).exists() for file in inputs):
            time.sleep(1)


def ignore_warning() -> None:
    """Let this process, and those that it starts, work on after Slurm's warning."""
    signal.signal(WARNING, signal.SIG_IGN)


def environment_of_job(threads: int) -> dict[str, str]:
    """What Snakemake gives a job on a node: its threads, and the node's folder for temporary files."""
    return dict.fromkeys(THREADS, str(threads)) | dict.fromkeys(FOLDERS, tempfile.gettempdir())


def say(text: str) -> None:
    """A line in the log that Slurm keeps."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), text, flush=True)


def main(arguments: Sequence[str]) -> int:
    """Run an entry's jobs."""
    (folder,) = arguments
    try:
        return Node(Path(folder)).run()
    except UserError as error:  # a full disk
        say(f"error: {error}")
        return LEFT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
