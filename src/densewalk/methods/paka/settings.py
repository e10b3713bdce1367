"""Settings of PaKA."""

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from densewalk.core.errors import UserError
from densewalk.core.metric import Ceiling
from densewalk.core.resources import Resources
from densewalk.core.settings import Difference, Epochs, LearningRate, ShareRange, switch
from densewalk.methods.dinov2.settings import DinoV2Settings
from densewalk.models.architecture import Architecture
from densewalk.models.work import LEARN, Work, kept, mlp, mlp_parameters, vit

# what lightly-train's page on DINOv31 says of a post-training of DINOv2's ViT-S/14 on COCO; steps, batch and rate it does not say
_PUBLISHED: dict[str, Any] = {
    "global_size": 518,
    "local_size": 98,
    "aligned_crops": 8,
    "paka_loss_weight": 1.0,
    "weight_decay": 0.04,
    "weight_decay_end": 0.04,
    "epoch_steps": 1000,
    "warmup_epochs": 1,
    "teacher_temperature_epochs": 1,
}


class PakaSettings(DinoV2Settings):
    """PaKA (https://arxiv.org/abs/2509.05606): post-training of DINOv2's weights by DINOv2's losses and by the alignment of kernels.

    Of the paper only the abstract could be read here. The released code is that of other authors: lightly's PatchKernelAlignmentLoss and
    lightly-train's method dinov31. Defaults are the recipe on lightly-train's page, of a network like DINOv2's ViT-S/14. Ours are what it
    does not say: batch, length, and a learning rate of a tenth of DINOv2's, as Franca takes for its own second training.
    """

    RESOURCES: ClassVar[Resources] = Resources(mem_mb=64_000, runtime=1440)
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "heads of DINOv2's training are read, too", "heads begin untrained: a run gives its backbone", "lightly-train, methods/dinov31"
        ),
        Difference("views made by albumentations", "by torch: pixels differ in the last digits", "lightly-train, methods/dinov31"),
    )
    PICTURES: ClassVar[dict[str, str]] = {
        **DinoV2Settings.PICTURES,
        "kernels": "Global crops, local crops inside them, and the cosine of each place with the middle one: the student's from the "
        "local crop, the teacher's from the global crop.",
    }
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "published": _PUBLISHED,
        # a vit_micro_patch16 that has learned already, on a video of minutes
        "small_video": {
            **DinoV2Settings.PRESETS["small_video"],
            "steps": 300,
            "lr": 1e-3,
            "warmup_epochs": 1,
            "local_size": 64,
            "aligned_crops": 2,
            "aligned_scale": (0.2, 0.6),
            "paka_hidden": 256,
            "paka_out": 64,
        },
    }

    batch_size: int = Field(default=64, ge=1)
    """Images of one optimizer step over all processes together."""
    epochs: Epochs | None = 5
    """Epochs of `epoch_steps` steps. Exactly one of `epochs` and `steps`."""
    epoch_steps: Annotated[int, Field(ge=1)] | None = 1000
    """Optimizer steps that all settings count as an epoch; null: one pass over the data."""
    global_size: int = Field(default=518, ge=8)
    """Side of a global view in pixels."""
    local_size: int = Field(default=98, ge=8)
    """Side of a local crop and of a crop to align, in pixels."""

    paka_loss_weight: float = Field(default=1.0, gt=0)
    """Weight of the alignment beside DINOv2's losses, whose weights may be 0."""
    aligned_crops: int = Field(default=8, ge=1)
    """Crops to align; each lies in one of the two global ones, which take turns."""
    aligned_scale: ShareRange = (0.05, 0.4)
    """Share of its global crop's area that a crop to align has, from and to."""
    min_inside: Annotated[float, Field(gt=0, le=1)] | None = switch(
        paper=0.9,
        released=1.0,
        source="section 4, as quoted by lightly-train; its methods/dinov31",
        effect="crops to align never stick out",
    )
    """Smallest share of a crop to align that lies in its global crop."""
    aligned_patches: Annotated[int, Field(ge=2)] | None = None
    """Patches along a side of the grid that is laid over what two crops share; null: as many as a local crop has."""
    most_places: int = Field(default=512, ge=3)
    """Places of the grid that are compared, drawn again in each step where the grid has more."""
    paka_hidden: int = Field(default=2048, ge=1)
    """Width of the hidden layers of the head on aligned patches."""
    paka_out: int = Field(default=256, ge=1)
    """Dimension in which aligned patches are compared."""

    teacher_momentum: float = Field(default=0.994, ge=0, le=1)
    """Share of the old teacher in each update at the start, rising to 1 along a cosine."""
    teacher_temperature_epochs: int = Field(default=1, ge=0)
    """Epochs from the first temperature to the second, linearly."""
    lr: LearningRate = Field(default=4e-4, gt=0)
    """Peak learning rate, scaled by the batch as `lr_scaling` says."""
    warmup_epochs: float = Field(default=1, ge=0)
    """Linear warm-up of the learning rate."""
    weight_decay_end: float = Field(default=0.04, ge=0)
    """Weight decay at the end of the cosine."""
    head: Literal["shared", "separate", "shared_mlp"] = "shared"
    """`shared`: one head for CLS and patches. `separate`: one each (DINOv2). `shared_mlp`: one MLP, prototypes of their own (iBOT)."""

    def ceilings(self) -> dict[str, Ceiling]:
        """As DINOv2's; the loss of kernels that have nothing in common, and RankMe's number of patches."""
        return {**super().ceilings(), "loss_paka": Ceiling(1, "1"), "patch_rank": Ceiling(64, "64, the patches that it looks at")}

    def grid_side(self, patch: int) -> int:
        """Patches along a side of the grid of aligned patches; UserError if it has fewer than three places, whose kernels say nothing."""
        side = self.aligned_patches or self.local_size // patch
        if side < 2:
            found = f"local_size {self.local_size} at patch size {patch} gives a crop one patch, which has no kernel"
            raise UserError(found, todo=f"set local_size to {2 * patch} or more")
        return side

    def step_work(self, arch: Architecture) -> Work:
        """DINOv2's, two more global views for the teacher, the crops to align for the student, and both heads on the grid."""
        base, b = super().step_work(arch), self.batch_size
        crops, places = b * self.aligned_crops, self.grid_side(arch.patch) ** 2
        widths = [arch.dim, self.paka_hidden, self.paka_hidden, self.paka_out]
        head = crops * min(places, self.most_places) * mlp(widths)
        kernels = crops * 2.0 * min(places, self.most_places) ** 2 * self.paka_out
        flops = base.flops + 2 * b * vit(arch, self.global_size) + LEARN * crops * vit(arch, self.local_size)
        flops += (1 + LEARN) * (head + kernels)
        in_head = 2 * crops * min(places, self.most_places) * math.fsum(widths[1:])
        values = base.kept + crops * kept(arch, self.local_size) + in_head
        heads = mlp_parameters(widths)
        return Work(flops, kept=values, outside=base.outside + in_head, learnt=base.learnt + heads, fixed=base.fixed + heads)


SETTINGS = PakaSettings
