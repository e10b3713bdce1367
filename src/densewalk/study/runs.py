"""What all runs and all evaluations of a study share."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, StringConstraints

from densewalk.core.settings import MOST_NAME, NAME_PATTERN, Seed, Settings, Unique, is_null
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.models.architecture import ArchitectureName
from densewalk.models.catalog import Labels
from densewalk.models.families.own_code import known_form
from densewalk.training.settings import MethodSettings, TrainingSettings

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=MOST_NAME)]


class BaseRun(Settings):
    """What all runs share: one row of every table per run, repeated for each seed."""

    method: str
    """A folder of `densewalk.methods`; `none` takes a backbone over as it is."""
    init: str = "random"
    """`random`, a checkpoint's name, another run's name, a public checkpoint's (`densewalk checkpoints` lists them), or
    `timm/` and the full name of a vision transformer of timm's, e.g. timm/vit_small_patch16_224.dino."""
    arch: ArchitectureName | None = None
    """Architecture, for `init: random` only; otherwise it is the one of the initial backbone."""
    seeds: Annotated[list[Seed], Unique] = Field(default=[0], min_length=1)
    """One repetition each. A run built on another takes the other's backbone of the same seed, or its only one."""
    labels: Labels | None = None
    """Names in the published tables."""


class Baseline(BaseRun):
    """A backbone as it is."""

    method: Literal["none"]
    backbone: Annotated[str, AfterValidator(known_form)] | None = Field(default=None, exclude_if=is_null)
    """Instead of `init` and `arch`: a function of your own that builds the network, `package.module:function` or `folder/file.py:function`,
    seen from the study's folder. It is imported and run. The sha256 of its file is in the run's hash, what the file imports is not."""


class ChangedRun(BaseRun):
    """A run whose method changes its initial backbone, without any training unless it is a `TrainedRun`."""

    settings: MethodSettings
    sweep: dict[Name, Annotated[dict[str, Any], Field(min_length=1)]] = {}
    """Variants for an ablation: name of the variant -> settings in which it differs, and its own `data` and `labels` if it has any.
    Each is a run of its own, called `{run}_{variant}`, next to the run itself."""


class TrainedRun(ChangedRun):
    """A run that trains."""

    data: Annotated[list[str], Unique] = Field(min_length=1)
    """Names of videos, image folders or curations."""
    settings: TrainingSettings


class TaughtRun(TrainedRun):
    """A run that learns from other networks."""

    teachers: Annotated[list[str], Unique] = Field(min_length=1)
    """Networks of any family that it learns from: checkpoints, runs or public checkpoints. Of a run, the backbone of the same seed, or its
    only one."""


class BaseEvaluation(Settings):
    """An evaluation is applied to every run and seed."""

    protocol: str
    """One of the protocols of `densewalk.evaluations`."""
    runs: Annotated[list[str], Unique] | None = None
    """Only these runs; all by default."""
    seeds: Annotated[list[Seed], Unique] | None = Field(default=None, min_length=1)
    """Only these seeds of each run; all by default. It changes no number: results of other seeds stay where they are."""
    settings: EvaluationSettings

    def covers(self, run: str, seed: int) -> bool:
        """True if a run's backbone of a seed is evaluated."""
        return (self.runs is None or run in self.runs) and (self.seeds is None or seed in self.seeds)
