"""Where the weights of a backbone come from, as specifications and records say it. Free of torch."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from densewalk.core.settings import Settings


class RandomWeights(Settings):
    """New weights of the run's seed."""

    kind: Literal["random"] = "random"
    name: ClassVar[str] = "random"


class CheckpointFile(Settings):
    """An entry of `checkpoints` in the study."""

    kind: Literal["checkpoint"] = "checkpoint"
    name: str
    file: str
    key: str | None
    sha256: str | None
    url: str | None
    interpolation: Literal["offset", "antialias", "size"] | None = None

    @model_serializer(mode="wrap")
    def _without_usual_rule(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """`interpolation` enters the hash only where it is given."""
        return {name: value for name, value in handler(self).items() if (name, value) != ("interpolation", None)}


class RunBackbone(Settings):
    """The backbone of another run of the study. hash: of that run's specification."""

    kind: Literal["run"] = "run"
    name: str
    seed: int
    hash: str


Origin = Annotated[RandomWeights | CheckpointFile | RunBackbone, Field(discriminator="kind")]
