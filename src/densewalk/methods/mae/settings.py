"""Settings of MAE."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.resources import Resources
from densewalk.core.settings import Difference, Epochs, LearningRate, ShareRange
from densewalk.models.architecture import Architecture
from densewalk.models.work import LEARN, Work, encoder, kept_widths, parameters, tokens
from densewalk.training.settings import PresetSettings


class MaeSettings(PresetSettings):
    """MAE (https://arxiv.org/abs/2111.06377) on video frames or images; defaults are the published recipe (PRETRAIN.md), for ViT-L.

    The released code is https://github.com/facebookresearch/mae at commit efb2a80. `compat` changes nothing. There is no published
    recipe for ViT-S: the preset `vit_small` is the published one with a decoder of ours, which costs less than the encoder.
    """

    VERSION: ClassVar[int] = 2
    """2: with `positions: sincos` the table is that of images of `size`, no longer one of the architecture's size, resampled."""
    RESOURCES: ClassVar[Resources] = Resources(gpu=4, threads=32, mem_mb=128_000, runtime=2880)
    PICTURES: ClassVar[dict[str, str]] = {
        "reconstructions": "Images, what the encoder sees of them, and the removed patches as the decoder predicts them."
    }
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference("the encoder begins with Xavier's uniform weights", "with timm's truncated normal ones", "models_mae.py:68-93"),
        Difference("views made by Pillow", "by torch: pixels differ in the last digits", "main_pretrain.py:118-123"),
    )
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # main_pretrain.py: what runs without options
        "code_default": {"lr": 1e-3, "norm_pix_loss": False, "epochs": 400, "batch_size": 64},
        "vit_small": {"decoder_dim": 192, "decoder_depth": 4, "decoder_heads": 6},
        # vit_micro_patch16 from scratch on a video of minutes
        "small_video": {
            "decoder_dim": 64,
            "decoder_depth": 1,
            "decoder_heads": 4,
            "size": 96,
            "batch_size": 32,
            "steps": 600,
            "lr": 1e-3 * 256 / 32,
            "warmup_epochs": 2,
        },
    }

    batch_size: int = Field(default=4096, ge=1)
    """Images of one optimizer step over all processes together."""
    epochs: Epochs | None = 800
    """Passes over the data. Exactly one of `epochs` and `steps`."""

    size: int = Field(default=224, ge=8)
    """Side of an image in pixels."""
    scale: ShareRange = (0.2, 1.0)
    """Share of the image's area that a crop covers, from and to. There are no colors, only flips."""
    mask_ratio: float = Field(default=0.75, gt=0, lt=1)
    """Share of the patches that are removed, of each image by itself."""
    norm_pix_loss: bool = True
    """Predict each patch's pixels minus their mean and divided by their standard deviation, of all three channels together."""

    decoder_dim: int = Field(default=512, ge=4)
    """Width of the decoder, a multiple of 4 and of `decoder_heads`."""
    decoder_depth: int = Field(default=8, ge=1)
    """Blocks of the decoder."""
    decoder_heads: int = Field(default=16, ge=1)
    """Attention heads of the decoder."""
    positions: Literal["sincos", "kept"] = "sincos"
    """`sincos`: the encoder's positions are sines and cosines and do not learn, as published. `kept`: those it begins with are trained on,
    for a start from a checkpoint with positions of its own."""

    lr: LearningRate = Field(default=1.5e-4, gt=0)
    """Peak learning rate per 256 samples of the batch; the rate used is lr * batch_size / 256."""
    min_lr: LearningRate = Field(default=0.0, ge=0)
    """Learning rate at the end of the cosine."""
    warmup_epochs: float = Field(default=40, ge=0)
    """Linear warm-up of the learning rate."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Weight decay; none on biases and one-dimensional parameters."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    """AdamW's decay rates of its two moments."""

    @model_validator(mode="after")
    def decoder_fits(self) -> Self:
        """Attention heads share the width, sines and cosines of two coordinates quarter it."""
        for factor, what in ((self.decoder_heads, f"decoder_heads {self.decoder_heads}"), (4, "4")):
            if self.decoder_dim % factor:
                raise ValueError(f"decoder_dim {self.decoder_dim} is no multiple of {what}")
        return self

    def sides(self) -> dict[str, int]:
        """As of any method."""
        return {"size": self.size}

    def obstacle_to_network(self, arch: Architecture) -> str | None:
        """As of any method; rotary positions, and masks that leave all patches or none."""
        if arch.rope:  # each block would turn the patches that are left as if all were there
            return f"{arch.name} has rotary positions, which MAE cannot train; to do: choose another arch or init"
        if obstacle := super().obstacle_to_network(arch):
            return obstacle
        patches = (self.size // arch.patch) ** 2
        if 0 < (visible := self.visible(patches)) < patches:
            return None
        found = f"mask_ratio {self.mask_ratio} leaves {visible} of the {patches} patches of {self.size} px"
        return f"{found}; allowed: 1 to {patches - 1}; to do: change mask_ratio or size"

    def obstacle(self) -> str | None:
        """A warm-up that is longer than the training would never reach the learning rate."""
        if self.epochs is not None and self.warmup_epochs > self.epochs:
            return f"warmup_epochs {self.warmup_epochs} are more than epochs {self.epochs}"
        return None

    def across_samples(self) -> None:
        """Nothing: the loss is a mean over images, of each of which as many patches are removed."""
        return

    def decoder(self, patch: int) -> Architecture:
        """The decoder's shape."""
        return Architecture("decoder", self.decoder_dim, self.decoder_depth, self.decoder_heads, patch=patch, image=self.size)

    def visible(self, patches: int) -> int:
        """How many patches of an image are left."""
        return int(patches * (1 - self.mask_ratio))

    def step_work(self, arch: Architecture) -> Work:
        """The encoder on the patches that are left, the decoder on all, and the pixels of those that are removed."""
        decoder, pixels = self.decoder(arch.patch), 3 * arch.patch**2
        count = tokens(arch, self.size)
        patches = count - 1 - arch.registers
        seen = count - patches + self.visible(patches)
        embedding = 2.0 * patches * pixels * arch.dim
        ends = 2.0 * (1 + self.visible(patches)) * arch.dim * decoder.dim + 2.0 * (patches - self.visible(patches)) * decoder.dim * pixels
        flops = encoder(arch, seen) + encoder(decoder, patches + 1) + ends
        values = sum(a.depth * n * kept_widths(a) * a.dim for a, n in ((arch, seen), (decoder, patches + 1)))
        learnt = parameters(arch) + parameters(decoder) + decoder.dim * arch.dim
        # pixels have no gradient, which is half of the embedding's backward pass
        return Work(self.batch_size * (LEARN * flops + 2 * embedding), kept=self.batch_size * values, learnt=learnt)


SETTINGS = MaeSettings
