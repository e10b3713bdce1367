"""Which jobs share an entry of Slurm's queue, and what the entry asks for. Free of torch.

Jobs of one backbone share an entry if they ask for the same but for time, memory and CPUs. They run one after the other, so the entry
asks for the sum of their minutes, and for the most memory and CPUs that one of them needs.
"""

from collections.abc import Collection, Hashable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from densewalk.cli.joint.plan import Member, Progress, read_progress
from densewalk.core.errors import UserError

MINUTES = "joint_minutes"  # key of a profile's default-resources: an entry asks for no more; 0: each job has an entry of its own
# what jobs of an entry may ask for differently
_LARGEST = ("mem", "mem_mb", "mem_mib", "_cores")
_DIFFERING = frozenset([*_LARGEST, "runtime", "disk", "disk_mb", "disk_mib", "tmpdir"])


class Job(Protocol):
    """What is asked of Snakemake's jobs."""

    rule: Any
    wildcards: Any
    wildcards_dict: Any
    input: Any
    output: Any
    log: Any
    shellcmd: str
    jobid: int
    attempt: int
    priority: int
    threads: int
    resources: Any
    _scheduler_resources: dict[str, Any] | None  # what it counts for among the jobs that are in the queue; None: to be found out

    def log_info(self) -> None:
        """Print what is run, and why."""

    def register(self, external_jobid: str | None = None) -> None:
        """Note that it was submitted."""


def share(jobs: Iterable[Job], rules: Collection[str]) -> list[list[Job]]:
    """Divide jobs into entries; in each, and of the entries' first ones, the most urgent comes first.

    Args:
        rules: whose jobs may share an entry.
    """
    entries: list[list[Job]] = []
    alike: dict[Hashable, list[list[Job]]] = {}
    for job in sorted(jobs, key=lambda job: -job.priority):
        if not _may_share(job, rules):
            entries.append([job])
            continue
        others = alike.setdefault(_kind(job), [])
        entry = next((entry for entry in others if _minutes([*entry, job]) <= limit_of(job)), None)
        if entry is None:
            entry = []
            entries.append(entry)
            others.append(entry)
        entry.append(job)
    return entries


def _may_share(job: Job, rules: Collection[str]) -> bool:
    """True for the first attempt of such a job, if minutes are set.

    What is tried again is alone: it may hang, or need too much memory, and must not end what has not begun.
    """
    return job.attempt == 1 and job.rule.name in rules and bool(limit_of(job)) and isinstance(job.resources.get("runtime"), int)


def limit_of(job: Job) -> int:
    """Minutes that an entry with this job may ask for.

    Raises:
        UserError: it is another thing than a number of minutes.
    """
    limit = job.resources.get(MINUTES, 0)
    if not isinstance(limit, int) or limit < 0:
        raise UserError(f"the resource {MINUTES} of {job.rule.name} is {limit}", allowed="minutes; 0: each job has an entry of its own")
    return limit


def _kind(job: Job) -> Hashable:
    backbone = (job.wildcards_dict["run"], job.wildcards_dict["seed"])
    return backbone, frozenset((name, value) for name, value in job.resources.items() if name not in _DIFFERING)


def _minutes(jobs: Iterable[Job]) -> int:
    return sum(job.resources.runtime for job in jobs)


def member_of(job: Job, prefix: str, markers: Sequence[str]) -> Member:
    """What the node is told of a job.

    Args:
        prefix: of its command. markers: Snakemake's files that say that its outputs are incomplete.
    """
    files = [str(path) for path in [*job.output, *job.log]]
    return Member(
        rule=job.rule.name,
        command=prefix + job.shellcmd,
        threads=job.threads,
        inputs=[str(path) for path in job.input],
        outputs=[str(path) for path in job.output],
        folders=sorted({str(Path(file).parent) for file in files}),
        markers=list(markers),
    )


class Entry:
    """An entry of the queue: to Slurm's executor it is a group of jobs."""

    name = "evaluations"

    def __init__(self, jobs: Sequence[Job], folder: Path) -> None:
        """folder: of its plan."""
        self.jobs, self.folder = list(jobs), folder
        self.left = list(jobs)  # whose end Snakemake has not been told
        self.counted = jobs[0]  # the job that counts for all among those in the queue
        self.failed = False

    @property
    def rule(self) -> Any:
        """Of an error message."""
        return self.jobs[0].rule

    @property
    def jobid(self) -> str:
        """Numbers of the jobs."""
        return ", ".join(str(job.jobid) for job in self.jobs)

    @property
    def wildcards(self) -> list[str]:
        """Run and seed: they are in the entry's comment, and in the path of its log."""
        named = self.jobs[0].wildcards_dict
        return [named["run"], f"s{named['seed']}"]

    @property
    def priority(self) -> int:
        """That of the most urgent job."""
        return max(job.priority for job in self.jobs)

    @property
    def threads(self) -> int:
        """The most that a job has."""
        return max(job.threads for job in self.jobs)

    @property
    def resources(self) -> Any:
        """What the entry asks for."""
        first = self.jobs[0].resources
        asked = dict(first.items())
        for name in _LARGEST:
            values = [job.resources.get(name) for job in self.jobs]
            if all(isinstance(value, int) for value in values):
                asked[name] = max(values)
        return type(first)(fromdict={**asked, "runtime": _minutes(self.jobs)})

    def is_group(self) -> bool:
        """True."""
        return True

    def log_info(self) -> None:
        """Print the jobs as Snakemake does."""
        for job in self.jobs:
            job.log_info()

    def register(self, external_jobid: str | None = None) -> None:
        """Note that the jobs were submitted."""
        for job in self.jobs:
            job.register(external_jobid=external_jobid)

    def settle(self, job: Job, *, success: bool) -> None:
        """Note that a job has ended. If it counted for all among those in the queue, another counts for those that are left."""
        self.left.remove(job)
        self.failed |= not success
        if self.counted is job and self.left:
            heir = self.left[0]
            heir._scheduler_resources, job._scheduler_resources = job._scheduler_resources, {}
            self.counted = heir

    def progress(self, job: Job) -> Progress | None:
        """How far a job has come; None if that is not known, or not yet."""
        with suppress(UserError):  # on a network's disk, a file that is being replaced
            return read_progress(self.folder, self.jobs.index(job))
        return None

    def is_known(self) -> bool:
        """True if the node does no more for any job that is left."""
        found = [self.progress(job) for job in self.left]
        return all(progress is not None and progress.over for progress in found)
