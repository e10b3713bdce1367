"""Settings of DINOv2."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from densewalk.core.resources import Resources
from densewalk.core.settings import Difference, Epochs, LearningRate, ShareRange
from densewalk.methods.ibot.settings import SMALL_MASKED, MaskedDistillationSettings


class DinoV2Settings(MaskedDistillationSettings):
    """DINOv2 (https://arxiv.org/abs/2304.07193) on video frames or images; defaults are its short recipe, ViT-L/16 on ImageNet-1k.

    The released code is https://github.com/facebookresearch/dinov2 at commit b8931f7. `compat` changes nothing. No recipe that trains a
    ViT-S or ViT-B from random weights is published: theirs are distilled from a giant. LayerScale and registers are the architecture's.
    """

    VERSION: ClassVar[int] = 2
    """2: as DINO's 2; biases of queries and values of networks with rotary positions have no weight decay."""
    RESOURCES: ClassVar[Resources] = Resources(gpu=8, threads=64, mem_mb=256_000, runtime=5760)
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference("Sinkhorn gives NaN for logits above 88 temperatures", "it is exact in logarithms", "loss/dino_clstoken_loss.py"),
        Difference("the learning curves show half of KoLeo and of the patch loss", "what is optimized", "train/ssl_meta_arch.py"),
        Difference("views made by Pillow", "by torch: pixels differ in the last digits", "data/augmentations.py"),
    )
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # configs/train/vitl14.yaml, vitg14.yaml
        "long": {
            "batch_size": 3072,
            "epochs": 500,
            "lr": 2e-4,
            "warmup_epochs": 80,
            "weight_decay_end": 0.2,
            "teacher_momentum": 0.994,
            "out_dim": 131072,
            "head": "separate",
            "head_bottleneck": 384,
            "patch_head_bottleneck": 256,
            "centering": "sinkhorn",
            "local_size": 98,
            "drop_path": 0.4,
            "layer_decay": 1.0,
        },
        # the last steps, of a run or a checkpoint at 518 px. DINOv2's appendix: 10,000 steps with all schedules compressed into them, a
        # lower rate and local crops of which no size or value was released. These two are Franca's (configs/vitb14_finetune.yaml)
        "high_resolution": {
            "resize_positions": True,
            "global_size": 518,
            "local_size": 98,
            "epochs": 100,
            "epoch_steps": 100,
            "lr": 7.05e-5,
        },
        # one head, fewer prototypes than a batch has patches: vit_micro_patch16 from scratch on a video of minutes
        "small_video": {
            **SMALL_MASKED,
            "lr": 5e-4 * 8,
            "lr_scaling": "sqrt",
            "batch_size": 16,
            "epoch_steps": None,
            "layer_decay": 1.0,
            "patch_embed_lr_factor": 1.0,
        },
    }

    batch_size: int = Field(default=2048, ge=1)
    """Images of one optimizer step over all processes together."""
    epochs: Epochs | None = 100
    """Epochs of `epoch_steps` steps. Exactly one of `epochs` and `steps`."""
    epoch_steps: int | None = Field(default=1250, ge=1)
    """Optimizer steps that all settings count as an epoch; null: one pass over the data."""
    norm_last_layer: bool = False
    """Freeze the prototypes' lengths at 1."""
    drop_path: float = Field(default=0.3, ge=0, lt=1)
    """Stochastic depth of the student's blocks."""
    drop_path_uniform: bool = True
    """The same stochastic depth in all blocks, not growing from the first to the last."""
    drop_path_batch_subset: bool = True
    """Stochastic depth computes a random subset of the images of fixed size, in place of a draw for each image."""
    mask_rule: Literal["view", "batch"] = "batch"
    """`view`: each view is masked by itself, with `mask_probability` (iBOT). `batch`: exactly that share of a process's views is, in equal
    steps from the smallest to the largest ratio (DINOv2)."""
    koleo_weight: float = Field(default=0.1, ge=0)
    """Weight of the KoLeo regularizer, summed over the two masked global views; in `dino` it is their mean."""
    center_patches: Literal["all", "masked"] = "masked"
    """Centering `mean`: the patches whose mean logits their center follows, all (iBOT) or those that are masked (DINOv2)."""
    teacher_momentum: float = Field(default=0.992, ge=0, le=1)
    """Share of the old teacher in each update at the start, rising to 1 along a cosine."""
    teacher_temperature: float = Field(default=0.07, gt=0)
    """Temperature of the teacher's softmax after its warm-up."""
    teacher_temperature_epochs: int = Field(default=30, ge=0)
    """Epochs from the first temperature to the second, linearly."""
    temperature_steps: Literal["epoch", "step"] = "step"
    """The teacher's temperatures rise once an epoch (iBOT) or in every step (DINOv2)."""
    lr: LearningRate = Field(default=4e-3, gt=0)
    """Peak learning rate, scaled by the batch as `lr_scaling` says."""
    lr_scaling: Literal["linear", "sqrt"] = "sqrt"
    """The rate used: `linear` lr * batch_size / 256, `sqrt` lr * sqrt(batch_size / 1024)."""
    layer_decay: float = Field(default=0.9, gt=0, le=1)
    """Factor of the learning rate from each block to the one before it; embeddings are before the first, the final norm has 1."""
    patch_embed_lr_factor: float = Field(default=0.2, gt=0)
    """Further factor of the patches' projection."""
    decay_rule: Literal["vectors", "names"] = "names"
    """No weight decay: `vectors` on biases and one-dimensional parameters, `names` on biases, norms and LayerScale (DINOv2)."""
    clip_scope: Literal["tensor", "network"] = "network"
    """What `clip_grad` is the largest gradient norm of: each parameter tensor, or the backbone and each head as a whole (DINOv2)."""
    freeze_last_layer: Literal["gradient", "rate"] = "rate"
    """How prototypes are kept from learning: `gradient` drops it, `rate` sets the learning rate to 0, and AdamW's moments fill (DINOv2)."""
    global_scale: ShareRange = (0.32, 1.0)
    """Share of the image's area that a global view covers, from and to."""
    local_scale: ShareRange = (0.05, 0.32)
    """Share of the image's area that a local crop covers, from and to."""


SETTINGS = DinoV2Settings
