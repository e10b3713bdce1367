"""Settings of DoRA."""

from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from densewalk.core.resources import Resources
from densewalk.methods.dino.settings import SMALL_VIDEO, SelfDistillationSettings


class DoraSettings(SelfDistillationSettings):
    """DoRA (https://arxiv.org/abs/2310.08584); defaults are the authors' recipe for Walking Tours on eight V100.

    A switch left at null follows `compat`; docs/deviations.md gives the source of each.
    """

    RESOURCES: ClassVar[Resources] = Resources(gpu=4, threads=32, mem_mb=128_000, runtime=2880)
    PICTURES: ClassVar[dict[str, str]] = {
        "objects": "Objects that the first attention heads discover in a clip's first frame, tracked through it; a color is an object. "
        "Above, what the student is shown of them; below, whose attention is the largest."
    }
    # switch -> value in compat `paper`, value in compat `released`
    SWITCHES: ClassVar[dict[str, tuple[Any, Any]]] = {
        "loss_carry_over": (False, True),
        "skip_first_local_crop": (False, True),
        "hard_masks": (False, True),
        "batch_threshold": (False, True),
        "n_fold_assignment": (False, True),
        "linear_sinkhorn": (False, True),
        "global_views": (2, 1),
    }
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "small_video": {
            **SMALL_VIDEO,
            "batch_size": 4,
            "steps": 360,
            "lr": 5e-4 * 256 / 4,
            "warmup_epochs": 0.5,
            "frames": 4,
            # a small network's scores differ by less than the recipe's 0.05, which gives three times the same object
            "sinkhorn_epsilon": 0.003,
        },
    }

    batch_size: int = Field(default=48, ge=1)
    """Clips of one optimiser step over all processes together."""
    norm_last_layer: bool = False
    """Freeze the prototypes' lengths at 1."""
    min_lr: float = Field(default=1e-5, ge=0)
    """Learning rate at the end of the cosine."""
    teacher_temperature_epochs: int = Field(default=30, ge=0)
    """Epochs from the first temperature to the second, linearly, one step an epoch (without effect while they are equal)."""
    local_size: int = Field(default=112, ge=8)
    """Side of a local crop in pixels."""
    local_crops: int = Field(default=6, ge=1)
    """Local crops of each frame."""

    frames: int = Field(default=8, ge=1)
    """Frames of a clip."""
    spacing_seconds: float = Field(default=1.0, gt=0)
    """Time between two frames of a clip."""
    objects: int = Field(default=3, ge=1)
    """Objects to discover in the first frame: that many attention heads are drawn at each step."""
    sinkhorn_epsilon: float = Field(default=0.05, gt=0)
    """Temperature of the assignment of patches to objects."""
    sinkhorn_iterations: int = Field(default=30, ge=1)
    """Sinkhorn-Knopp iterations; far from convergence on peaked scores, hence part of the method."""

    loss_carry_over: bool | None = None
    """Sum an object's loss onto the running mean of the one before it."""
    skip_first_local_crop: bool | None = None
    """Make `local_crops` crops but learn from all except the first."""
    hard_masks: bool | None = None
    """Show an object's patches fully and the others not at all, instead of by degrees."""
    batch_threshold: bool | None = None
    """With hard masks: compare with the mean over the process's whole batch instead of the clip's own."""
    n_fold_assignment: bool | None = None
    """Give each patch the mass 1 instead of 1 / patches: the tracker's softmax becomes that much sharper."""
    linear_sinkhorn: bool | None = None
    """Exponentiate before normalising, which fails on peaked scores."""
    global_views: int | None = Field(default=None, ge=1, le=2)
    """Global views of each clip."""
    unseeded_heads: bool = False
    """Draw the heads from the system's entropy, differently in every process and run. Off in both modes: it has no digits to reproduce."""

    def resolved(self) -> Self:
        """The same settings with every switch set."""
        column = ("paper", "released").index(self.compat)
        unset = {name: values[column] for name, values in self.SWITCHES.items() if getattr(self, name) is None}
        return self.model_copy(update=unset)

    def across_samples(self) -> str | None:
        """The release's threshold is a mean over the batch; heads from the system's entropy are drawn once for it."""
        if self.unseeded_heads:
            return "unseeded_heads draws the heads once for a batch"
        resolved = self.resolved()
        if resolved.hard_masks and resolved.batch_threshold:
            return "batch_threshold compares masks with their mean over the batch"
        return super().across_samples()

    @model_validator(mode="after")
    def some_local_crop_is_used(self) -> Self:
        """Refuse a study that could only fail at its first step."""
        if self.resolved().skip_first_local_crop and self.local_crops == 1:
            raise ValueError("skip_first_local_crop leaves none of 1 local crop: set local_crops to 2 or more")
        return self


SETTINGS = DoraSettings
