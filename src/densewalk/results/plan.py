"""What a study should have: written by the study as a file, read by the page, the tables and `status`. Free of torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from densewalk.core.hashing import config_hash
from densewalk.core.metric import Ceiling, Metric
from densewalk.core.settings import Settings
from densewalk.core.typed_files import read_model


class PlannedRun(Settings):
    """A row of the tables. captions: of the images of its training, by file name without its end. ceilings: of its learning curves."""

    method: str
    init: str
    arch: str
    data: list[str]
    seeds: list[int] = Field(min_length=1)
    captions: dict[str, str] = {}
    ceilings: dict[str, Ceiling] = {}


class PlannedEvaluation(Settings):
    """A column of the tables. pictures: caption of its images, with {run} and {name}."""

    table: str
    title: str
    protocol: str
    metrics: dict[str, Metric]
    pictures: str
    runs: list[str]

    def caption(self, *, run: str, name: str) -> str:
        """The caption of the image called `name` of a run."""
        return self.pictures.replace("{run}", run).replace("{name}", name)


class Plan(Settings):
    """The study's runs and evaluations in its order. results: their folder. hashes: of each result, by
    `run/s0/evaluation`. baseline: the run that the others are compared with, if the study names one.
    """

    study: str
    results: str = "results"
    runs: dict[str, PlannedRun]
    evaluations: dict[str, PlannedEvaluation]
    baseline: str | None = None
    hashes: dict[str, str]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Evaluations are of planned runs, and each of their results has a hash."""
        for name, evaluation in self.evaluations.items():
            if unknown := sorted(set(evaluation.runs) - self.runs.keys()):
                raise ValueError(f"evaluations.{name}.runs: no such run: {unknown[0]}")
        if self.baseline is not None and self.baseline not in self.runs:
            raise ValueError(f"baseline: no such run: {self.baseline}")
        if lacking := [key for job in self.jobs() if (key := result_key(*job)) not in self.hashes]:
            raise ValueError(f"hashes: none for {lacking[0]}")
        return self

    @property
    def hash(self) -> str:
        """Twelve digits of what is planned."""
        return config_hash(self.model_dump(mode="json"))

    def evaluations_of(self, run: str) -> list[str]:
        """The names of a run's evaluations."""
        return [name for name, evaluation in self.evaluations.items() if run in evaluation.runs]

    def trainings(self) -> list[tuple[str, int]]:
        """Run and seed of everything that trains."""
        return [(name, seed) for name, run in self.runs.items() if run.method != "none" for seed in run.seeds]

    def metrics_of_tables(self) -> dict[str, dict[str, Metric]]:
        """Table -> the metrics of all its evaluations."""
        found: dict[str, dict[str, Metric]] = {}
        for evaluation in self.evaluations.values():
            found.setdefault(evaluation.table, {}).update(evaluation.metrics)
        return found

    def records(self, results: Path, table: str) -> list[Path]:
        """The records that a table is made of: all of them for `all`, `cost` and `gain`."""
        wanted = {name for name, evaluation in self.evaluations.items() if table in ("all", "cost", "gain", evaluation.table)}
        return [results / f"{result_key(*job)}.json" for job in self.jobs() if job[2] in wanted]

    def jobs(self) -> Iterator[tuple[str, int, str]]:
        """Run, seed and evaluation of every result."""
        return ((name, seed, e) for name, run in self.runs.items() for seed in run.seeds for e in self.evaluations_of(name))


def result_key(run: str, seed: int, evaluation: str) -> str:
    """The name of a result in a plan's hashes, and of its record below the folder of results."""
    return f"{run}/s{seed}/{evaluation}"


def read_plan(path: Path) -> Plan:
    """Read a plan; a UserError names file and key of what is missing or broken."""
    return read_model(path, Plan, "plan of a study", "start snakemake again, which writes it")
