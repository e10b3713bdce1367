"""What jobs leave behind: the record of a run and the record of a result. Free of torch.

results/{run}/s{seed}/run.json             RunRecord, beside the backbone
results/{run}/s{seed}/{evaluation}.json    ResultRecord
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from densewalk.core.settings import Settings
from densewalk.core.typed_files import read_model
from densewalk.models.catalog import Labels
from densewalk.models.origin import Origin

AGAIN = "delete it, so that it is made again (snakemake does so)"
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
NotNegative = Annotated[float, Field(ge=0)]


class _Record(Settings):
    model_config = ConfigDict(allow_inf_nan=False, use_attribute_docstrings=False)


class CostRecord(_Record):
    """None for what the device does not tell, which is never the same as zero.

    seconds: wall time. gpu_hours: of all GPUs. peak_rss_mib: of the largest process. peak_gpu_mib: what torch had allocated at
    once on the fullest GPU. energy_wh: of all GPUs, whoever used them.
    """

    seconds: NotNegative
    gpu_hours: NotNegative | None
    peak_rss_mib: NotNegative
    peak_gpu_mib: NotNegative | None
    energy_wh: NotNegative | None


class TrainingRecord(CostRecord):
    """What a training was. processes: of the last attempt. execution: how it was run, which changes no hash."""

    steps: Annotated[int, Field(ge=1)]
    samples_seen: Annotated[int, Field(ge=1)]
    processes: Annotated[int, Field(ge=1)]
    device: str
    execution: dict[str, Any]


class Provenance(_Record):
    """Which code made it, with which packages, on which machine. dirty: tracked files differed from the commit."""

    commit: str
    dirty: bool
    versions: dict[str, str]
    host: str


class MadeRun(_Record):
    """The specification that a run was made by (study/specs.py), as it was then: what else it says is kept unread."""

    model_config = ConfigDict(extra="allow")

    run: str
    seed: int
    method: str
    arch: str
    init: Origin


class RunRecord(Provenance):
    """How a backbone was made. training: None for a baseline. loaded: what was taken from the initial backbone's file."""

    config_hash: Hash
    arch: str
    compat: str
    spec: MadeRun
    training: TrainingRecord | None
    loaded: str | None


class ResultRecord(Provenance, CostRecord):
    """The numbers of one evaluation of one run and seed, and all that they depend on.

    metrics: None for a number that is not defined. n, unit: what was scored, and how many. labels: names in the published tables.
    published_metrics: metric -> its name there, None where all names are the same. spec: the specification (study/specs.py).
    """

    run: str
    seed: int
    method: str
    init: str
    init_kind: Literal["random", "checkpoint", "run"]
    init_seed: int | None
    arch: str
    compat: str
    labels: Labels | None
    task: str
    evaluation: str
    dataset: str
    protocol: str
    published_protocol: str | None
    published_metrics: dict[str, str] | None
    version: int
    metrics: Annotated[dict[str, float | None], Field(min_length=1)]
    n: Annotated[int, Field(ge=0)]
    unit: str
    details: dict[str, Any]
    config_hash: Hash
    run_hash: Hash
    device: str
    training: TrainingRecord | None
    spec: dict[str, Any]

    @model_validator(mode="after")
    def _seed_of_the_run(self) -> Self:
        """A run that is built on another says on which seed of it."""
        if (self.init_kind == "run") != (self.init_seed is not None):
            raise ValueError(f"init_seed: {self.init_seed} with init_kind {self.init_kind} (given exactly for a run)")
        return self


def read_run(path: Path) -> RunRecord:
    """The record of a run.

    Raises:
        UserError: it is missing or broken; the message names file and key.
    """
    return read_model(path, RunRecord, "record of a run", AGAIN)


def read_result(path: Path) -> ResultRecord:
    """The record of a result.

    Raises:
        UserError: it is missing or broken; the message names file and key.
    """
    return read_model(path, ResultRecord, "result record", AGAIN)


def read_results(paths: Sequence[Path]) -> list[ResultRecord]:
    """The records in the order of the runs and evaluations they were given in; seeds ascend.

    Raises:
        UserError: one of them is missing or broken.
    """
    records = [read_result(path) for path in paths]
    runs, evaluations = _order(r.run for r in records), _order(r.evaluation for r in records)
    return sorted(records, key=lambda r: (runs[r.run], evaluations[r.evaluation], r.seed))


def _order(names: Iterable[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(dict.fromkeys(names))}


def results_in(folder: Path) -> list[Path]:
    """The result records of a folder of results, {run}/s{seed}/{evaluation}.json, by name."""
    others = ("run.json", "features.json")
    return [p for p in sorted(folder.glob("*/s*/*.json")) if re.fullmatch(r"s\d+", p.parent.name) and p.name not in others]
