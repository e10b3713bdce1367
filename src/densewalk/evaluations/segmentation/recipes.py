"""Settings of semantic segmentation through mmsegmentation: the recipes, and ADE20K as their data.

`settings.segmentation` has the same recipes on other data.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.core.settings import switch
from densewalk.data.benchmarks.label_rules import LabelRule, class_rule
from densewalk.evaluations.common.presets import completed
from densewalk.evaluations.common.protocol_name import as_published, changes
from densewalk.evaluations.common.settings import EvaluationSettings

# what every protocol's name says by itself; the sizes of a multi-scale test matter in one only
NAMED = ("iterations", "batch_size", "crop", "slide", "window_step", "multi_scale", "test_ratios", "training", "validation")


class SegmentationSettings(EvaluationSettings):
    """What the frozen linear head and UPerNet share, whatever the data."""

    PICTURES: ClassVar[str] = "image, ground truth and prediction of {run}"
    METRICS: ClassVar[dict[str, Metric]] = {
        "mIoU": Metric("%", "mean over the classes that occur or are predicted"),
        "mAcc": Metric("%", "mean recall of the classes that occur"),
        "aAcc": Metric("%", "share of the labelled pixels"),
    }
    PRESETS: ClassVar[dict[str, dict[str, Any]]]
    """Name of a published recipe -> what it sets beside the defaults."""

    preset: str
    """A published recipe; keys given beside it win."""
    iterations: int = Field(ge=1)
    """Optimiser steps."""
    batch_size: int = Field(default=16, ge=1)
    """Images of one optimiser step. With b instead of the preset's B, the learning rate is multiplied by b / B and iterations and
    warmup by B / b, as far as they are not given: as many images are seen (linear scaling, https://arxiv.org/abs/1706.02677)."""
    learning_rate: float = Field(gt=0)
    """AdamW's, at the end of the warm-up."""
    weight_decay: float = Field(ge=0)
    """AdamW's."""
    warmup: int = Field(default=1500, ge=0)
    """Iterations of linear warm-up, on top of the linear decay to 0 that runs from the first to the last iteration."""
    crop: int = Field(default=512, ge=16)
    """Side of the square training crops in pixels."""
    short_side: int = Field(default=512, ge=16)
    """Images are resized to this short side; in training times a factor drawn from `scale_range`."""
    scale_range: tuple[float, float] = (0.5, 2.0)
    """Least and greatest factor."""
    long_side: int | None = Field(default=None, ge=16)
    """Upper limit of the long side when images are resized; null for none. In training times the same factor."""
    final_norm: bool = True
    """Apply the backbone's final LayerNorm to every map that is taken from it."""
    slide: bool
    """Test with overlapping windows of `crop` pixels; otherwise with the whole image."""
    window_step: int | None = Field(default=None, ge=1)
    """Step of the test windows in pixels; by default two thirds of the window, rounded down (341 of 512)."""
    multi_scale: bool = False
    """Test at several sizes, each image also mirrored, and average the softmax: a protocol of its own ("ms")."""
    test_ratios: list[float] = Field(min_length=1)
    """`multi_scale`: the short side is this times `short_side`, but never below `crop`; the long side has no limit."""

    @model_validator(mode="before")
    @classmethod
    def preset_first(cls, values: Any) -> Any:
        """Keys given in the study win over the preset's, which are scaled to the study's batch."""
        return completed(cls, cls.PRESETS, values)

    @model_validator(mode="after")
    def consistent(self) -> Self:
        """There is something after the warm-up, windows overlap or touch, and ranges are in order."""
        if self.warmup >= self.iterations:
            raise ValueError(f"warmup {self.warmup} must be shorter than iterations {self.iterations}")
        if self.stride > self.crop:
            raise ValueError(f"window_step {self.stride} leaves pixels out: at most crop, {self.crop}")
        if not 0 < self.scale_range[0] <= self.scale_range[1] or min(self.test_ratios) <= 0:
            raise ValueError(f"scale_range {self.scale_range} and test_ratios {self.test_ratios} must be above 0, the former ascending")
        return self

    @property
    def rule(self) -> LabelRule:
        """What the pixels of a mask mean."""
        raise NotImplementedError(f"{type(self).__name__} has no label rule")

    @property
    def stride(self) -> int:
        """Step of the test windows in pixels."""
        return self.window_step or self.crop * 2 // 3

    def _name(self, head: str, *shown: str) -> str:
        test = f"slide {self.crop}/{self.stride}" if self.slide else "whole"
        if self.multi_scale:
            test += f", ms + flip at {'/'.join(f'{ratio:g}' for ratio in self.test_ratios)}"
        parts = [head, f"{self.iterations} it", f"batch {self.batch_size}", f"crop {self.crop}", test]
        return ", ".join([*parts, *changes(self, *NAMED, *shown), *self._halves()])

    def _halves(self) -> list[str]:
        """What a name says about the data's halves, where they can be chosen."""
        return []


class LinearSettings(SegmentationSettings):
    """A linear head on the frozen backbone.

    `dinov2`: batch normalisation and a 1x1 convolution on the last layer's map (https://arxiv.org/abs/2304.07193, section 7.4);
    `dinov2_4layers` on the last four, concatenated; `dinov2_ms` those at 640 px, tested at five sizes. `ibot`: a 1x1 convolution
    without normalisation on four layers spread over the depth (https://arxiv.org/abs/2111.07832; https://github.com/bytedance/ibot,
    evaluation/README.md). Not to be mixed, nor with NeCo's (masks of 100 x 100): DINOv2-L scores 47.7 in the first and 41.8 in the
    last.
    """

    RESOURCES: ClassVar[Resources] = Resources(mem_mb=64_000, runtime=1440)
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "dinov2": {},
        "dinov2_4layers": {"layers": 4},
        # what goes beyond the paper's appendix (crops, scales, windows) is known from copies of its configuration only
        "dinov2_ms": {
            "layers": 4,
            "crop": 640,
            "short_side": 640,
            "scale_range": (1.0, 3.0),
            "slide": True,
            "window_step": 320,
            "multi_scale": True,
        },
        "ibot": {
            "layers": "spread",
            "batch_norm": False,
            "iterations": 160_000,
            "learning_rate": 8e-4,
            "weight_decay": 0.05,
            "long_side": 2048,
            "slide": True,
        },
    }

    preset: Literal["dinov2", "dinov2_4layers", "dinov2_ms", "ibot"] = "dinov2"
    """A published recipe; keys given beside it win."""
    iterations: int = Field(default=40_000, ge=1)
    """Optimiser steps."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """AdamW's, at the end of the warm-up."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """AdamW's, of all parameters."""
    layers: Annotated[int, Field(ge=1)] | Literal["spread"] = 1
    """Number of last blocks whose maps are concatenated; `spread`: a third, half, two thirds and all of the depth instead (3, 5, 7,
    11 of 12)."""
    batch_norm: bool = True
    """Normalise the maps before the convolution."""
    slide: bool = False
    """Test with overlapping windows of `crop` pixels; otherwise with the whole image."""
    test_ratios: list[float] = Field(default=[1.0, 1.32, 1.73, 2.28, 3.0], min_length=1)
    """`multi_scale`: the short side is this times `short_side`, but never below `crop`; the long side has no limit."""

    @property
    def protocol(self) -> str:
        """Everything but the data."""
        source = "4 spread layers" if self.layers == "spread" else "last layer" if self.layers == 1 else f"last {self.layers} layers"
        head = "DINOv2: BN + 1x1 conv" if self.batch_norm else "iBOT: 1x1 conv without BN"
        return self._name(f"linear ({head}, {source})", "layers", "batch_norm")


# iBOT's recipe for ViT-B beside the one for ViT-S
_BASE = {"learning_rate": 8e-5, "layer_decay": 0.65}


class UpernetSettings(SegmentationSettings):
    """UPerNet, fine-tuned end to end as iBOT does; `small_160k`, for ViT-S, is also DoRA's.

    https://arxiv.org/abs/2111.07832, appendix; https://github.com/bytedance/ibot, evaluation/README.md. The shorter presets are the
    same recipe with an earlier end, as is customary; they have no published counterpart.
    """

    RESOURCES: ClassVar[Resources] = Resources(mem_mb=64_000, runtime=2880)
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "small_160k": {},
        "small_80k": {"iterations": 80_000},
        "small_40k": {"iterations": 40_000},
        "base_160k": _BASE,
        "base_80k": {**_BASE, "iterations": 80_000},
        "base_40k": {**_BASE, "iterations": 40_000},
    }

    preset: Literal["small_160k", "small_80k", "small_40k", "base_160k", "base_80k", "base_40k"] = "small_160k"
    """A recipe, for ViT-S or ViT-B; keys given beside it win."""
    iterations: int = Field(default=160_000, ge=1)
    """Optimiser steps."""
    learning_rate: float = Field(default=3e-5, gt=0)
    """AdamW's, at the end of the warm-up, for the heads; layers below have less, see `layer_decay`."""
    weight_decay: float = Field(default=0.05, ge=0)
    """AdamW's; biases and other one-dimensional parameters are not decayed."""
    layer_decay: float = Field(default=0.9, gt=0, le=1)
    """Factor on the learning rate per block below the head."""
    decay_position_embedding: bool = switch(
        default=True, paper=False, released=True, source="layer_decay_optimizer_constructor.py", effect="in all published results"
    )
    """Decay position embeddings, CLS and registers like other weights: the list of exceptions in BEiT's, iBOT's and mmsegmentation's
    code misses the prefix `backbone.` and never matches."""
    drop_path: float = Field(default=0.1, ge=0, lt=1)
    """Stochastic depth's rate at the last block."""
    levels: list[int] | None = Field(default=None, min_length=4, max_length=4)
    """Blocks, from 0, whose maps make the pyramid; by default a third, half, two thirds and all of the depth: 3, 5, 7, 11 of 12."""
    channels: int | None = Field(default=None, ge=1)
    """Channels of the UPerNet head; by default the backbone's width."""
    auxiliary_channels: int = Field(default=256, ge=1)
    """Channels of the auxiliary head on the third level."""
    auxiliary_weight: float = Field(default=0.4, ge=0)
    """Weight of the auxiliary head's loss."""
    long_side: int | None = Field(default=2048, ge=16)
    """Upper limit of the long side when images are resized; null for none. In training times the same factor."""
    slide: bool = True
    """Test with overlapping windows of `crop` pixels; otherwise with the whole image."""
    test_ratios: list[float] = Field(default=[0.5, 0.75, 1.0, 1.25, 1.5, 1.75], min_length=1)
    """`multi_scale`: the short side is this times `short_side`, but never below `crop`; the long side has no limit."""
    gradient_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, more time, the same numbers."""

    @property
    def protocol(self) -> str:
        """Everything but the data."""
        return self._name("UPerNet (iBOT)")


class Ade20kData(SegmentationSettings):
    """ADE20K's data. `root` is the folder ADEChallengeData2016 or the one above it."""

    TABLE: ClassVar[str] = "ade20k"
    VERSION: ClassVar[int] = 1
    TITLE: ClassVar[str] = "Semantic segmentation (ADE20K)"
    PUBLISHED: ClassVar[dict[str, str]]
    """Preset -> its name in published.csv."""

    classes: int = Field(default=150, ge=2, le=254)
    """Number of classes: masks hold 0 for `other`, which is ignored, and 1 to `classes`."""

    @property
    def rule(self) -> LabelRule:
        """Labels 1 to `classes`; 0 is not scored."""
        return class_rule(tuple(range(1, self.classes + 1)), 0)

    @property
    def published_protocol(self) -> str | None:
        """The preset's published name, if nothing that matters was changed."""
        return self.PUBLISHED.get(self.preset) if self.dataset == "ADE20K" and as_published(self) else None


class Ade20kLinearSettings(LinearSettings, Ade20kData):
    """Linear segmentation of ADE20K: a linear head on the frozen backbone; see `preset`."""

    # none for dinov2_ms: its windows and training range are known at second hand only
    PUBLISHED: ClassVar[dict[str, str]] = {
        "dinov2": "linear BN+1x1 (DINOv2)",
        "ibot": "linear 4-layer concat (iBOT)",
    }


class Ade20kUpernetSettings(UpernetSettings, Ade20kData):
    """UPerNet on ADE20K, fine-tuned end to end; see `preset`."""

    PUBLISHED: ClassVar[dict[str, str]] = {"small_160k": "UPerNet 160k ss (DoRA)", "base_160k": "UPerNet 160k ss (iBOT)"}
