"""Settings of NeCo."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from densewalk.core.resources import Resources
from densewalk.core.settings import Difference, Epochs, LearningRate, ShareRange, deviation, switch
from densewalk.models.architecture import Architecture
from densewalk.models.catalog import Labels
from densewalk.models.work import BACKWARD, Work, kept, mlp, mlp_parameters, parameters, tokens, vit
from densewalk.training.settings import PresetSettings

_S14: dict[str, Any] = {"global_size": 518, "local_size": 98, "batch_size": 64, "epochs": 25, "backbone_lr": 1e-5, "queue": 8192}
_B14: dict[str, Any] = {**_S14, "batch_size": 16}
_S16: dict[str, Any] = {"global_size": 224, "local_size": 96, "batch_size": 45, "epochs": 50, "backbone_lr": 1e-5, "queue": 0}
_README: dict[str, Any] = {"local_size": 98, "batch_size": 6, "epochs": 50, "backbone_lr": 1e-6, "queue": 0}
# (method, init, architecture) of published.csv -> the configuration of its training. None is released for iBOT and CrIBo, which are in
# the paper's Tab. 3 only: they are taken to be trained as DINO there
_PUBLISHED: dict[tuple[str, str, str], str] = {
    ("NeCo", "DINOv2", "ViT-S/14"): "small/neco_dinov2",
    ("NeCo", "DINOv2R", "ViT-S/14"): "small/neco_dinov2r_xr",
    ("NeCo (registers kept)", "DINOv2R", "ViT-S/14"): "small/neco_dinov2r",
    ("NeCo", "DINOv2", "ViT-B/14"): "base/neco_dinov2",
    ("NeCo", "DINOv2R", "ViT-B/14"): "base/neco_dinov2r_xr",
    ("NeCo (registers kept)", "DINOv2R", "ViT-B/14"): "base/neco_dinov2r",
    ("NeCo", "Leopart", "ViT-S/16"): "small/neco_leopart",
    ("NeCo", "TimeT", "ViT-S/16"): "small/neco_timetuning",
    **{("NeCo", init, "ViT-S/16"): "small/neco_dino" for init in ("DINO", "iBOT", "CrIBo")},
}


class NecoSettings(PresetSettings):
    """NeCo (https://arxiv.org/abs/2408.11054); defaults are the recipe of the released DINOv2 ViT-S/14 models.

    The released code is https://github.com/vpariza/NeCo at commit 3932160; its configurations are presets.
    """

    VERSION: ClassVar[int] = 3
    """3: with `loss_mask` and several processes, the loss is the mean over the patches of all of them.
    2: each global crop draws the patches of its queue by itself, as released; and `compat: released` has `exact_mask`,
    `skip_pairs_without_references`, `foreground_queue` and `separate_cls_position`."""
    RESOURCES: ClassVar[Resources] = Resources(mem_mb=64_000, runtime=1440)
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference("NaN loss (odd_even, steepness 1000)", "P is at least 1e-30", "diffsort"),
        Difference(
            "stochastic depth of the last block of DINOv2's networks keeps a subset of the batch of fixed size",
            "each image of its own in every block: the same mean, more spread in small batches",
            "dinov2, layers/block.py",
        ),
    )
    # name of a released model's configuration -> what it sets
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "small/neco_dinov2": _S14,
        "small/neco_dinov2r": _S14,
        "small/neco_dinov2r_xr": {**_S14, "registers": "drop"},
        "base/neco_dinov2": {**_B14, "backbone_lr": 5e-6},
        "base/neco_dinov2r": {**_B14, "backbone_lr": 1e-6},
        "base/neco_dinov2r_xr": {**_B14, "backbone_lr": 1e-6, "registers": "drop"},
        "small/neco_dino": _S16,
        "small/neco_leopart": _S16,
        "small/neco_timetuning": _S16,
        "neco_224x224": {**_README, "global_size": 224},
        "neco_518x518": {**_README, "global_size": 518},
        # no released one: a vit_micro_patch16 that has learned already, on a video of minutes
        "small_video": {
            "global_size": 160,
            "local_size": 96,
            "local_crops": 2,
            "batch_size": 8,
            "steps": 300,
            "drop_path": 0.0,
            "head_hidden": 256,
            "head_out": 64,
            "queue": 0,
            "teacher_momentum": 0.99,
            "backbone_lr": 1e-4,
            "head_lr": 1e-3,
            "weight_decay_end": 0.04,
        },
    }

    SAME_NUMBERS: ClassVar[tuple[str, ...]] = ("teacher_graph", "unused_patches")

    preset: str | None = None
    """A released model's configuration, or `small_video`; keys given beside it win. The paper's NeCo is small/neco_dinov2r_xr."""
    batch_size: int = Field(default=64, ge=1)
    """Images of one optimizer step over all processes together."""
    epochs: Epochs | None = 25
    """Passes over the data. Exactly one of `epochs` and `steps`."""

    global_size: int = Field(default=518, ge=16)
    """Side of a global crop in pixels."""
    local_size: int = Field(default=98, ge=8)
    """Side of a local crop in pixels."""
    global_crops: int = Field(default=2, ge=2)
    """Global crops of an image; the teacher sees these."""
    local_crops: int = Field(default=4, ge=0)
    """Local crops of an image."""
    global_scale: ShareRange = (0.25, 1.0)
    """Share of the image's area that a global crop covers, from and to."""
    local_scale: ShareRange = (0.05, 0.25)
    """Share of the image's area that a local crop covers, from and to."""
    min_overlap: float = Field(default=0.01, ge=0, lt=1)
    """Crops are drawn again until they share this part of the image with each earlier global crop (twice it, if global)."""

    registers: Literal["keep", "drop"] = "keep"
    """Keep or drop the initial backbone's register tokens."""
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    """Stochastic depth of the student's last block, growing linearly from the first."""
    trainable_blocks: int | None = Field(default=None, ge=1)
    """Last blocks of the backbone that learn, with its final norm; null for all of the backbone."""
    head_hidden: int = Field(default=2048, ge=1)
    """Width of the head's hidden layers."""
    head_out: int = Field(default=256, ge=1)
    """Dimension in which patches are compared."""
    aligned_patches: int = Field(default=7, ge=1)
    """Patches along a side of the region that two crops share; its square is the number of references."""

    network: Literal["bitonic", "odd_even"] = "bitonic"
    """Sorting network."""
    relaxation: Literal["cauchy", "logistic", "gaussian", "reciprocal", "optimal"] = "cauchy"
    """Sigmoid that softens the comparisons."""
    student_steepness: float = Field(default=100.0, gt=0)
    """How close to a hard sort the student's is."""
    teacher_steepness: float = Field(default=100.0, gt=0)
    """How close to a hard sort the teacher's is."""
    distance: Literal["cosine", "euclidean"] = "cosine"
    """Distance of patches to the references by which these are ordered."""
    queue: int = Field(default=8192, ge=0)
    """Earlier patches of the teacher, per global crop, that references are drawn from; 0 draws them from the batch."""
    queue_patches_per_image: int = Field(default=10, ge=1)
    """Patches of each image that enter the queue."""
    loss_mask: Literal["all", "foreground", "background"] = "all"
    """Patches to learn from and to draw references from, by the teacher's CLS attention."""
    foreground_mass: float = Field(default=0.6, gt=0, le=1)
    """Share of the attention that the foreground holds."""

    teacher_momentum: float = Field(default=0.9995, ge=0, le=1)
    """Share of the old teacher in each update at the start, rising to 1 along a cosine."""
    backbone_lr: LearningRate = Field(default=1e-5, gt=0)
    """Learning rate of the backbone, falling to 0 along a cosine."""
    head_lr: LearningRate = Field(default=1e-4, gt=0)
    """Learning rate of the head, falling likewise."""
    weight_decay: float = Field(default=0.04, ge=0)
    """Weight decay at the start; none on biases and one-dimensional parameters."""
    weight_decay_end: float = Field(default=0.5, ge=0)
    """Weight decay at the end of the cosine."""
    clip_grad: float | None = Field(default=None, gt=0)
    """Largest norm of all gradients together; null for no clipping."""

    similarity_order: bool | None = deviation(source="figure 1; neco.py:378-384", effect="the same order from the other end")
    """Order by cosine similarity instead of distance: P differs a little, since a sorting network is not its own mirror image."""
    teacher_graph: bool | None = switch(
        paper=False, released=False, source="neco.py:441", effect="the same loss and student to the last bit, up to 1.5 times the cost"
    )
    """Record the teacher's forward pass for a gradient that nothing uses, as the release does. Off in either mode: it changes no number."""
    unused_patches: bool | None = deviation(source="vit_v2.py:304", effect="the same student, a quarter more global patches")
    """Take the student's patches outside of all shared regions through its last MLP and head, too."""
    unequal_heads: bool | None = deviation(source="utils.py:508", effect="the first targets order the references in an unrelated space")
    """Start student and teacher with different random heads."""
    half_filled_queue: bool | None = deviation(source="neco.py:487", effect="half of the references are zero until it is full")
    """Draw references as if the queue held as many rows for each global crop as for all together."""
    shifted_mask_rows: bool | None = deviation(source="neco.py:463", effect="the masks of other images and crops choose the references")
    """With `loss_mask`: take the masks of the references from the wrong rows of their list."""
    exact_mask: bool | None = deviation(source="neco.py (roi_align of the mask, >= 1.0)", effect="rounding drops patches wholly inside")
    """With `loss_mask`: an aligned patch is in the mask only if its resampled mask is 1 to the last bit, instead of 1 but for rounding."""
    skip_pairs_without_references: bool | None = deviation(
        source="neco.py, after the reference filter (463)", effect="the loss is smaller where masks are empty"
    )
    """With `loss_mask`: skip a pair of crops of which the batch has no reference in the mask, and divide by all pairs all the same.
    Without it such a pair has all patches as references, and the mean is over the pairs with a patch to learn."""
    foreground_queue: bool | None = deviation(source="neco.py:487-508", effect="the queue's references are all foreground")
    """With `loss_mask: foreground`: only patches of the foreground enter the queue."""
    separate_cls_position: bool | None = deviation(
        source="models/vit_v2.py (cls_token and pos_embed)", effect="the CLS token with its position moves by two steps of AdamW at a time"
    )
    """With registers kept: train the CLS token and its entry in the table of positions, one parameter here, as two. They have the same
    gradient, so that their sum makes twice the step at the same weight decay. Without registers they are two in either mode."""
    idle_clipping: bool | None = deviation(source="neco.py, before the backward pass", effect="`clip_grad` does nothing")
    """Ignore `clip_grad`: clip the gradients of the step before, which are not used again."""
    offset_positions: bool | None = deviation(source="models/vit_v2.py", effect="position embeddings of DINOv2R are resampled as DINOv2's")
    """Resample position embeddings with DINO's offset and without antialias, also those of DINOv2 with registers."""
    cut_remainder: bool | None = deviation(source="configs/models/small/neco_dino", effect="98 px crops lose two pixels at patch 16")
    """Accept crops that are no multiple of the patch size and cut off the rest, though boxes count it. Without it, presets have 96 px."""

    @classmethod
    def preset_beside(cls, values: dict[str, Any]) -> dict[str, Any]:
        """The release cuts local crops of 98 px at patch 16, too; see `cut_remainder`."""
        preset = super().preset_beside(values)
        if preset["global_size"] == 224 and preset["local_size"] == 96 and values.get("compat") == "released":
            preset["local_size"] = 98
        return preset

    @classmethod
    def published_settings(cls, labels: Labels) -> dict[str, tuple[Any, ...]] | None:
        """Those of the released configuration, run by the released code."""
        preset = _PUBLISHED.get((labels.method, labels.init, labels.arch))
        return cls(preset=preset, compat="released").all_settings() if preset else None

    def sides(self) -> dict[str, int]:
        """As of any method; none where what is left over is cut off."""
        return {} if self.resolved().cut_remainder else {"global_size": self.global_size, "local_size": self.local_size}

    def across_samples(self) -> str | None:
        """References are drawn from the batch."""
        return "NeCo draws its references from the patches of the whole batch"

    def step_work(self, arch: Architecture) -> Work:
        """Both networks see the global crops, the student the local ones too; the head sees every patch."""
        blocks = self.trainable_blocks or arch.depth
        widths = [arch.dim, self.head_hidden, self.head_hidden, self.head_out]
        flops = values = 0.0
        for crops, size, taught in ((self.global_crops, self.global_size, 1), (self.local_crops, self.local_size, 0)):
            images, patches = crops * self.batch_size, tokens(arch, size) - tokens(arch, 0)
            forward = vit(arch, size) + patches * mlp(widths)
            learning = vit(arch, size, blocks=blocks) + patches * mlp(widths)
            flops += images * ((1 + taught) * forward + BACKWARD * learning)
            values += images * (kept(arch, size, blocks=blocks) + 2 * patches * sum(widths[1:]))
        both = parameters(arch) + mlp_parameters(widths)
        return Work(flops, kept=values, learnt=both, fixed=both)


SETTINGS = NecoSettings
