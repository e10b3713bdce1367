"""What a study should have: written by the study as a file, read by the page, the tables and `status`. Free of torch."""

from pathlib import Path

from densewalk.core.hashing import config_hash
from densewalk.core.metric import Metric
from densewalk.core.settings import Settings
from densewalk.core.typed_files import read_model


class PlannedRun(Settings):
    """A row of the tables. captions: of the pictures of its training, by file name without its end."""

    method: str
    init: str
    arch: str
    data: list[str]
    seeds: list[int]
    captions: dict[str, str] = {}


class PlannedEvaluation(Settings):
    """A column of the tables. pictures: caption of its pictures, with {run} and {name}."""

    table: str
    title: str
    protocol: str
    metrics: dict[str, Metric]
    pictures: str
    runs: list[str]


class Plan(Settings):
    """The study's runs and evaluations in its order. hashes: of each result, by `run/s0/evaluation`."""

    study: str
    runs: dict[str, PlannedRun]
    evaluations: dict[str, PlannedEvaluation]
    hashes: dict[str, str]
    sources: list[str]

    @property
    def hash(self) -> str:
        """Twelve digits of what is planned."""
        return config_hash(self.model_dump(mode="json"))

    def wanted(self, run: str) -> list[str]:
        """The evaluations of a run."""
        return [name for name, evaluation in self.evaluations.items() if run in evaluation.runs]

    def trainings(self) -> list[tuple[str, int]]:
        """Run and seed of everything that trains."""
        return [(name, seed) for name, run in self.runs.items() if run.method != "none" for seed in run.seeds]

    def results(self, folder: Path) -> list[Path]:
        """The result records that there should be below a folder of results."""
        return [
            folder / name / f"s{seed}" / f"{evaluation}.json"
            for name, run in self.runs.items()
            for seed in run.seeds
            for evaluation in self.wanted(name)
        ]


def read_plan(path: Path) -> Plan:
    """The plan in a file.

    Raises:
        UserError: it is missing or broken.
    """
    return read_model(path, Plan, "plan of a study", "start snakemake again, which writes it")
