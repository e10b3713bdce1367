"""Settings of semantic segmentation on ADE20K, through mmsegmentation."""

from typing import ClassVar, Self

from pydantic import Field, model_validator

from densewalk.settings.base import EvaluationSettings
from densewalk.settings.naming import changes


class Ade20kSettings(EvaluationSettings):
    """What the frozen linear head and UPerNet share. `root` is the folder ADEChallengeData2016 or the one above it."""

    TASK: ClassVar[str] = "ade20k"
    VERSION: ClassVar[int] = 1
    METRICS: ClassVar[dict[str, str]] = {
        "mIoU": "% (higher is better), mean over the classes that occur or are predicted",
        "mAcc": "% (higher is better), mean recall of the classes that occur",
        "aAcc": "% (higher is better), share of the labelled pixels",
    }

    classes: int = Field(default=150, ge=2, le=254)
    """Number of classes: masks hold 0 for `other`, which is ignored, and 1 to `classes`."""
    iterations: int = Field(ge=1)
    """Optimiser steps."""
    batch_size: int = Field(default=16, ge=1)
    """Images of one optimiser step."""
    learning_rate: float = Field(gt=0)
    """AdamW's, at the end of the warm-up."""
    weight_decay: float = Field(ge=0)
    """AdamW's."""
    warmup: int = Field(default=1500, ge=0)
    """Iterations of linear warm-up, on top of the linear decay to 0 that runs from the first to the last iteration."""
    crop: int = Field(default=512, ge=16)
    """Side of the square training crops in pixels."""
    short_side: int = Field(default=512, ge=16)
    """Images are resized to this short side; in training times a factor drawn from 0.5 to 2."""
    final_norm: bool = True
    """Apply the backbone's final LayerNorm to every map that is taken from it."""

    @model_validator(mode="after")
    def warmup_ends(self) -> Self:
        """There is something after the warm-up."""
        if self.warmup >= self.iterations:
            raise ValueError(f"warmup {self.warmup} must be shorter than iterations {self.iterations}")
        return self

    def _name(self, head: str, test: str) -> str:
        parts = [head, f"{self.iterations} it", f"batch {self.batch_size}", f"crop {self.crop}", test]
        return ", ".join([*parts, *changes(self, "iterations", "batch_size", "crop", "layers", "slide")])


class Ade20kLinearSettings(Ade20kSettings):
    """DINOv2's linear head on the frozen backbone: batch normalisation and a 1x1 convolution.

    https://arxiv.org/abs/2304.07193, section 7.4. Not to be mixed with iBOT's (four layers, no batch normalisation) nor with
    NeCo's (masks of 100 x 100): DINOv2-L scores 47.7 here and 41.8 there.
    """

    iterations: int = Field(default=40_000, ge=1)
    """Optimiser steps."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """AdamW's, at the end of the warm-up."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """AdamW's."""
    layers: int = Field(default=1, ge=1)
    """Last blocks whose maps are concatenated; DINOv2 also reports 4."""

    @property
    def protocol(self) -> str:
        """Everything but the data."""
        source = "last layer" if self.layers == 1 else f"last {self.layers} layers"
        return self._name(f"linear (DINOv2: BN + 1x1 conv, {source})", "whole")

    @property
    def published_protocol(self) -> str | None:
        """DINOv2's single-scale protocol, if nothing that matters was changed."""
        return "linear BN+1x1 (DINOv2)" if self.dataset == "ADE20K" and not changes(self) else None


class Ade20kUpernetSettings(Ade20kSettings):
    """UPerNet, fine-tuned end to end as iBOT does for ViT-S, which DoRA follows.

    https://arxiv.org/abs/2111.07832, appendix; https://github.com/bytedance/ibot, evaluation/README.md. iBOT's ViT-B takes
    learning_rate 8e-5 and layer_decay 0.65.
    """

    iterations: int = Field(default=160_000, ge=1)
    """Optimiser steps; 40_000 and 80_000 are customary too."""
    learning_rate: float = Field(default=3e-5, gt=0)
    """AdamW's, at the end of the warm-up, for the heads; layers below have less, see `layer_decay`."""
    weight_decay: float = Field(default=0.05, ge=0)
    """AdamW's; biases and other one-dimensional parameters are not decayed."""
    layer_decay: float = Field(default=0.9, gt=0, le=1)
    """Factor on the learning rate per block below the head."""
    decay_position_embedding: bool = True
    """Decay position embeddings, CLS and registers like other weights. All published results of this code family do: the list
    of exceptions in BEiT's, iBOT's and mmsegmentation's code misses the prefix `backbone.` and never matches."""
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
    long_side: int = Field(default=2048, ge=16)
    """Upper limit of the long side when images are resized."""
    slide: bool = True
    """Test with windows of `crop` pixels, a third of them overlap (stride 341 of 512); otherwise with the whole image."""
    gradient_checkpointing: bool = False
    """Recompute blocks in the backward pass: less memory, more time, the same numbers."""

    @property
    def stride(self) -> int:
        """Step of the test windows in pixels: two thirds of the window, rounded down."""
        return self.crop * 2 // 3

    @property
    def protocol(self) -> str:
        """Everything but the data."""
        return self._name("UPerNet (iBOT)", f"slide {self.crop}/{self.stride}" if self.slide else "whole")

    @property
    def published_protocol(self) -> str | None:
        """DoRA's protocol, which is iBOT's for ViT-S, if nothing that matters was changed."""
        return "UPerNet 160k ss (DoRA)" if self.dataset == "ADE20K" and not changes(self) else None
