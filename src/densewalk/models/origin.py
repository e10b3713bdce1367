"""Where the weights of a backbone come from, as specifications and records say it. Free of torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from densewalk.core.settings import Settings, is_null
from densewalk.core.text.urls import without_secrets


class RandomWeights(Settings):
    """New weights of the run's seed."""

    kind: Literal["random"] = "random"
    name: ClassVar[str] = "random"


class CheckpointFile(Settings):
    """An entry of `checkpoints` in the study; its address is kept without tokens and passwords."""

    kind: Literal["checkpoint"] = "checkpoint"
    name: str
    file: str
    key: str | None
    sha256: str | None
    url: Annotated[str | None, AfterValidator(lambda url: url and without_secrets(url))]
    interpolation: Literal["offset", "antialias", "size"] | None = Field(default=None, exclude_if=is_null)


class RunBackbone(Settings):
    """The backbone of another run of the study. hash: of that run's specification."""

    kind: Literal["run"] = "run"
    name: str
    seed: int
    hash: str


Origin = Annotated[RandomWeights | CheckpointFile | RunBackbone, Field(discriminator="kind")]
