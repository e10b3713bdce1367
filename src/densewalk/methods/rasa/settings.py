"""Settings of RASA."""

from typing import ClassVar

from pydantic import Field

from densewalk.core.resources import Resources
from densewalk.core.settings import Difference, Epochs, LearningRate, ShareRange, switch
from densewalk.models.architecture import Architecture
from densewalk.models.families.abilities import WITHOUT_POSITION
from densewalk.models.work import Work, parameters, vit
from densewalk.training.settings import TrainingSettings


class RasaSettings(TrainingSettings):
    """RASA (of Franca): what predicts a patch's place is taken out of a frozen backbone's map.

    The released code is that of Franca at commit 24f8c60.
    """

    VERSION: ClassVar[int] = 2
    """2: with `precision: bfloat16`, planes are taken out in float32."""
    RESOURCES: ClassVar[Resources] = Resources(gpu=1, threads=8, mem_mb=64_000, runtime=720)
    GIVES: ClassVar[frozenset[str] | None] = WITHOUT_POSITION
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "each round is a training of its own, which reads the images again", "one training of all rounds", "the released configuration"
        ),
    )

    batch_size: int = Field(default=128, ge=1)
    """Images of one optimizer step over all processes together."""
    epochs: Epochs | None = 45
    """Passes over the data of all rounds together, shared evenly among them. Exactly one of `epochs` and `steps`."""
    rounds: int = Field(default=9, ge=1, le=100)
    """Planes that are taken out, one after the other."""
    size: int = Field(default=518, ge=16)
    """Side of a crop in pixels, rounded down to whole patches."""
    scale: ShareRange = (0.25, 1.0)
    """Share of the image's area that a crop covers, from and to."""
    strength: float = Field(default=0.4, ge=0, le=1.25)
    """Of the jitter of brightness, contrast and saturation; a quarter of it of the hue."""
    rotation: float = Field(default=90.0, ge=0, le=180)
    """Half of the crops are turned by up to so many degrees either way, so that rows are not a matter of gravity."""
    lr: LearningRate | None = switch(paper=2e-3, released=2e-4, source="Franca's text; its configuration", effect="the paper's is tenfold")
    """Learning rate of AdamW at the start of each round, falling to 0 along a cosine; no weight decay."""
    orthogonal: bool | None = switch(
        paper=True,
        released=False,
        source="the removal of a round's plane",
        effect="planes lean on each other, a part of an earlier one comes back, and the product is no projector",
    )
    """Take the planes of earlier rounds out of a round's directions, so that all together are one orthogonal projector."""
    blue_std: float | None = switch(paper=0.225, released=0.255, source="the training transform", effect="a typing error")
    """Standard deviation that blue is normalized with in training."""

    def obstacle(self) -> str | None:
        """Fewer steps than rounds."""
        return super().obstacle() if self.steps is None else self.obstacle_to_length(self.steps)

    def obstacle_to_length(self, steps: int) -> str | None:
        """Fewer steps than rounds, each of which needs one."""
        return f"{steps} steps for {self.rounds} rounds; to do: raise epochs or steps, or lower rounds" if steps < self.rounds else None

    def obstacle_to_network(self, arch: Architecture) -> str | None:
        """As of any method, and rounds that would leave nothing."""
        if 2 * self.rounds >= arch.dim:
            return f"{self.rounds} rounds take out {2 * self.rounds} of {arch.dim} dimensions; to do: lower rounds"
        return super().obstacle_to_network(arch)

    def sides(self) -> dict[str, int]:
        """As of any method."""
        return {"size": self.size}

    def across_samples(self) -> str | None:
        """Nothing: the loss is a mean over images."""
        return None

    def step_work(self, arch: Architecture) -> Work:
        """The frozen backbone sees each crop once; two directions learn."""
        return Work(self.batch_size * vit(arch, self.size), learnt=2 * self.rounds * arch.dim, fixed=parameters(arch))


SETTINGS = RasaSettings
