"""Settings of detection and instance segmentation on COCO, through mmdetection."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.core.settings import MOST_STEPS, LearningRate, switch
from densewalk.data.benchmarks import sizes
from densewalk.evaluations.common.presets import PresetSettings
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown, is_published
from densewalk.models.architecture import Architecture
from densewalk.models.work import LEARN, Work, conv, kept, mlp, parameters, vit

HEADS = {"cascade": "Cascade Mask R-CNN (iBOT)", "maskrcnn": "Mask R-CNN, simple feature pyramid"}


class CocoSettings(PresetSettings):
    """A detector on the fine-tuned backbone. `root` holds annotations/instances_{train,val}2017.json, train2017, val2017.

    `cascade` is the detector of iBOT for ViT-S, 1x schedule, which DoRA follows (https://arxiv.org/abs/2111.07832, appendix;
    https://github.com/bytedance/ibot, evaluation/README.md). `maskrcnn` is cheaper: Mask R-CNN on the simple feature pyramid of
    ViTDet (https://arxiv.org/abs/2203.16527). Schedule, optimizer (iBOT's weight decay 0.05, not ViTDet's 0.1) and augmentation are
    the same, so that a difference is due to the detector alone. It has no published counterpart.
    """

    TABLE: ClassVar[str] = "coco"
    LEARNS: ClassVar[bool] = True
    VERSION: ClassVar[int] = 1
    TITLE: ClassVar[str] = "Detection and instance segmentation (COCO)"
    RESOURCES: ClassVar[Resources] = Resources(mem_mb=64_000, runtime=2880)
    NEEDS: ClassVar[frozenset[str]] = frozenset({"levels"})
    METRICS: ClassVar[dict[str, Metric]] = {
        "AP_box": Metric("%", "box AP at IoU 0.50:0.95"),
        "AP50_box": Metric("%", "box AP at IoU 0.50"),
        "AP75_box": Metric("%", "box AP at IoU 0.75"),
        "AP_mask": Metric("%", "mask AP at IoU 0.50:0.95"),
        "AP50_mask": Metric("%", "mask AP at IoU 0.50"),
        "AP75_mask": Metric("%", "mask AP at IoU 0.75"),
    }

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "small": {},
        "base": {"batch_size": 16, "layer_decay": 0.75, "drop_path": 0.2},
    }

    preset: Literal["small", "base"] = "small"
    """A published recipe, for ViT-S or ViT-B; other keys that are given win over its values."""
    head: Annotated[Literal["cascade", "maskrcnn"], Shown(lambda s: HEADS[s.head])] = "cascade"
    """The detector."""
    epochs: Annotated[float, Shown(lambda s: s.length)] = Field(default=12.0, gt=0, le=MOST_STEPS)
    """Passes over the training images."""
    iterations: Annotated[int | None, SHOWN_BY_ANOTHER] = Field(default=None, ge=1, le=MOST_STEPS)
    """Optimizer steps; if given, `epochs` counts for nothing."""
    batch_size: Annotated[int, Shown("batch {}")] = Field(default=32, ge=1)
    """Images of one optimizer step. With b instead of the preset's B, the learning rate is multiplied by b / B and warmup by B / b,
    as far as they are not given: as many images are seen (linear scaling, https://arxiv.org/abs/1706.02677)."""
    learning_rate: LearningRate = Field(default=1e-4, gt=0)
    """AdamW's, for the detector; layers of the backbone have less, see `layer_decay`."""
    weight_decay: float = Field(default=0.05, ge=0)
    """AdamW's; biases and other one-dimensional parameters are not decayed."""
    layer_decay: float = Field(default=0.8, gt=0, le=1)
    """Factor on the learning rate per block below the head."""
    decay_position_embedding: bool = switch(
        default=True, paper=False, released=True, source="layer_decay_optimizer_constructor.py", effect="in all published results"
    )
    """Decay position embeddings, CLS and registers like other weights: the list of exceptions in BEiT's, iBOT's and mmsegmentation's
    code misses the prefix `backbone.` and never matches."""
    warmup: int = Field(default=500, ge=0)
    """Iterations of linear warm-up from a thousandth of the learning rate."""
    lr_drops: list[float] = Field(default=[8 / 12, 11 / 12])
    """Parts of the training after which the learning rate is divided by ten."""
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    """Stochastic depth's rate at the last block."""
    levels: list[int] | None = Field(default=None, min_length=4, max_length=4)
    """`cascade`: blocks, from 0, whose maps make the pyramid; by default a third, half, two thirds and all of the depth: 3, 5,
    7, 11 of 12. `maskrcnn` takes the last map alone. Of a hierarchical network both take the last four stages, by an FPN."""
    final_norm: bool = False
    """Apply the backbone's final LayerNorm to every map that is taken from it."""
    channels: int = Field(default=256, ge=1)
    """Channels of the pyramid and of the detector's convolutions."""
    short_sides: list[int] = Field(default=list(range(480, 801, 32)), min_length=1)
    """Training images are resized to one of these short sides, drawn at random."""
    crop_augmentation: bool = True
    """Half of the training images are resized to 400, 500 or 600, cropped to 384-600 and resized again (DETR's augmentation)."""
    test_short_side: int = Field(default=800, ge=16)
    """Short side of the test images."""
    long_side: int = Field(default=1333, ge=16)
    """Upper limit of the long side when images are resized."""
    proposals: int = Field(default=2000, ge=1)
    """Region proposals kept per training image; half as many in the test."""
    rois_per_image: int = Field(default=512, ge=1)
    """Regions per image on which the heads are trained."""
    gradient_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, more time, the same numbers."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        """Require drops in order and inside the training, and no levels where they would do nothing."""
        if self.lr_drops != sorted(self.lr_drops) or not all(0 < part < 1 for part in self.lr_drops):
            raise ValueError(f"lr_drops {self.lr_drops} must be ascending parts of the training, between 0 and 1")
        if self.head == "maskrcnn" and self.levels is not None:
            raise ValueError("levels: maskrcnn takes the last map alone; leave levels out or choose head: cascade")
        return self

    def total_iterations(self, images: int) -> int:
        """Optimizer steps for a training set of so many images."""
        return self.iterations or max(1, round(self.epochs * images / self.batch_size))

    def work(self, arch: Architecture) -> Work | None:
        """The training images through backbone and detector, forward and backward, and the test images; images of 4 : 3."""
        if self.dataset != "COCO":
            return None
        training, validation = sizes.IMAGES["coco"]
        sides = [(short, min(self.long_side, short * 4 // 3)) for short in (*self.short_sides, self.test_short_side)]
        forward = [vit(arch, *side) + self.head_flops(*side) for side in sides]
        mean = sum(forward[:-1]) / len(self.short_sides)
        flops = self.total_iterations(training) * self.batch_size * LEARN * mean + validation * forward[-1]
        # the largest images, to which a batch is padded
        short, long = max(self.short_sides), self.long_side
        heads = self.batch_size * self.head_values(short, long)
        values = self.batch_size * kept(arch, short, long) + heads
        return Work(flops, kept=values, outside=heads, learnt=parameters(arch) + 25e6, bfloat16=True)

    def head_values(self, height: int, width: int) -> float:
        """Values that the backward pass reads of one image's pyramid, proposals and regions, a quarter of which have a mask.

        Measured on fake tensors (tests/evaluations/test_mmlab_cuda.py): for each channel and position of the finest level 6 values, with
        the simple pyramid's norms 9; for each of a region's 7 x 7 in Cascade's box heads 8, for each of its 14 x 14 in a mask head 7.1.
        """
        c, cascade = self.channels, self.head == "cascade"
        stages, level, box = (3, 6, 49 * 8 * c) if cascade else (1, 9, 49 * c)
        return height * width / 16 * level * c + stages * self.rois_per_image * (box + 196 * 7.1 * c / 4)

    @property
    def normalizes_batches(self) -> bool:
        """Cascade's pyramid and box heads do; those of Mask R-CNN normalize each position, or nothing."""
        return self.head == "cascade"

    def head_flops(self, height: int, width: int) -> float:
        """Operations of pyramid, proposals and region heads on one image; a quarter of the regions have a mask."""
        c, stages = self.channels, 3 if self.head == "cascade" else 1
        dense = sum(2 * conv(height * width / stride**2, c, c, 3) for stride in (4, 8, 16, 32, 64))
        box = mlp([49 * c, 1024, *([1024] if stages == 1 else [])]) + (4 * conv(49, c, c, 3) if stages == 3 else 0.0)
        mask = 4 * conv(196, c, c, 3) + conv(784, c, c)
        return dense + stages * self.rois_per_image * (box + mask / 4)

    @property
    def length(self) -> str:
        """The schedule's length, in words."""
        if self.iterations is not None:
            return f"{self.iterations} it"
        return "1x" if self.epochs == 12 else f"{self.epochs:g} epochs"

    @property
    def published_protocol(self) -> str | None:
        """iBOT's protocol for ViT-S or ViT-B, if nothing that matters was changed."""
        return "Cascade Mask R-CNN 1x" if self.dataset == "COCO" and is_published(self) else None


SETTINGS = {"coco": CocoSettings}
