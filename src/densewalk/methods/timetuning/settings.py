"""Settings of Time-Tuning."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from densewalk.core.resources import Resources
from densewalk.core.settings import Difference, Epochs, LearningRate, Share, ShareRange, deviation, is_null, switch
from densewalk.data.amounts import Amount
from densewalk.models.architecture import Architecture
from densewalk.models.catalog import Labels
from densewalk.models.work import BACKWARD, LEARN, Work, kept, mlp, mlp_parameters, parameters, tokens, vit
from densewalk.training.settings import LENGTHS, PresetSettings


class TimeTuningSettings(PresetSettings):
    """Time-Tuning (https://arxiv.org/abs/2308.11796); defaults are the paper's for DINO ViT-S/16 on YouTube-VOS.

    The released code is https://github.com/SMSD75/Timetuning at commit 94550b5.
    """

    VERSION: ClassVar[int] = 2
    """2: the queue takes a batch before the assignment, not after it, as released."""
    SAMPLES: ClassVar[Literal["images", "clips"]] = "clips"
    RESOURCES: ClassVar[Resources] = Resources(mem_mb=64_000, runtime=1440)
    PICTURES: ClassVar[dict[str, str]] = {
        "prototypes": "Prototypes of the first frame's patches as assigned, and as propagated to the later frames; a color is a prototype."
    }
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference("options of propagation and Sinkhorn have no effect", "settings have", "time_tuning.py:224-302"),
        Difference("`--use_queue False` turns the queue on", "`queue: 0` turns it off", "README.md"),
        Difference("`--use_mask` stops the first step", "`foreground_mass` does what it is for", "time_tuning.py"),
        Difference("the weight-decay schedule stops the last step with an IndexError", "the training ends", "time_tuning.py"),
        Difference(
            "frames get colors and a blur of 0.1 to 2 px at their own size, and are reduced to 224 px before the crop",
            "cropped from the whole frame to 224 px, then colors and the same blur: what is not blurred is sharper, what is, less sharp",
            "time_tuning.py:588-594",
        ),
    )

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # a vit_micro_patch16 that has learned already, on a video of minutes with a frame or more a second
        "small_video": {
            "batch_size": 8,
            "steps": 300,
            "size": 160,
            "head_widths": [256, 128],
            "prototypes": 50,
            "lr": 1e-3,
            "backbone_lr": 1e-4,
            "weight_decay_end": 0.04,
        },
    }

    preset: str | None = Field(default=None, exclude_if=is_null)
    """A named configuration; keys given beside it win."""
    variant: Literal["timetuning", "simplified"] = "timetuning"
    """`simplified`: the authors' later code (https://github.com/SMSD75/TimeT_clean at commit 8fe9d20), which trains 800 epochs without
    a teacher on consecutive frames and assigns all of them together."""
    batch_size: int = Field(default=128, ge=1)
    """Clips of one optimizer step over all processes together."""
    epochs: Epochs | None = 100
    """Passes over the videos: one clip of each; 800 if not given for `variant: simplified`. Exactly one of `epochs` and `steps`."""

    frames: int = Field(default=4, ge=2)
    """Frames of a clip. Labels travel from the first to the last."""
    sampling: Literal["uniform", "dense"] | None = switch(
        by="variant", timetuning="uniform", simplified="dense", source="data_loader.py:617-627", effect="distance of a clip's frames"
    )
    """`uniform`: random frames of the whole video, in order. `dense`: a random stretch, every `dense_step`-th frame."""
    dense_step: int = Field(default=1, ge=1)
    """Sampling `dense`: distance of a clip's frames."""
    segment_seconds: float = Field(default=5.0, gt=0)
    """A video file is cut into pieces of about this length, each one video like YouTube-VOS's of 3 to 6 seconds."""
    size: int = Field(default=224, ge=16)
    """Side of the network's input in pixels."""
    scale: ShareRange = (0.4, 1.0)
    """Share of the image's area that the crop of a clip covers, from and to."""

    trainable_blocks: int = Field(default=2, ge=1)
    """Last blocks of the backbone that learn; everything else is frozen, the final norm included."""
    head_widths: list[Annotated[int, Field(ge=1)]] = Field(default=[1024, 1024, 512, 256], min_length=1)
    """Widths of the projection head's layers; the last is the prototypes' dimension."""
    prototypes: int = Field(default=200, ge=2)
    """Cluster centers."""
    teacher: bool | None = switch(
        by="variant", timetuning=True, simplified=False, source="time_tuning.py:90-128; its README says no", effect="who assigns patches"
    )
    """Let a momentum teacher assign the first frame's patches; otherwise the student does."""
    momentum: float = Field(default=0.995, ge=0, le=1)
    """Share of the old teacher in each update at the start, rising to 1 along a cosine."""

    assigned_frames: Literal["first", "all"] | None = switch(
        by="variant", timetuning="first", simplified="all", source="time_tuning.py:224-302", effect="who shares the prototypes evenly"
    )
    """Frames whose patches share the prototypes evenly. Only the first one's assignment is propagated."""
    sinkhorn_epsilon: float = Field(default=0.05, gt=0)
    """Temperature of the assignment."""
    sinkhorn_iterations: int = Field(default=10, ge=1)
    """Sinkhorn-Knopp iterations; part of the method, since they end far from convergence."""
    queue: int = Field(default=0, ge=0)
    """First-frame patches of this and earlier steps (16384 in the released code's option) that take part in the assignment once there
    are so many: the teacher's, or the student's where there is no teacher."""
    queue_patches_per_clip: int = Field(default=10, ge=1)
    """Patches of each clip that enter the queue."""

    context: Annotated[int, Field(ge=1)] | None = switch(
        by="variant", timetuning=7, simplified=6, source="mask_propagation.py:396-496", effect="none on clips of up to seven frames"
    )
    """Earlier frames to propagate from, beside the first."""
    radius: int | None = Field(default=6, ge=0)
    """How far a label may move, in patches to each side; 0, as in the released code, or null for no limit."""
    top_k: int = Field(default=5, ge=1)
    """Most similar patches that a patch takes its label from."""
    propagation_temperature: float = Field(default=0.1, gt=0)
    """Of the softmax over the kept patches' cosine similarities."""
    student_temperature: float = Field(default=0.1, gt=0)
    """Of the student's scores in the loss."""
    foreground_mass: Share | None = None
    """Learn only from the patches of the last frame that hold this share of the CLS token's attention; null for all patches."""

    lr: LearningRate = Field(default=1e-4, gt=0)
    """Learning rate of head and prototypes, falling to 0 along a cosine."""
    backbone_lr: LearningRate = Field(default=1e-5, gt=0)
    """Learning rate of the trainable blocks, falling likewise."""
    weight_decay: float = Field(default=0.04, ge=0)
    """Weight decay at the start; none on biases and one-dimensional parameters."""
    weight_decay_end: float = Field(default=0.4, ge=0)
    """Weight decay at the end of the cosine."""

    red_std: Annotated[float, Field(gt=0)] | None = switch(
        paper=0.229, released=0.228, source="time_tuning.py:588-594", effect="a typing error in the normalization"
    )
    """Standard deviation that red is normalized with."""
    swapped_momentum: bool | None = deviation(source="time_tuning.py:109-118", effect="the teacher is all but the student")
    """Take `momentum` as the share of the student."""

    @classmethod
    def published_settings(cls, labels: Labels) -> dict[str, tuple[Any, ...]] | None:
        """The released code's on YouTube-VOS: 100 passes of 22 steps each, the last one of which has fewer than 128 clips."""
        if (labels.method, labels.init, labels.arch) != ("TimeT", "DINO", "ViT-S/16"):
            return None
        return {**cls(compat="released").all_settings(), "epochs": (100.0, None), "steps": (None, 2200)}

    def sides(self) -> dict[str, int]:
        """As of any method."""
        return {"size": self.size}

    def across_samples(self) -> str | None:
        """Sinkhorn."""
        return "Time-Tuning's Sinkhorn shares the prototypes out among the patches of the whole batch"

    def samples(self, amount: Amount) -> int:
        """A clip of each sequence, of each stretch of a video file, or of each image."""
        if amount.kind == "video":
            return max(amount.parts, round(amount.seconds / self.segment_seconds))
        return amount.parts if amount.kind == "sequences" else amount.frames

    def step_work(self, arch: Architecture) -> Work:
        """The frozen blocks see each frame once, the others too, of which the last frame's learn; the teacher assigns the first frame."""
        resolved, clips, blocks = self.resolved(), self.batch_size, self.trainable_blocks
        widths, patches = [arch.dim, *self.head_widths], tokens(arch, self.size) - tokens(arch, 0)
        head = patches * (mlp(widths) + 2 * self.head_widths[-1] * self.prototypes)
        last = vit(arch, self.size, blocks=blocks)
        assigned = self.frames if resolved.assigned_frames == "all" else 1
        teacher = assigned * (head + (last if resolved.teacher else 0))
        flops = clips * (self.frames * vit(arch, self.size) + BACKWARD * last + LEARN * head + teacher)
        values = clips * (kept(arch, self.size, blocks=blocks) + 2 * patches * sum([*self.head_widths, self.prototypes]))
        learnt = parameters(arch, blocks) + mlp_parameters(widths)
        return Work(flops, kept=values, learnt=learnt, fixed=2 * parameters(arch) - parameters(arch, blocks))

    @field_validator("radius")
    @classmethod
    def no_window(cls, radius: int | None) -> int | None:
        """0 and null are one setting, with one hash."""
        return radius or None

    @model_validator(mode="before")
    @classmethod
    def length_of_the_variant(cls, values: Any) -> Any:
        """The simplified variant trains longer, unless a study or a preset says how long."""
        unsaid = isinstance(values, dict) and all(values.get(name) is None for name in (*LENGTHS, "preset"))
        return {**values, "epochs": 800} if unsaid and values.get("variant") == "simplified" else values


SETTINGS = TimeTuningSettings
