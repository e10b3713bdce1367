"""Settings of DoRA."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.resources import Resources
from densewalk.core.settings import Difference, LearningRate, deviation, switch
from densewalk.data.amounts import Amount
from densewalk.methods.dino.settings import SMALL_VIDEO, SelfDistillationSettings
from densewalk.models.architecture import Architecture
from densewalk.models.catalog import Labels
from densewalk.models.work import Work
from densewalk.training.settings import epochs_in

# a small network's scores differ by less than the recipe's epsilon of 0.05, which gives three times the same object
_SMALL_CLIPS = {"frames": 4, "sinkhorn_epsilon": 0.003}


class DoraSettings(SelfDistillationSettings):
    """DoRA (https://arxiv.org/abs/2310.08584); defaults are the authors' recipe for Walking Tours on eight V100.

    The released code is https://github.com/shashankvkt/DoRA_ICLR24 at commit 0508b2c.
    """

    VERSION: ClassVar[int] = 2
    """2: a warm-up of the teacher's temperature that is longer than the training is cut off, no longer squeezed into it."""

    SAMPLES: ClassVar[Literal["images", "clips"]] = "clips"
    CUT_FROM: ClassVar[Literal["images", "frames", "timed frames"]] = "timed frames"
    RESOURCES: ClassVar[Resources] = Resources(gpu=4, threads=32, mem_mb=128_000, runtime=2880)
    PICTURES: ClassVar[dict[str, str]] = {
        "objects": "Objects that the first attention heads discover in a clip's first frame, tracked through it; a color is an object. "
        "Above, what the student is shown of them; below, whose attention is the largest."
    }
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference("whole clips become float and are resized without antialias", "cropped first, antialiased", "_functional_video.py:35"),
    )
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "small_video": {**SMALL_VIDEO, **_SMALL_CLIPS, "batch_size": 4, "steps": 360, "lr": 5e-4 * 256 / 4, "warmup_epochs": 0.5},
    }

    SAME_NUMBERS: ClassVar[tuple[str, ...]] = ("linear_sinkhorn", "unseeded_heads")

    batch_size: int = Field(default=48, ge=1)
    """Clips of one optimizer step over all processes together."""
    norm_last_layer: bool = False
    """Freeze the prototypes' lengths at 1."""
    min_lr: LearningRate = Field(default=1e-5, ge=0)
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

    loss_carry_over: bool | None = deviation(source="main.py:407,456-459", effect="loss and gradient 8.9 % too large at 8 frames")
    """Add the running mean of an object's loss to the next one's: object j of k weighs the sum of T^-e over e < k - j, the first most."""
    skip_first_local_crop: bool | None = deviation(source="main.py:448", effect="one of six local crops is made and not used")
    """Make `local_crops` crops but learn from all except the first."""
    hard_masks: bool | None = deviation(source="equation 7; utils.py:27-79", effect="nothing is shown by degrees")
    """Show an object's patches above the mean fully and the others not at all, instead of by degrees."""
    batch_threshold: bool | None = deviation(source="utils.py:27-79", effect="a clip's masks depend on the other clips of its batch")
    """With hard masks: compare with the mean over the process's whole batch instead of the clip's own."""
    n_fold_assignment: bool | None = deviation(source="equation 4; sinkhorn_knopp.py:29-65", effect="the tracker is n times sharper")
    """Give each of n patches the mass 1 instead of 1 / n, which sharpens the tracker's softmax."""
    linear_sinkhorn: bool | None = deviation(source="sinkhorn_knopp.py:29-65", effect="0 / 0 on peaked scores: gray frames, here an error")
    """Exponentiate before normalizing: peaked scores underflow."""
    global_views: Annotated[int, Field(ge=1, le=2)] | None = switch(
        paper=2, released=1, source="main.py:545,559", effect="the second one of DINO's multi-crop is commented out"
    )
    """Global views of each clip."""
    unseeded_heads: bool = switch(
        default=False, paper=False, released=True, source="utils.py:27-79,267", effect="no two runs see the same objects"
    )
    """Draw the heads from the system's entropy, differently in every process and run. Off in both modes: not reproducible."""

    @classmethod
    def published_settings(cls, labels: Labels) -> dict[str, tuple[Any, ...]] | None:
        """The released code's for Walking Tours, with the batch of its V100 or A100 recipe; of other trainings the length alone."""
        if (labels.method, labels.init) != ("DoRA", ""):
            return None
        epochs = epochs_in(labels.pretraining_data) or 100.0
        if labels.arch == "ViT-S/16" and labels.pretraining_data.startswith("WT_"):
            return {**cls(compat="released", epochs=epochs).all_settings(), "batch_size": (48, 128)}
        return {"epochs": (epochs,), "steps": (None,)}

    @property
    def sample_images(self) -> int:
        """Frames of a clip."""
        return self.frames

    def obstacle_to_network(self, arch: Architecture) -> str | None:
        """As DINO's, and more objects than there are heads to discover them."""
        if self.objects > arch.heads:
            return f"objects {self.objects} is more than the backbone's heads; allowed: 1 to {arch.heads}"
        return super().obstacle_to_network(arch)

    def across_samples(self) -> str | None:
        """The release's threshold is a mean over the batch; heads from the system's entropy are drawn once for it."""
        if self.unseeded_heads:
            return "unseeded_heads draws the heads once for a batch"
        resolved = self.resolved()
        if resolved.hard_masks and resolved.batch_threshold:
            return "batch_threshold compares masks with their mean over the batch"
        return super().across_samples()

    def samples(self, amount: Amount) -> int:
        """A clip for each frame of a video that is not too close to its end."""
        span = (self.frames - 1) * max(1, round(self.spacing_seconds * amount.fps))
        return max(0, amount.frames - amount.parts * span)

    def step_work(self, arch: Architecture) -> Work:
        """The teacher sees each frame of each global view, the student each of them once for each object, and the local crops."""
        resolved = self.resolved()
        frames = self.batch_size * self.frames
        views = frames * (resolved.global_views or 1)
        crops = self.local_crops - bool(resolved.skip_first_local_crop)
        return self.views_work(arch, taught=views, whole=self.objects * views, local=crops * frames)

    @model_validator(mode="after")
    def some_local_crop_is_used(self) -> Self:
        """Refuse a study that could only fail at its first step."""
        if self.resolved().skip_first_local_crop and self.local_crops == 1:
            raise ValueError("skip_first_local_crop leaves none of 1 local crop: set local_crops to 2 or more")
        return self


SETTINGS = DoraSettings
