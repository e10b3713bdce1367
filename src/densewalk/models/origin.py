"""Where the weights of a backbone come from, as specifications and records say it. Free of torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from densewalk.core.imagenet import PixelStatistics
from densewalk.core.settings import Settings, is_null
from densewalk.core.text.urls import without_secrets

Channels = tuple[float, float, float]
Spread = Annotated[float, Field(gt=0)]
Spreads = tuple[Spread, Spread, Spread]


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
    stride: int | None = Field(default=None, exclude_if=is_null)
    mean: Channels | None = Field(default=None, exclude_if=is_null)
    std: Spreads | None = Field(default=None, exclude_if=is_null)

    @property
    def statistics(self) -> PixelStatistics | None:
        """Mean and standard deviation of pixels, if the study gives them."""
        return None if self.mean is None or self.std is None else PixelStatistics(self.mean, self.std)


class RunBackbone(Settings):
    """The backbone of another run of the study. hash: of that run's specification."""

    kind: Literal["run"] = "run"
    name: str
    seed: int
    hash: str


Origin = Annotated[RandomWeights | CheckpointFile | RunBackbone, Field(discriminator="kind")]
