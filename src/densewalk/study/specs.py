"""What a job must know, as one file: results/specs/{hash}.json. The hash is the job's identity. Free of torch.

A changed setting changes the hash of the run, of its evaluations and of the runs built on it, and of nothing else. How jobs are run
(`execution`) is not in it.
"""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator

from densewalk.core.hashing import config_hash
from densewalk.core.settings import Settings, is_null
from densewalk.core.typed_files import read_model, write_model
from densewalk.curation.settings import CurationSettings
from densewalk.data.settings import ImagesSettings, VideoSettings
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.models.catalog import Labels
from densewalk.models.origin import CheckpointFile, Origin, RunBackbone
from densewalk.study.registry import evaluations, methods
from densewalk.training.settings import TrainingSettings


class Specification(Settings):
    """What determines the outcome of one job."""

    @property
    def hash(self) -> str:
        """Twelve digits that say whether two jobs have the same outcome."""
        return config_hash(self.model_dump(mode="json"))

    def path(self, results: Path) -> Path:
        """The file below a folder of results."""
        return results / "specs" / f"{self.hash}.json"

    def write(self, results: Path) -> None:
        """Write the file, unless it is there: its name says what is in it."""
        if not self.path(results).is_file():
            write_model(self.path(results), self)


class CurationSpec(Specification):
    """What determines which images a curation keeps. arch: of the backbone that compares them."""

    arch: str
    backbone: CheckpointFile | RunBackbone
    data: dict[str, VideoSettings | ImagesSettings]
    settings: CurationSettings


class RunSpec(Specification):
    """What determines the backbone of one run and seed. data, settings: of a run that trains."""

    run: str
    seed: int
    method: str
    arch: str
    init: Origin
    data: dict[str, VideoSettings | ImagesSettings | CurationSpec] | None = Field(default=None, exclude_if=is_null)
    settings: SerializeAsAny[TrainingSettings] | None = Field(default=None, exclude_if=is_null)

    @field_validator("settings", mode="before")
    @classmethod
    def _of_the_method(cls, value: Any, info: ValidationInfo) -> Any:
        return _parsed(value, methods(), info.data.get("method"), "method")

    def state(self, results: Path) -> Path:
        """Folder of the resumable state: a changed run starts afresh, an interrupted one resumes."""
        return results / "state" / f"{self.run}-s{self.seed}-{self.hash}"


class EvaluationSpec(Specification):
    """What determines the numbers of one evaluation of one run and seed. version: of the protocol's code."""

    run: str
    seed: int
    run_hash: str
    evaluation: str
    protocol: str
    version: int
    settings: SerializeAsAny[EvaluationSettings]
    labels: Labels | None

    @field_validator("settings", mode="before")
    @classmethod
    def _of_the_protocol(cls, value: Any, info: ValidationInfo) -> Any:
        return _parsed(value, evaluations(), info.data.get("protocol"), "protocol")

    def state(self, results: Path) -> Path:
        """Folder of the resumable state."""
        return results / "state" / f"{self.run}-s{self.seed}-{self.evaluation}-{self.hash}"


Spec = TypeVar("Spec", bound=Specification)


def _parsed(value: Any, known: dict[str, Any], name: Any, what: str) -> Any:
    """Settings from a file by the model of their method or protocol."""
    if not isinstance(value, dict):
        return value
    if name not in known:
        raise ValueError(f"no such {what}: {name!r}; allowed: {', '.join(known)}")
    return known[name].model_validate(value)


def read_spec(path: Path, kind: type[Spec]) -> Spec:
    """A specification from its file.

    Raises:
        UserError: it is missing or broken; the message names file and key.
    """
    return read_model(path, kind, f"specification ({kind.__name__})", "start snakemake again, which writes it")
