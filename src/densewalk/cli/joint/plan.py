"""Jobs that share an entry of a cluster's queue: what the driver writes for the node, and the node for the driver. Free of torch.

FOLDER/plan.json        the jobs, in their order
FOLDER/{number}.json    how far a job has come
"""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from densewalk.core.typed_files import read_model, write_model

AGAIN = "start Snakemake again"


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Member(_File):
    """A job of an entry.

    command: for bash. inputs: files that it waits for. outputs: files that it makes; what is there before is removed. folders: where
    outputs and logs go. markers: Snakemake's files that say that an output is incomplete.
    """

    rule: str
    command: str
    threads: int
    inputs: list[str]
    outputs: list[str]
    folders: list[str]
    markers: list[str]


class JointPlan(_File):
    """The jobs of an entry. folder: the study's. latency: seconds in which files of other nodes become visible."""

    folder: str
    latency: float
    members: list[Member]


class Progress(_File):
    """How far a job has come. status: its exit status; None if it has not come to its end. over: the node does no more for it."""

    begun: bool = True
    status: int | None = None
    over: bool = False


def write_plan(folder: Path, plan: JointPlan) -> None:
    """Write the jobs of an entry."""
    write_model(_plan_file(folder), plan)


def read_plan(folder: Path) -> JointPlan:
    """Read the jobs of an entry.

    Raises:
        UserError: the file is missing or damaged.
    """
    return read_model(_plan_file(folder), JointPlan, "list of jobs", AGAIN)


def planned_at(folder: Path) -> float:
    """The time when the jobs were written, by the clock of the disk."""
    return _plan_file(folder).stat().st_mtime


def write_progress(folder: Path, number: int, progress: Progress) -> None:
    """Write how far a job has come."""
    write_model(folder / f"{number}.json", progress)


def read_progress(folder: Path, number: int) -> Progress | None:
    """Read how far a job has come; None if the node has not come to it."""
    file = folder / f"{number}.json"
    return read_model(file, Progress, "progress of a job", AGAIN) if file.is_file() else None


def _plan_file(folder: Path) -> Path:
    return folder / "plan.json"
