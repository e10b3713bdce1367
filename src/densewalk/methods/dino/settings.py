"""Settings of DINO, and of what DoRA shares with it."""

import math
from typing import Any, ClassVar, Literal

from pydantic import Field

from densewalk.core.metric import Ceiling
from densewalk.core.resources import Resources
from densewalk.core.settings import Difference, Epochs, LearningRate, ShareRange
from densewalk.models.architecture import Architecture
from densewalk.models.catalog import Labels
from densewalk.models.work import LEARN, Work, kept, mlp, mlp_parameters, parameters, vit
from densewalk.training.settings import PresetSettings, epochs_in

# vit_micro_patch16 from scratch on a video of minutes (docs/small_video.md). Sinkhorn centering and a sharp teacher let a small batch
# learn, where a moving mean collapses. KoLeo keeps patches apart, which would otherwise tell less than those of random weights.
_NETWORK = {"out_dim": 256, "head_hidden": 256, "head_bottleneck": 64, "drop_path": 0.0}
_OPTIMIZER = {"weight_decay": 0.04, "weight_decay_end": 0.04, "clip_grad": None, "freeze_last_layer_epochs": 0}
_TEACHER = {"teacher_momentum": 0.99, "teacher_temperature": 0.02, "teacher_temperature_start": 0.02, "centering": "sinkhorn"}
_VIEWS = {"global_size": 96, "local_size": 48, "local_crops": 2}
SMALL_VIDEO: dict[str, Any] = {**_NETWORK, **_OPTIMIZER, **_TEACHER, **_VIEWS, "koleo_weight": 0.3}
# DINO's alone: views of a frame agree on less than masked frames do with the whole one
_SHARPER_TEACHER = {"teacher_temperature": 0.01, "teacher_temperature_start": 0.01}


class SelfDistillationSettings(PresetSettings):
    """A student that learns an exponential-moving-average teacher's prototype distribution (DINO, DoRA)."""

    epochs: Epochs | None = 100
    """Passes over the data. Exactly one of `epochs` and `steps`."""

    out_dim: int = Field(default=65536, ge=2)
    """Prototypes of the head."""
    head_hidden: int = Field(default=2048, ge=1)
    """Width of the head's hidden layers."""
    head_bottleneck: int = Field(default=256, ge=1)
    """Width in front of the prototypes."""
    norm_last_layer: bool = True
    """Freeze the prototypes' lengths at 1."""
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    """Stochastic depth of the student's last block, growing linearly from the first."""

    lr: LearningRate = Field(default=5e-4, gt=0)
    """Peak learning rate per 256 samples of the batch; the rate used is lr * batch_size / 256."""
    min_lr: LearningRate = Field(default=1e-6, ge=0)
    """Learning rate at the end of the cosine."""
    warmup_epochs: float = Field(default=10, ge=0)
    """Linear warm-up of the learning rate."""
    weight_decay: float = Field(default=0.04, ge=0)
    """Weight decay at the start; none on biases and one-dimensional parameters."""
    weight_decay_end: float = Field(default=0.4, ge=0)
    """Weight decay at the end of the cosine."""
    clip_grad: float | None = Field(default=3.0, gt=0)
    """Largest gradient norm of each parameter tensor by itself; null for no clipping."""
    freeze_last_layer_epochs: float = Field(default=1, ge=0)
    """The prototypes do not learn before this epoch."""

    teacher_momentum: float = Field(default=0.996, ge=0, le=1)
    """Share of the old teacher in each update at the start, rising to 1 along a cosine."""
    student_temperature: float = Field(default=0.1, gt=0)
    """Temperature of the student's softmax."""
    teacher_temperature: float = Field(default=0.04, gt=0)
    """Temperature of the teacher's softmax after its warm-up."""
    teacher_temperature_start: float = Field(default=0.04, gt=0)
    """Temperature of the teacher's softmax at the start."""
    teacher_temperature_epochs: int = Field(default=0, ge=0)
    """Epochs from the first temperature to the second, linearly, one step an epoch."""
    centering: Literal["mean", "sinkhorn"] = "mean"
    """Keep the teacher from one answer to everything. `mean`: DINO's, subtract a moving mean from its logits. `sinkhorn`: DINOv2's,
    share each batch out evenly among the prototypes, which works from the first step on."""
    center_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Centering `mean`: share of the old center of the teacher's logits in each update."""
    sinkhorn_centering_iterations: int = Field(default=3, ge=1)
    """Centering `sinkhorn`: iterations; few, so that the shares are only roughly even."""

    koleo_weight: float = Field(default=0.0, ge=0)
    """Weight of the KoLeo regularizer on the student's global views, in DoRA on the masked ones (the mean over the
    views; DINOv2's 0.1 of their sum is 0.2 here)."""

    global_size: int = Field(default=224, ge=8)
    """Side of a global view in pixels."""
    global_scale: ShareRange = (0.4, 1.0)
    """Share of the image's area that a global view covers, from and to."""
    local_size: int = Field(default=96, ge=8)
    """Side of a local crop in pixels."""
    local_scale: ShareRange = (0.05, 0.4)
    """Share of the image's area that a local crop covers, from and to."""
    local_crops: int = Field(default=8, ge=0)
    """Local crops of an image (DINO) or of each frame (DoRA)."""

    def sides(self) -> dict[str, int]:
        """As of any method."""
        return {"global_size": self.global_size, "local_size": self.local_size}

    def obstacle(self) -> str | None:
        """Images that KoLeo has no neighbors for; a warm-up that is longer than the training would never reach the learning rate."""
        if obstacle := self.obstacle_to_koleo(1):
            return obstacle
        if self.epochs is not None and self.warmup_epochs > self.epochs:
            return f"warmup_epochs {self.warmup_epochs} are more than epochs {self.epochs}"
        return None

    def obstacle_to_parts(self, parts: int, processes: int = 1) -> str | None:
        """As any method's, and as `obstacle` for the images of one process."""
        return self.obstacle_to_koleo(processes) or super().obstacle_to_parts(parts, processes)

    def obstacle_to_koleo(self, processes: int) -> str | None:
        """Why KoLeo cannot be computed; None where it can."""
        if not self.koleo_weight or self.batch_size // processes * self.sample_images > 1:
            return None
        shared = f", shared by {processes} processes" if processes > 1 else ""
        return f"koleo_weight: KoLeo needs at least two images per process, batch_size is {self.batch_size}{shared}"

    def ceilings(self) -> dict[str, Ceiling]:
        """The entropy of an even answer over all prototypes, of one target and of their mean: at it a target says nothing."""
        even = Ceiling(math.log(self.out_dim), f"ln {self.out_dim}")
        return {"teacher_entropy": even, "teacher_mean_entropy": even}

    def across_samples(self) -> str | None:
        """KoLeo and Sinkhorn centering; a moving mean centers the targets by earlier batches alone."""
        if self.koleo_weight:
            return "koleo_weight spreads the images of a batch apart"
        return "centering: sinkhorn shares the prototypes out among the whole batch" if self.centering == "sinkhorn" else None

    @property
    def sample_images(self) -> int:
        """Images of a sample, among which KoLeo looks for neighbors, too."""
        return 1

    @property
    def peak_lr(self) -> float:
        """The learning rate after its warm-up."""
        return self.lr * self.batch_size / 256

    @property
    def head_widths(self) -> list[int]:
        """Widths of the head's layers behind the backbone."""
        return [self.head_hidden, self.head_hidden, self.head_bottleneck, self.out_dim]

    def views_work(self, arch: Architecture, *, taught: int, whole: int, local: int) -> Work:
        """The work of a step on so many images: of the teacher, and of the student in the size of global and of local views."""
        widths = [arch.dim, *self.head_widths]
        teacher = taught * (vit(arch, self.global_size, cls_only=True) + mlp(widths))
        sizes = ((whole, self.global_size), (local, self.local_size))
        student = sum(n * (vit(arch, size, cls_only=True) + mlp(widths)) for n, size in sizes)
        in_head = 2 * (whole + local) * sum(self.head_widths)
        both = parameters(arch) + mlp_parameters(widths)
        in_blocks = sum(n * kept(arch, size) for n, size in sizes)
        return Work(teacher + LEARN * student, kept=in_blocks + in_head, learnt=both, fixed=both)


class DinoSettings(SelfDistillationSettings):
    """DINO on video frames or images (https://arxiv.org/abs/2104.14294); defaults are the released 100-epoch recipe.

    The released code is https://github.com/facebookresearch/dino at commit 7c446df. `compat` changes nothing.
    """

    VERSION: ClassVar[int] = 2
    """2: a warm-up of the teacher's temperature that is longer than the training is cut off, no longer squeezed into it."""
    RESOURCES: ClassVar[Resources] = Resources(gpu=4, threads=32, mem_mb=128_000, runtime=2880)
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference("views made by Pillow", "by torch: pixels differ in the last digits", "main_dino.py:419-467"),
    )
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "small_video": {**SMALL_VIDEO, **_SHARPER_TEACHER, "batch_size": 16, "steps": 530, "lr": 5e-4 * 256 / 16, "warmup_epochs": 2},
    }

    batch_size: int = Field(default=512, ge=1)
    """Images of one optimizer step over all processes together."""

    def step_work(self, arch: Architecture) -> Work:
        """Two global views for both networks, the local ones for the student."""
        return self.views_work(arch, taught=2 * self.batch_size, whole=2 * self.batch_size, local=self.local_crops * self.batch_size)

    @classmethod
    def published_settings(cls, labels: Labels) -> dict[str, tuple[Any, ...]] | None:
        """Its length alone: the release's 800 epochs, or the one in the label; DoRA's authors, who trained on videos, tell 100."""
        usual = 800.0 if labels.pretraining_data.startswith("ImageNet") else 100.0
        known = {"epochs": (epochs_in(labels.pretraining_data) or usual,), "steps": (None,)}
        return known if (labels.method, labels.init) == ("DINO", "") else None


SETTINGS = DinoSettings
