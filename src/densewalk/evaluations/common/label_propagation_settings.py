"""Settings that evaluations by label propagation share."""

from typing import Annotated

from pydantic import Field, field_validator

from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work, vit


class LabelPropagationSettings(EvaluationSettings):
    """Labels of the first frame are propagated along frozen features (DINO's protocol)."""

    short_side: Annotated[int, Shown("short side {} px")] = Field(default=480, ge=32)
    """Shorter side of the network's input in pixels."""
    multiple: int = Field(default=64, ge=1)
    """The longer side keeps the aspect ratio and is rounded down to a multiple of this (854 x 480: 832 x 480). Then each side
    goes to the nearest multiple of the patch size, which changes nothing for patches of 8 and 16 (patch 14: 826 x 476)."""
    top_k: Annotated[int, Shown(lambda s: f"top {s.top_k} within {s.reach}")] = Field(default=5, ge=1)
    """Most similar patches that a patch takes its label from."""
    radius: Annotated[int | None, SHOWN_BY_ANOTHER] = Field(default=12, ge=0)
    """How far a label may move, in patches to each side (of any size); 0, as in the released code, or null for no limit."""
    context: Annotated[int, Shown("first and last {} frames")] = Field(default=7, ge=1)
    """Earlier frames to propagate from, besides the first."""
    temperature: float = Field(default=0.1, gt=0)
    """Of the softmax over the kept patches' cosine similarities."""
    sequences: Annotated[list[str] | None, SHOWN_BY_ANOTHER] = Field(default=None, min_length=1)
    """Only these sequences of the list; all by default."""

    @field_validator("radius")
    @classmethod
    def _no_window(cls, radius: int | None) -> int | None:
        """0 and null are one protocol: one hash and one name."""
        return radius or None

    @property
    def frames(self) -> int | None:
        """Frames of the data; None where they are not published."""
        return None

    def work(self, arch: Architecture) -> Work | None:
        """Each frame once, and each of its patches with those within the radius in the first frame and the context."""
        if self.frames is None or self.sequences:
            return None
        height, width = self.short_side, self.short_side * 16 // 9 // self.multiple * self.multiple
        rows, columns = height // arch.patch, width // arch.patch
        reach = max(rows, columns) if self.radius is None else 2 * self.radius + 1
        window = min(rows, reach) * min(columns, reach)
        propagated = 2.0 * rows * columns * window * (1 + self.context) * arch.dim
        return Work(self.frames * (vit(arch, height, width) + propagated))

    @property
    def subset(self) -> str:
        """The chosen sequences in words, behind the name of their list; empty for all."""
        return f" ({', '.join(self.sequences)})" if self.sequences else ""

    @property
    def reach(self) -> str:
        """The radius in words."""
        return f"{self.radius} patches" if self.radius else "any distance"
