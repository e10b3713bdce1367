"""Settings that evaluations by label propagation share."""

from pydantic import Field

from densewalk.evaluations.common.settings import EvaluationSettings


class LabelPropagationSettings(EvaluationSettings):
    """Labels of the first frame travel along frozen features (DINO's protocol)."""

    short_side: int = Field(default=480, ge=32)
    """Shorter side of the network's input in pixels."""
    multiple: int = Field(default=64, ge=1)
    """The longer side keeps the aspect ratio and is rounded down to a multiple of this (854 x 480: 832 x 480). Then each side
    goes to the nearest multiple of the patch size, which changes nothing for patches of 8 and 16 (patch 14: 826 x 476)."""
    context: int = Field(default=7, ge=1)
    """Earlier frames to propagate from, beside the first."""
    top_k: int = Field(default=5, ge=1)
    """Most similar patches that a patch takes its label from."""
    radius: int | None = Field(default=12, ge=0)
    """How far a label may move, in patches to each side (of any size); null for no limit."""
    temperature: float = Field(default=0.1, gt=0)
    """Of the softmax over the kept patches' cosine similarities."""
