"""What a job must know, as one file: results/specs/{hash of all of it}.json. Free of torch.

`Specification.hash` is the job's identity: names and paths are not in it (results/identity.py). A changed setting changes the hash of
the run, of its evaluations and of the runs built on it, and of nothing else. How jobs are run (`execution`) is not in it.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator, model_validator

from densewalk.core.errors import UserError
from densewalk.core.files import read_json
from densewalk.core.hashing import config_hash
from densewalk.core.settings import Settings, is_null
from densewalk.core.typed_files import read_model, write_model
from densewalk.curation.settings import CurationSettings
from densewalk.data.settings import ImagesSettings, VideoSettings
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.models.catalog import Labels
from densewalk.models.families.own_code import OWN, find_code
from densewalk.models.origin import CheckpointFile, Origin, RunBackbone
from densewalk.results.identity import identity
from densewalk.results.plan import state_folder
from densewalk.study.registry import evaluations, methods
from densewalk.training.settings import MethodSettings, TrainingSettings


def is_first(version: int) -> bool:
    """For `Field(exclude_if=is_first)`: version 1 is not written down."""
    return version == 1


def code_of(arch: str) -> str | None:
    """The sha256 of the file with the user's own network, seen from the working directory; None for any other architecture.

    Raises:
        UserError: there is no such file.
    """
    return find_code(arch).sha256 if arch.startswith(OWN) else None


class Specification(Settings):
    """What determines the outcome of one job."""

    OF: ClassVar[str]

    @cached_property
    def hash(self) -> str:
        """Twelve digits that say whether two jobs have the same outcome from the same contents."""
        return identity(self.model_dump(mode="json"))

    def path(self, results: Path) -> Path:
        """The file below a folder of results: its name is the hash of all that it holds, names and paths too."""
        return results / "specs" / f"{config_hash(self.model_dump(mode='json'))}.json"

    def write(self, results: Path) -> None:
        """Write the file, unless it is there: its name says what is in it."""
        if not self.path(results).is_file():
            write_model(self.path(results), self)


class CurationSpec(Specification):
    """What determines which images a curation keeps. arch, code: of the backbone that compares them."""

    OF: ClassVar = "a curation"

    arch: str
    code: str | None = Field(default=None, exclude_if=is_null)
    backbone: CheckpointFile | RunBackbone
    data: dict[str, VideoSettings | ImagesSettings]
    settings: CurationSettings


class TeacherSpec(Settings):
    """A network that a run learns from; arch, code: see `RunSpec`."""

    arch: str
    code: str | None = Field(default=None, exclude_if=is_null)
    backbone: CheckpointFile | RunBackbone


class RunSpec(Specification):
    """What determines the backbone of one run and seed.

    settings: of a run whose method changes its initial backbone. data: of one that trains. version: of the method's code.

    code: sha256 of the file with the user's own network, if it is one. teachers: in the study's order, of methods that have some.

    Version 1 is left out of hash and file, so that hashes from before methods had versions stay as they were: a file without a version
    is one of version 1.
    """

    OF: ClassVar = "a run"

    run: str
    seed: int
    method: str
    arch: str
    code: str | None = Field(default=None, exclude_if=is_null)
    init: Origin
    teachers: list[TeacherSpec] | None = Field(default=None, exclude_if=is_null)
    data: dict[str, VideoSettings | ImagesSettings | CurationSpec] | None = Field(default=None, exclude_if=is_null)
    settings: SerializeAsAny[MethodSettings] | None = Field(default=None, exclude_if=is_null)
    version: int = Field(default=1, ge=1, exclude_if=is_first)

    @field_validator("settings", mode="before")
    @classmethod
    def _of_the_method(cls, value: Any, info: ValidationInfo) -> Any:
        return _parsed(value, methods(), info.data.get("method"), "method")

    @model_validator(mode="after")
    def _trains_or_not(self) -> Self:
        if (self.settings is None) != (self.method == "none"):
            raise ValueError(f"settings: give them exactly where method is not none (method: {self.method})")
        if (self.data is not None) != isinstance(self.settings, TrainingSettings):
            raise ValueError(f"data: give them exactly where the method trains (method: {self.method})")
        _require_version(self.version, self.settings.VERSION if self.settings else 1, self.method)
        return self

    def state(self, results: Path) -> Path:
        """Folder of the resumable state: a changed run starts from the beginning, an interrupted one resumes."""
        return state_folder(results, self.hash, self.run, self.seed)


class EvaluationSpec(Specification):
    """What determines the numbers of one evaluation of one run and seed. version: of the protocol's code."""

    OF: ClassVar = "an evaluation"

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

    @model_validator(mode="after")
    def _of_this_version(self) -> Self:
        _require_version(self.version, self.settings.VERSION, self.protocol)
        return self

    def state(self, results: Path) -> Path:
        """Folder of the resumable state."""
        return state_folder(results, self.hash, self.run, self.seed, self.evaluation)


Spec = TypeVar("Spec", bound=Specification)


def _require_version(found: int, own: int, name: str) -> None:
    """A specification of another version of the code would give one number under the other's name."""
    if found != own:
        raise ValueError(f"version: {found} of {name}, which is at version {own} here")


def _parsed(value: Any, known: dict[str, Any], name: Any, what: str) -> Any:
    """Settings from a file by the model of their method or protocol."""
    if not isinstance(value, dict):
        return value
    if name not in known:
        raise ValueError(f"no such {what}: {name!r}; allowed: {', '.join(known)}")
    return known[name].model_validate(value)


def read_spec(path: Path, kind: type[Spec]) -> Spec:
    """Read a specification.

    Raises:
        UserError: it is missing, broken or of another kind; the message names file and key.
    """
    content = read_json(path)
    for other in (RunSpec, EvaluationSpec, CurationSpec):
        required = {name for name, field in other.model_fields.items() if field.is_required()}
        if other is not kind and isinstance(content, dict) and required <= content.keys():
            raise UserError(f"{path} is the specification of {other.OF}, not of {kind.OF}", todo="give this command its own job's file")
    return read_model(path, kind, f"specification of {kind.OF}", "delete it and start snakemake again, which writes it")
