"""Settings of iBOT, and of what DINOv2 shares with it."""

import math
import operator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from densewalk.core.errors import UserError
from densewalk.core.metric import Ceiling
from densewalk.core.resources import Resources
from densewalk.core.settings import Difference, Epochs, LearningRate, ShareRange
from densewalk.methods.dino.settings import SMALL_VIDEO, SelfDistillationSettings
from densewalk.models.architecture import Architecture
from densewalk.models.work import LEARN, Work, kept, mlp, mlp_parameters, parameters, vit

Ratio = Annotated[float, Field(ge=0, le=1)]


class MaskedDistillationSettings(SelfDistillationSettings):
    """Self-distillation of CLS tokens and of masked patches (iBOT, DINOv2)."""

    PICTURES: ClassVar[dict[str, str]] = {
        "prototypes": "Images and masked images: the teacher's prototype of each patch, and the student's from the masked image alone."
    }

    resize_positions: bool = Field(default=False, exclude_if=operator.not_)
    """The start's table of positions is resized once, to the grid of a global view, before the first step (bicubic, antialias). Else it
    keeps its grid, is resampled in each step, and learns through that. For a start that has learned at another size; DINOv2's and Franca's
    last steps at 518 px do so."""

    epoch_steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps that all settings count as an epoch; null: one pass over the data."""

    mask_ratio: tuple[Ratio, Ratio] = (0.1, 0.5)
    """Share of the patches that a masked view lacks, from and to."""
    mask_probability: float = Field(default=0.5, ge=0, le=1)
    """Share of the global views that are masked."""
    mask_shape: Literal["block", "random"] = "block"
    """`block`: blocks of patches. `random`: single patches."""
    mask_rule: Literal["view", "batch"] = "view"
    """`view`: each view is masked by itself, with `mask_probability` (iBOT). `batch`: exactly that share of a process's views is, in equal
    steps from the smallest to the largest ratio (DINOv2)."""

    cls_loss_weight: float = Field(default=1.0, ge=0)
    """Weight of DINO's loss on CLS tokens."""
    patch_loss_weight: float = Field(default=1.0, ge=0)
    """Weight of the loss on masked patches."""
    koleo_weight: float = Field(default=0.0, ge=0)
    """Weight of the KoLeo regularizer, summed over the two masked global views as DINOv2 does; in `dino` it is their mean."""

    head: Literal["shared", "separate", "shared_mlp"] = "shared"
    """`shared`: one head for CLS and patches. `separate`: one each (DINOv2). `shared_mlp`: one MLP, prototypes of their own (iBOT)."""
    patch_out_dim: Annotated[int, Field(ge=2)] | None = None
    """Prototypes of the patches, unless `head: shared`; null: as many as `out_dim`."""
    patch_head_bottleneck: int = Field(default=256, ge=1)
    """`head: separate`: width in front of the patches' prototypes."""
    center_patches: Literal["all", "masked"] = "all"
    """Centering `mean`: the patches whose mean logits their center follows, all (iBOT) or those that are masked (DINOv2)."""

    patch_temperature: Annotated[float, Field(gt=0)] | None = None
    """Temperature of the teacher's softmax over patches' prototypes after its warm-up; null follows `teacher_temperature`."""
    patch_temperature_start: Annotated[float, Field(gt=0)] | None = None
    """The same at the start; null follows `teacher_temperature_start`."""
    patch_temperature_epochs: Annotated[int, Field(ge=0)] | None = None
    """Epochs of this warm-up; null follows `teacher_temperature_epochs`."""
    temperature_steps: Literal["epoch", "step"] = "epoch"
    """The teacher's temperatures rise once an epoch (iBOT) or in every step (DINOv2)."""

    lr_scaling: Literal["linear", "sqrt"] = "linear"
    """The rate used: `linear` lr * batch_size / 256, `sqrt` lr * sqrt(batch_size / 1024)."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor of the learning rate from each block to the one before it; embeddings are before the first, the final norm has 1."""
    patch_embed_lr_factor: float = Field(default=1.0, gt=0)
    """Further factor of the patches' projection."""
    drop_path_uniform: bool = False
    """The same stochastic depth in all blocks, not growing from the first to the last."""
    drop_path_batch_subset: bool = False
    """Stochastic depth computes a random subset of the images of fixed size, in place of a draw for each image."""
    decay_rule: Literal["vectors", "names"] = "vectors"
    """No weight decay: `vectors` on biases and one-dimensional parameters, `names` on biases, norms and LayerScale (DINOv2)."""
    clip_scope: Literal["tensor", "network"] = "tensor"
    """What `clip_grad` is the largest gradient norm of: each parameter tensor, or the backbone and each head as a whole (DINOv2)."""
    freeze_last_layer: Literal["gradient", "rate"] = "gradient"
    """How prototypes are kept from learning: `gradient` drops it, `rate` sets the learning rate to 0, and AdamW's moments fill (DINOv2)."""

    @property
    def peak_lr(self) -> float:
        """The learning rate after its warm-up."""
        return super().peak_lr if self.lr_scaling == "linear" else self.lr * math.sqrt(self.batch_size / 1024)

    @property
    def patch_prototypes(self) -> int:
        """Prototypes of the patches."""
        return self.out_dim if self.head == "shared" or self.patch_out_dim is None else self.patch_out_dim

    def total_steps(self, samples: int) -> tuple[int, int]:
        """Optimizer steps in all and per epoch; with `epoch_steps` whatever the data hold, which must be a batch."""
        total, per_epoch = super().total_steps(samples)
        if self.epoch_steps is None:
            return total, per_epoch
        if self.steps is None:
            assert self.epochs is not None
            total = max(1, round(self.epochs * self.epoch_steps))
        return total, self.epoch_steps

    def obstacle(self) -> str | None:
        """As DINO's; a ratio of masks that falls, and a batch without a masked view."""
        if self.mask_ratio[0] > self.mask_ratio[1]:
            return f"mask_ratio {list(self.mask_ratio)} ends below its beginning"
        return self.obstacle_to_masks(1) or super().obstacle()

    def obstacle_to_parts(self, parts: int, processes: int = 1) -> str | None:
        """As DINO's, and as `obstacle` for the views of one process."""
        return self.obstacle_to_masks(processes) or super().obstacle_to_parts(parts, processes)

    def obstacle_to_masks(self, processes: int) -> str | None:
        """Why no view of a process's batch would ever be masked; None where some are."""
        views = 2 * (self.batch_size // processes)
        if self.mask_rule != "batch" or not self.patch_loss_weight or not self.mask_probability or int(views * self.mask_probability):
            return None
        found = f"mask_probability {self.mask_probability:g} of the {views} global views of a process masks none of them"
        return f"{found}; allowed: at least {1 / views:g}; to do: raise it, or batch_size"

    def ceilings(self) -> dict[str, Ceiling]:
        """The entropies of even answers over all prototypes, and RankMe's number of images."""
        even = Ceiling(math.log(self.patch_prototypes), f"ln {self.patch_prototypes}")
        patches = {"patch_entropy": even, "patch_mean_entropy": even}
        return {**super().ceilings(), **patches, "feature_rank": Ceiling(64, "64, the images that it looks at")}

    def across_samples(self) -> str | None:
        """As DINO's, and a center of masked patches, whose number differs between parts: their mean is still that of all of them."""
        return super().across_samples()

    def require_masks(self, patch: int) -> tuple[int, int]:
        """The grid of a global view; UserError if no view can have a masked patch."""
        side = self.global_size // patch
        if self.patch_loss_weight and (self.mask_probability == 0 or int(side * side * self.mask_ratio[1]) < 1):
            found = f"mask_ratio {list(self.mask_ratio)} with mask_probability {self.mask_probability:g}"
            raise UserError(f"{found} masks none of the {side * side} patches of a global view", todo="raise them, or global_size")
        return side, side

    def step_work(self, arch: Architecture) -> Work:
        """Two global views for both networks, local ones for the student; heads on CLS and, on average, the masked patches."""
        b, patches = self.batch_size, (self.global_size // arch.patch) ** 2
        masked = 2 * b * patches * self.mask_probability * sum(self.mask_ratio) / 2
        cls_head = [arch.dim, *self.head_widths]
        bottleneck = self.patch_head_bottleneck if self.head == "separate" else self.head_bottleneck
        patch_head = [arch.dim, self.head_hidden, self.head_hidden, bottleneck, self.patch_prototypes]
        taught = 2 * b * patches if self.centering == "mean" and self.center_patches == "all" else masked
        teacher = 2 * b * (vit(arch, self.global_size) + mlp(cls_head)) + taught * mlp(patch_head[:-1]) + masked * mlp(patch_head[-2:])
        local = self.local_crops * b
        student = 2 * b * vit(arch, self.global_size) + local * vit(arch, self.local_size, cls_only=True)
        student += (2 * b + local) * mlp(cls_head) + masked * mlp(patch_head)
        heads = mlp_parameters(cls_head) + (0 if self.head == "shared" else mlp_parameters(patch_head))
        both = parameters(arch) + heads
        in_blocks = 2 * b * kept(arch, self.global_size) + local * kept(arch, self.local_size)
        in_heads = 2 * ((2 * b + local) * sum(self.head_widths) + masked * sum(patch_head[1:]))
        return Work(teacher + LEARN * student, kept=in_blocks + in_heads, outside=in_heads, learnt=both, fixed=both)


# one head and as many prototypes as a batch of such patches can fill; KoLeo is a sum here, a mean in DINO's preset
SMALL_MASKED: dict[str, Any] = {
    **SMALL_VIDEO,
    "koleo_weight": 0.15,
    "teacher_temperature": 0.01,
    "teacher_temperature_start": 0.01,
    "norm_last_layer": True,
    "batch_size": 16,
    "steps": 530,
    "lr": 5e-4 * 256 / 16,
    "warmup_epochs": 2,
    "teacher_temperature_epochs": 0,
}


class IbotSettings(MaskedDistillationSettings):
    """iBOT (https://arxiv.org/abs/2111.07832) on video frames or images; defaults are the released recipe for ViT-S/16, 800 epochs.

    The released code is https://github.com/bytedance/ibot at commit da316d8. `compat` changes nothing.
    """

    RESOURCES: ClassVar[Resources] = Resources(gpu=8, threads=64, mem_mb=256_000, runtime=5760)
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference("views made by Pillow", "by torch: pixels differ in the last digits", "loader.py"),
        Difference("student and teacher may have other heads, of which parameters of one name are averaged", "one head", "main_ibot.py"),
        Difference("logits of all patches are computed", "of masked ones: the center needs only their mean", "models/head.py"),
    )
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # main_ibot.py: what runs without options
        "code_default": {
            "epochs": 100,
            "batch_size": 1024,
            "global_scale": (0.14, 1.0),
            "local_crops": 0,
            "teacher_temperature": 0.04,
            "teacher_temperature_epochs": 0,
            "patch_temperature": 0.07,
            "patch_temperature_epochs": 30,
        },
        "small_video": SMALL_MASKED,
    }

    batch_size: int = Field(default=1024, ge=1)
    """Images of one optimizer step over all processes together."""
    epochs: Epochs | None = 800
    """Passes over the data. Exactly one of `epochs` and `steps`."""
    out_dim: int = Field(default=8192, ge=2)
    """Prototypes of the head."""
    norm_last_layer: bool = False
    """Freeze the prototypes' lengths at 1."""
    teacher_temperature: float = Field(default=0.07, gt=0)
    """Temperature of the teacher's softmax after its warm-up."""
    teacher_temperature_epochs: int = Field(default=30, ge=0)
    """Epochs from the first temperature to the second, linearly, one step an epoch."""
    lr: LearningRate = Field(default=5e-4, gt=0)
    """Peak learning rate, scaled by the batch as `lr_scaling` says."""
    global_scale: ShareRange = (0.25, 1.0)
    """Share of the image's area that a global view covers, from and to."""
    local_scale: ShareRange = (0.05, 0.25)
    """Share of the image's area that a local crop covers, from and to."""
    local_crops: int = Field(default=10, ge=0)
    """Local crops of an image."""


SETTINGS = IbotSettings
