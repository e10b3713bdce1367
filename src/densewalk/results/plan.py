"""What a study should have: written by the study as a file, read by the page, the tables and `status`. Free of torch."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from densewalk.core.hashing import config_hash
from densewalk.core.metric import Ceiling, Metric
from densewalk.core.settings import Settings, is_null
from densewalk.core.typed_files import read_model
from densewalk.models.catalog import Labels
from densewalk.results.records import ResultRecord
from densewalk.visualization.settings import PictureSettings


def is_empty(value: list[str]) -> bool:
    """For `Field(exclude_if=is_empty)`: plans without it keep their hash."""
    return not value


class PlannedRun(Settings):
    """A row of the tables.

    captions: of the images of its training, by file name without its end. ceilings: of its learning curves. teachers: runs and
    checkpoints that it learns from.
    """

    method: str
    init: str
    arch: str
    data: list[str]
    teachers: list[str] = Field(default=[], exclude_if=is_empty)
    seeds: list[int] = Field(min_length=1)
    captions: dict[str, str] = {}
    ceilings: dict[str, Ceiling] = {}


class PlannedEvaluation(Settings):
    """A column of the tables. pictures: caption of its images, with {run} and {name}. seeds: that are evaluated, None for all."""

    table: str
    title: str
    protocol: str
    metrics: dict[str, Metric]
    pictures: str
    runs: list[str]
    seeds: list[int] | None = Field(default=None, exclude_if=is_null)

    def caption(self, *, run: str, name: str) -> str:
        """The caption of the image called `name` of a run."""
        return self.pictures.replace("{run}", run).replace("{name}", name)


class PlannedBackbone(Settings):
    """What a backbone is made from.

    hash: of its specification. init: file of the initial backbone, None for random weights. parent: run and seed whose backbone that
    is, if it is one's. receipts: names of the data. sources: their videos and folders; of a curation, those that it chooses from.
    lists: text files with the names of the sequences in use, by their folder. curated: backbones that curations chose its data with.
    teachers: backbones that it learns from. files: that its settings name.
    """

    hash: str
    init: str | None
    parent: tuple[str, int] | None = None
    receipts: list[str] = []
    sources: list[str] = []
    lists: dict[str, str] = {}
    curated: list[str] = Field(default=[], exclude_if=is_empty)
    teachers: list[str] = Field(default=[], exclude_if=is_empty)
    files: list[str] = Field(default=[], exclude_if=is_empty)


class Generated(Settings):
    """Data that the study generates: folder, and hash of the settings."""

    root: str
    hash: str


class DatasetName(Settings):
    """How an evaluation's data are called in the tables, and the published protocol that this makes of its settings."""

    dataset: str
    published_protocol: str | None


class Plan(Settings):
    """The study's runs and evaluations in its order. results: their folder. hashes: of each result, by
    `run/s0/evaluation`. baseline: the run that the others are compared with, if the study names one. backbones: by `run/s0`. data: paths
    of an evaluation's data, by its name. pictures: with the names of all sources; None if nothing is drawn. labels, datasets: names in the
    tables, of runs and of evaluations' data, which are in no hash.
    """

    study: str
    results: str = "results"
    runs: dict[str, PlannedRun]
    evaluations: dict[str, PlannedEvaluation]
    baseline: str | None = None
    hashes: dict[str, str]
    backbones: dict[str, PlannedBackbone] = {}
    data: dict[str, list[str]] = {}
    generated: Generated | None = None
    pictures: PictureSettings | None = None
    labels: dict[str, Labels | None] = {}
    datasets: dict[str, DatasetName] = {}

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

    def evaluations_of(self, run: str, seed: int) -> list[str]:
        """The names of the evaluations of a run's backbone."""
        return [name for name, evaluation in self.evaluations.items() if run in evaluation.runs and seed in self.seeds_of(run, name)]

    def seeds_of(self, run: str, evaluation: str) -> list[int]:
        """The seeds of a run that are evaluated."""
        chosen = self.evaluations[evaluation].seeds
        return [seed for seed in self.runs[run].seeds if chosen is None or seed in chosen]

    def trainings(self) -> list[tuple[str, int]]:
        """Run and seed of everything that trains."""
        return [(name, seed) for name, run in self.runs.items() if run.data for seed in run.seeds]

    def named(self, record: ResultRecord) -> ResultRecord:
        """A record with the labels that the study gives it now."""
        names: dict[str, Any] = {}
        if record.run in self.labels:
            names["labels"] = self.labels[record.run]
        if record.evaluation in self.datasets:
            names |= self.datasets[record.evaluation].model_dump()
        return record.model_copy(update=names)

    def hash_of_table(self, name: str) -> str:
        """Twelve digits of what a table is made of beside the records themselves; of `report`, the page, the whole plan's."""
        if name == "report":
            return self.hash
        names = {key: self.model_dump(mode="json", include={key})[key] for key in ("labels", "datasets")}
        return config_hash([[str(path) for path in self.records(Path(), name)], names, self.baseline if name == "gain" else None])

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
        return ((name, seed, e) for name, run in self.runs.items() for seed in run.seeds for e in self.evaluations_of(name, seed))


def run_key(run: str, seed: int) -> str:
    """The name of a run's backbone in a plan, and its folder below the folder of results."""
    return f"{run}/s{seed}"


def state_folder(results: Path, spec_hash: str, run: str, seed: int, evaluation: str | None = None) -> Path:
    """Folder of a job's resumable state: a changed job starts from the beginning, an interrupted one resumes."""
    names = [run, f"s{seed}", *([] if evaluation is None else [evaluation]), spec_hash]
    return results / "state" / "-".join(names)


def result_key(run: str, seed: int, evaluation: str) -> str:
    """The name of a result in a plan's hashes, and of its record below the folder of results."""
    return f"{run}/s{seed}/{evaluation}"


def read_plan(path: Path) -> Plan:
    """Read a plan; a UserError names file and key of what is missing or broken."""
    return read_model(path, Plan, "plan of a study", "start snakemake again, which writes it")
