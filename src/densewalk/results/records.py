"""What jobs leave behind: the record of a run and the record of a result. Free of torch.

results/{run}/s{seed}/run.json             RunRecord, beside the backbone
results/{run}/s{seed}/{evaluation}.json    ResultRecord
"""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, TypeAdapter, field_validator, model_validator

from densewalk.core.errors import UserError
from densewalk.core.provenance import Provenance
from densewalk.core.settings import Settings, is_null
from densewalk.core.typed_files import read_model
from densewalk.data.fingerprint import Fingerprint
from densewalk.models.catalog import Labels
from densewalk.models.origin import Origin
from densewalk.training.progress_files import Attempt, CostRecord, PlannedLength

AGAIN = "delete it, so that it is made again (snakemake does so)"
CLASS_VALUES = TypeAdapter(dict[str, dict[str, float | None]])
CLASS_NAMES = TypeAdapter(dict[str, str])
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]


class FileRecord(Settings):
    """A file that was read: sha256 of its content, and size and times by which an unchanged one is known without reading it."""

    sha256: str
    stamp: str


class TrainingRecord(CostRecord):
    """What a training was.

    device, processes, execution: of the attempt that made the last step; the latter says how it was run, which changes no hash.
    made: who made the steps, in order, whenever the weights were exported. samples_unit: what the samples are. Both are empty in
    records of earlier versions. teraflop: counted work of all steps, None where it is not known. length: how a measured budget became
    steps.
    """

    steps: int = Field(ge=1)
    samples_seen: int = Field(ge=1)
    samples_unit: str = ""
    processes: int = Field(ge=1)
    device: str
    execution: dict[str, Any]
    made: tuple[Attempt, ...] = ()
    teraflop: float | None = Field(default=None, ge=0)
    length: PlannedLength | None = Field(default=None, exclude_if=is_null)

    @property
    def process_hours(self) -> float:
        """Hours of all processes, on whatever device."""
        return self.seconds * self.processes / 3600


class InputContents(Settings):
    """What a run was made from, by content: the initial backbone's sha256 (None for random weights), and those of its data in order.

    Of a video it is the original's sha256, of a folder that of all names and sizes (data/contents.py). curated: of the backbones that
    curations chose the data with; records of earlier versions have none. teachers: of the backbones that it learned from.
    files: of those that its settings name.
    """

    init: str | None
    data: list[str]
    curated: list[str] = []
    teachers: list[str] = []
    files: list[str] = []


class MadeRun(Settings):
    """The specification that a run was made by (study/specs.py), as it was then: what else it says is kept unread."""

    model_config = ConfigDict(extra="allow")

    run: str
    seed: int
    method: str
    arch: str
    init: Origin


class RunRecord(Provenance):
    """How a backbone was made: commit, versions and host are those of its last step.

    training: None for a baseline. loaded: what was taken from the initial backbone's file. files: that were read, by path: the
    initial backbone and the receipts. data: fingerprints of the folders of images that were trained on, by path. exported: by which
    code the weights were written where it was another; None where it is the same. version: of the method's code, 1 where an older
    record does not say. contents: of what it was made from; with the specification, all that decides whether it is outdated. Records of
    earlier versions lack these.
    """

    config_hash: Hash
    arch: str
    compat: str
    version: int = Field(default=1, ge=1)
    spec: MadeRun
    training: TrainingRecord | None
    loaded: str | None
    files: dict[str, FileRecord] = {}
    data: dict[str, str] = {}
    exported: Provenance | None = None
    contents: InputContents | None = None


class ResultRecord(Provenance, CostRecord):
    """The numbers of one evaluation of one run and seed, and all that they depend on.

    metrics: None for a number that is not defined. n, unit: what was scored, and how many. labels: names in the published tables.
    version, method_version: of the protocol's and of the method's code, the latter 1 where an older record does not say.
    published_metrics: metric -> its name there, None where all names are the same. details: more numbers, of the evaluation's own.
    spec: the specification (study/specs.py). data: fingerprint of the evaluation's files. backbone_sha256: of the file that was
    evaluated. made: who trained the evaluation's own head, if it has one. Records of earlier versions lack the last three.
    """

    run: str
    seed: int
    method: str
    init: str
    init_kind: Literal["random", "checkpoint", "run"]
    init_seed: int | None
    arch: str
    compat: str
    method_version: int = Field(default=1, ge=1)
    labels: Labels | None
    task: str
    evaluation: str
    dataset: str
    protocol: str
    published_protocol: str | None
    published_metrics: dict[str, str] | None
    version: int
    metrics: dict[str, float | None] = Field(min_length=1)
    n: int = Field(ge=0)
    unit: str
    details: dict[str, Any]
    config_hash: Hash
    run_hash: Hash
    device: str
    training: TrainingRecord | None
    spec: dict[str, Any]
    data: Fingerprint | None = None
    backbone_sha256: str | None = None
    made: tuple[Attempt, ...] = ()

    @property
    def class_iou(self) -> dict[str, float | None] | None:
        """IoU of each class, None where it does not occur; None of an evaluation without."""
        return self.details.get("IoU")

    @property
    def class_names(self) -> dict[str, str]:
        """Names for readers of the classes whose IoU is under another name; records of earlier versions have none."""
        return self.details.get("class_names", {})

    @field_validator("details")
    @classmethod
    def _class_values(cls, details: dict[str, Any]) -> dict[str, Any]:
        CLASS_VALUES.validate_python({key: value for key, value in details.items() if key == "IoU"}, strict=True)
        CLASS_NAMES.validate_python(details.get("class_names", {}), strict=True)
        return details

    @model_validator(mode="after")
    def _seed_of_the_run(self) -> Self:
        """A run that is built on another says on which seed of it."""
        if (self.init_kind == "run") != (self.init_seed is not None):
            raise ValueError(f"init_seed: {self.init_seed} with init_kind {self.init_kind} (given exactly for a run)")
        return self


Named = Callable[[ResultRecord], ResultRecord]


def read_run(path: Path) -> RunRecord:
    """Read the record of a run; a UserError names file and key of what is missing, broken or another run's."""
    record = read_model(path, RunRecord, "record of a run", AGAIN)
    _require_place(path, run=record.spec.run, seed=record.spec.seed)
    return record


def read_result(path: Path) -> ResultRecord:
    """Read the record of a result; a UserError names file and key of what is missing, broken or another run's."""
    record = read_model(path, ResultRecord, "result record", AGAIN)
    _require_place(path, run=record.run, seed=record.seed, evaluation=record.evaluation)
    return record


def place_of(path: Path) -> tuple[str, int, str] | None:
    """Run, seed and evaluation of a record in a folder of results, {run}/s{seed}/{evaluation}.json; None of another place."""
    folder = path.absolute().parent
    return (folder.parent.name, int(folder.name[1:]), path.stem) if re.fullmatch(r"s\d+", folder.name) else None


def _require_place(path: Path, **names: str | int) -> None:
    """A record in the folder of a run and seed, {run}/s{seed}/{evaluation}.json, must be theirs."""
    if (found_at := place_of(path)) is None:
        return
    place = dict(zip(("run", "seed", "evaluation"), found_at, strict=True))
    for key, found in names.items():
        if found != place[key]:
            raise UserError(
                f"{path} belongs elsewhere: {key}: {place[key]} by its place (found {found})", todo=f"move it there, or {AGAIN}"
            )


def read_results(paths: Sequence[Path], named: Named | None = None) -> list[ResultRecord]:
    """Read records; they come in the order in which their runs and evaluations were given, seeds ascending.

    Args:
        named: gives a record the labels that the study has now (`Plan.named`); without it they are those that it was made with.
    """
    return in_study_order([named(record) if named else record for record in map(read_result, paths)])


def in_study_order(records: Sequence[ResultRecord]) -> list[ResultRecord]:
    """Records in the order in which their runs and evaluations come, seeds ascending."""
    runs, evaluations = _places(r.run for r in records), _places(r.evaluation for r in records)
    return sorted(records, key=lambda r: (runs[r.run], evaluations[r.evaluation], r.seed))


def _places(names: Iterable[str]) -> dict[str, int]:
    """Name -> its place in the order in which the names first come."""
    return {name: place for place, name in enumerate(dict.fromkeys(names))}


def results_in(folder: Path) -> list[Path]:
    """List the result records of a folder of results, {run}/s{seed}/{evaluation}.json, by name."""
    others = ("run.json", "features.json")
    return [p for p in sorted(folder.glob("*/s*/*.json")) if re.fullmatch(r"s\d+", p.parent.name) and p.name not in others]
