"""Recipes of semantic segmentation through mmsegmentation, whatever the data."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.core.settings import MOST_STEPS, LearningRate, switch
from densewalk.data.benchmarks.label_rules import LabelRule
from densewalk.evaluations.common.presets import PresetSettings
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown
from densewalk.models.architecture import Architecture
from densewalk.models.work import LEARN, Work, conv, kept, parameters, vit

ASPECT = 4 / 3  # of a usual image, for estimates


class SegmentationSettings(PresetSettings):
    """Settings of both the frozen linear head and UPerNet; the defaults are those of DINOv2's linear head."""

    PICTURES: ClassVar[str] = "image, ground truth and prediction of {run}"
    NEEDS: ClassVar[frozenset[str]] = frozenset({"levels"})
    LEARNS: ClassVar[bool] = True
    METRICS: ClassVar[dict[str, Metric]] = {
        "mIoU": Metric("%", "mean over the classes that occur or are predicted"),
        "mAcc": Metric("%", "mean recall of the classes that occur"),
        "aAcc": Metric("%", "share of the labelled pixels"),
    }

    preset: str
    """A published recipe; other keys that are given win over its values."""
    iterations: Annotated[int, Shown("{} it")] = Field(default=40_000, ge=1, le=MOST_STEPS)
    """Optimizer steps."""
    batch_size: Annotated[int, Shown("batch {}")] = Field(default=16, ge=1)
    """Images of one optimizer step. With b instead of the preset's B, the learning rate is multiplied by b / B and iterations and
    warmup by B / b, as far as they are not given: as many images are seen (linear scaling, https://arxiv.org/abs/1706.02677)."""
    learning_rate: LearningRate = Field(default=1e-3, gt=0)
    """AdamW's, at the end of the warm-up."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """AdamW's, of all parameters."""
    warmup: int = Field(default=1500, ge=0)
    """Iterations of linear warm-up, on top of the linear decay to 0 that runs from the first to the last iteration."""
    crop: Annotated[int, Shown("crop {}")] = Field(default=512, ge=16)
    """Side of the square training crops in pixels."""
    short_side: int = Field(default=512, ge=16)
    """Images are resized to this short side; in training times a factor drawn from `scale_range`."""
    scale_range: tuple[float, float] = (0.5, 2.0)
    """Least and greatest factor."""
    long_side: int | None = Field(default=None, ge=16)
    """Upper limit of the long side when images are resized; null for none. In training times the same factor."""
    final_norm: bool = True
    """Apply the backbone's final LayerNorm to every map that is taken from it."""
    slide: Annotated[bool, Shown(lambda s: s.test_name)] = False
    """Test with overlapping windows of `crop` pixels; otherwise with the whole image."""
    window_step: Annotated[int | None, SHOWN_BY_ANOTHER] = Field(default=None, ge=1)
    """Step of the test windows in pixels; by default two thirds of the window, rounded down (341 of 512)."""
    multi_scale: Annotated[bool, SHOWN_BY_ANOTHER] = False
    """Test at several sizes, each image also mirrored, and average the softmax: a protocol of its own ("ms")."""
    test_ratios: Annotated[list[float], SHOWN_BY_ANOTHER] = Field(default=[1.0, 1.32, 1.73, 2.28, 3.0], min_length=1)
    """`multi_scale`: the short side is this times `short_side`, but never below `crop`; the long side has no limit."""

    @model_validator(mode="after")
    def consistent(self) -> Self:
        """Require iterations after the warm-up, windows that overlap or touch, and ranges in order."""
        if self.warmup >= self.iterations:
            raise ValueError(f"warmup {self.warmup} must be shorter than iterations {self.iterations}")
        if self.stride > self.crop:
            raise ValueError(f"window_step {self.stride} leaves pixels out: at most crop, {self.crop}")
        if not 0 < self.scale_range[0] <= self.scale_range[1] or min(self.test_ratios) <= 0:
            raise ValueError(f"scale_range {self.scale_range} and test_ratios {self.test_ratios} must be above 0, the former ascending")
        return self

    @property
    def rule(self) -> LabelRule:
        """The classes of a mask's pixels."""
        raise NotImplementedError(f"{type(self).__name__} has no label rule")

    @property
    def test_images(self) -> int | None:
        """Images of the test, for estimates; None where they are not published."""
        return None

    def test_work(self, arch: Architecture) -> float:
        """Operations of the backbone on one test image, as windows or as a whole."""
        sides = [max(self.crop, round(ratio * self.short_side)) for ratio in self.test_ratios] if self.multi_scale else [self.short_side]
        sizes = [(side, round(side * ASPECT)) for side in sides]
        if not self.slide:
            return (1 + self.multi_scale) * sum(vit(arch, *size) for size in sizes)
        windows = sum(self.windows(height) * self.windows(width) for height, width in sizes)
        return (1 + self.multi_scale) * windows * vit(arch, self.crop)

    def windows(self, side: int) -> int:
        """Windows along a side of a test image."""
        return 1 + max(0, -(-(side - self.crop) // self.stride))

    @property
    def stride(self) -> int:
        """Step of the test windows in pixels."""
        return self.window_step or self.crop * 2 // 3

    @property
    def test_name(self) -> str:
        """Windows and sizes of the test images. The sizes matter with `multi_scale` only."""
        ratios = "/".join(f"{ratio:g}" for ratio in self.test_ratios)
        window = f"slide {self.crop}/{self.stride}" if self.slide else "whole"
        return f"{window}, ms + flip at {ratios}" if self.multi_scale else window


class LinearSettings(SegmentationSettings):
    """A linear head on the frozen backbone.

    `dinov2`: batch normalization and a 1x1 convolution on the last layer's map (https://arxiv.org/abs/2304.07193, section 7.4);
    `dinov2_4layers` on the last four, concatenated; `dinov2_ms` those at 640 px, tested at five sizes. `ibot`: a 1x1 convolution
    without normalization on four layers spread over the depth (https://arxiv.org/abs/2111.07832; https://github.com/bytedance/ibot,
    evaluation/README.md). `dinov3`: DINOv2's head at 1,024 patches, with cosine decay, weight decay 1e-3 and windows
    (https://arxiv.org/abs/2508.10104, section 6.1.2); its paper reports the best of several learning rates and weight decays for each
    backbone, of which one pair is here. Not to be mixed, nor with NeCo's (masks of 100 x 100): DINOv2-L scores 47.7 in the first and
    41.8 in the last.
    """

    RESOURCES: ClassVar[Resources] = Resources(mem_mb=64_000, runtime=1440)
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "dinov2": {},
        "dinov2_4layers": {"layers": 4},
        # crops, scales and windows are not in the paper's appendix: they are known from copies of its configuration only
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
        "dinov3": {"weight_decay": 1e-3, "slide": True},
    }

    preset: Literal["dinov2", "dinov2_4layers", "dinov2_ms", "ibot", "dinov3"] = "dinov2"
    """A published recipe; other keys that are given win over its values."""
    layers: Annotated[Annotated[int, Field(ge=1)] | Literal["spread"], Shown(lambda s: s.head_name, "first")] = 1
    """Number of last blocks whose maps are concatenated; `spread`: a third, half, two thirds and all of the depth instead (3, 5, 7,
    11 of 12)."""
    batch_norm: Annotated[bool, SHOWN_BY_ANOTHER] = True
    """Normalize the maps before the convolution."""
    schedule: Annotated[Literal["linear", "cosine"] | None, Shown(lambda s: s.schedule_name)] = switch(
        by="preset",
        **{name: "cosine" if name == "dinov3" else "linear" for name in PRESETS},
        source="DINOv3's configuration",
        effect="how the learning rate falls",
        omit_null=True,
    )
    """How the learning rate falls to 0 from the first to the last iteration, under the warm-up."""
    crop_patches: Annotated[int | None, SHOWN_BY_ANOTHER] = switch(
        by="preset",
        **{name: 32 if name == "dinov3" else None for name in PRESETS},
        source="DINOv3's paper",
        effect="as many patches for every patch size",
        omit_null=True,
    )
    """Side of the training crops and test windows in patches, and the images' shorter side, instead of `crop` and `short_side`: 448 px with
    patches of 14, 512 px with patches of 16. Hierarchical networks have no patches: theirs are `crop` and `short_side`."""
    crop: Annotated[int, Shown(lambda s: s.crop_name)] = Field(default=512, ge=16)
    """Side of the square training crops in pixels."""

    def work(self, arch: Architecture) -> Work | None:
        """The training crops through the frozen backbone, and the test images."""
        if self.test_images is None:
            return None
        own = self.fitted(arch.patch)
        flops = own.iterations * own.batch_size * vit(arch, own.crop) + self.test_images * own.test_work(arch)
        return Work(flops, bfloat16=True)

    @property
    def normalizes_batches(self) -> bool:
        """As said by `batch_norm`."""
        return self.batch_norm

    @property
    def schedule_name(self) -> str:
        """`schedule` in words; empty for the one of most recipes."""
        return "cosine decay" if self.resolved().schedule == "cosine" else ""

    @property
    def crop_name(self) -> str:
        """The crop in words."""
        patches = self.resolved().crop_patches
        return f"crop {self.crop}" if patches is None else f"crop {patches}x{patches} patches"

    def fitted(self, patch: int | None) -> Self:
        """The settings for a network of this patch size, with every crop in pixels; None: it has no patches."""
        own = self.resolved()
        if own.crop_patches is None or patch is None:
            return own
        side = own.crop_patches * patch
        return own.model_copy(update={"crop": side, "short_side": side})

    @property
    def head_name(self) -> str:
        """The head and its input."""
        source = {"spread": "4 spread layers", 1: "last layer"}.get(self.layers, f"last {self.layers} layers")
        return f"linear ({'DINOv2: BN + 1x1 conv' if self.batch_norm else 'iBOT: 1x1 conv without BN'}, {source})"


# iBOT's recipe for ViT-B, besides the one for ViT-S
_BASE = {"learning_rate": 8e-5, "layer_decay": 0.65}


class UpernetSettings(SegmentationSettings):
    """UPerNet, fine-tuned end to end as iBOT does; `small_160k`, for ViT-S, is also DoRA's.

    https://arxiv.org/abs/2111.07832, appendix; https://github.com/bytedance/ibot, evaluation/README.md. The shorter presets are the
    same recipe with an earlier end, as is customary; they have no published counterpart.
    """

    RECIPE: ClassVar[str] = "UPerNet (iBOT)"
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
    """A recipe, for ViT-S or ViT-B; other keys that are given win over its values."""
    iterations: int = Field(default=160_000, ge=1, le=MOST_STEPS)
    """Optimizer steps."""
    learning_rate: LearningRate = Field(default=3e-5, gt=0)
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
    """Blocks, from 0, whose maps make the pyramid; by default a third, half, two thirds and all of the depth: 3, 5, 7, 11 of 12. Of a
    hierarchical network the last four stages."""
    channels: int | None = Field(default=None, ge=1)
    """Channels of the UPerNet head; by default the backbone's width, on a hierarchical network 512."""
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

    def work(self, arch: Architecture) -> Work | None:
        """The training crops through backbone and head, forward and backward, and the test images."""
        if self.test_images is None:
            return None
        forward, tests = vit(arch, self.crop) + self.head_flops(arch), self.test_work(arch) / vit(arch, self.crop)
        flops = self.iterations * self.batch_size * LEARN * forward + self.test_images * tests * forward
        finest, width = (4 * self.crop // 16) ** 2, self.channels or arch.dim
        # measured on fake tensors (tests/evaluations/test_mmlab_cuda.py): maps of the heads, and the logits of both at the crop's size
        heads = self.batch_size * (finest * 13.5 * width + 2 * 1.55 * len(self.rule.values) * self.crop**2)
        values = self.batch_size * kept(arch, self.crop) + heads
        return Work(flops, kept=values, outside=heads, learnt=parameters(arch) + 9 * width * (8 * width + 4 * arch.dim), bfloat16=True)

    @property
    def normalizes_batches(self) -> bool:
        """After every convolution."""
        return True

    def head_flops(self, arch: Architecture) -> float:
        """Operations of the pyramid, UPerNet and the auxiliary head on one crop. The pyramid's strides are 4, 8, 16 and 32."""
        dim, width, classes = arch.dim, self.channels or arch.dim, len(self.rule.values)
        fine, middle, coarse, last = ((self.crop // stride) ** 2 for stride in (4, 8, 16, 32))
        pyramid = conv(fine + 2 * middle, dim, dim)  # transposed convolutions of 2 x 2, each input pixel in one place
        lateral = conv(fine + middle + coarse, dim, width) + conv(last, dim + 4 * width, width, 3)
        joined = conv(fine + middle + coarse, width, width, 3) + conv(fine, 4 * width, width, 3) + conv(fine, width, classes)
        return pyramid + lateral + joined + conv(coarse, dim, self.auxiliary_channels, 3)
