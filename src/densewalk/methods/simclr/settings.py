"""Settings of SimCLR, and those that it shares with MoCo v3."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from densewalk.core.metric import Ceiling
from densewalk.core.resources import Resources
from densewalk.core.settings import Difference, Epochs, LearningRate, ShareRange, deviation
from densewalk.data.amounts import Amount
from densewalk.models.architecture import Architecture
from densewalk.models.work import LEARN, Work, kept, mlp, mlp_parameters, parameters, vit
from densewalk.training.settings import PresetSettings

Count = Annotated[int, Field(ge=1)]


class ContrastiveSettings(PresetSettings):
    """Settings of a method that finds an image's other view among the views of all images."""

    TITLE: ClassVar[str]
    """The method's name in messages."""
    RESOURCES: ClassVar[Resources] = Resources(gpu=4, threads=32, mem_mb=128_000, runtime=2880)
    PICTURES: ClassVar[dict[str, str]] = {"neighbors": "Images, and the five that are most similar to each by the CLS token."}

    batch_size: int = Field(default=4096, ge=2)
    """Images of one optimizer step over all processes together; all others of them are an image's negatives."""
    epochs: Epochs | None = 300
    """Passes over the data. Exactly one of `epochs` and `steps`."""
    frame_seconds: float = Field(default=1.0, ge=0)
    """An epoch has one random frame of each such stretch of a video: frames that look alike would be negatives of each other. 0: every
    frame. Folders of images, also of a video's frames, are taken whole."""

    size: int = Field(default=224, ge=8)
    """Side of a view in pixels."""
    scale: ShareRange = (0.08, 1.0)
    """Share of the image's area that a view covers, from and to."""

    lr: LearningRate = Field(default=2e-4, gt=0)
    """Peak learning rate per 256 samples of the batch; the rate used is lr * batch_size / 256. It falls to 0 along a cosine."""
    warmup_epochs: float = Field(default=10, ge=0)
    """Linear warm-up of the learning rate."""

    def sides(self) -> dict[str, int]:
        """As of any method."""
        return {"size": self.size}

    def obstacle(self) -> str | None:
        """A warm-up that is longer than the training would never reach the learning rate."""
        if self.epochs is not None and self.warmup_epochs > self.epochs:
            return f"warmup_epochs {self.warmup_epochs} are more than epochs {self.epochs}"
        return None

    def across_samples(self) -> str:
        """Negatives and batch normalization."""
        return f"{self.TITLE}'s negatives are the other images of the batch"

    def ceilings(self) -> dict[str, Ceiling]:
        """RankMe looks at no more than 64 images."""
        return {"feature_rank": Ceiling(64, "64, the images that it looks at")}

    def samples(self, amount: Amount) -> int:
        """One frame of each stretch of a video, or every image."""
        if amount.kind == "video" and self.frame_seconds:
            return max(1, round(amount.seconds / max(self.frame_seconds, 1 / amount.fps)))
        return amount.frames


class SimclrSettings(ContrastiveSettings):
    """SimCLR (https://arxiv.org/abs/2002.05709) on video frames or images.

    The released code is https://github.com/google-research/simclr at commit 383d414. Its recipes are for ResNets and LARS: temperature,
    projector and views are the release's (of version 2), optimizer, rates and length are ours, for vision transformers.
    """

    TITLE: ClassVar[str] = "SimCLR"
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference("LARS, with a rate of 0.3 batch / 256 or 0.075 sqrt(batch)", "AdamW", "README.md, lars_optimizer.py"),
        Difference("the last batch normalization has a weight", "it has none, as in MoCo v3", "model_util.py"),
    )
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # vit_micro_patch16 from scratch on a video of minutes, of which every frame is a sample
        "small_video": {
            "size": 96,
            "projector_hidden": 256,
            "out_dim": 64,
            "frame_seconds": 0.0,
            "batch_size": 32,
            "steps": 300,
            "lr": 1e-3 * 256 / 32,
            "warmup_epochs": 2,
        },
    }

    color_strength: float = Field(default=1.0, ge=0, le=1.25)
    """Strength of the color jitter: brightness, contrast and saturation by 0.8 and hue by 0.2 times this, with probability 0.8."""
    temperature: float = Field(default=0.1, gt=0)
    """Temperature of the softmax over all other views."""
    projector_layers: int = Field(default=3, ge=1)
    """Layers of the projector, each with batch normalization over all processes."""
    projector_hidden: Count = 2048
    """Width of the projector's hidden layers."""
    out_dim: Count = 128
    """Width of the projector's output."""

    weight_decay: float = Field(default=0.1, ge=0)
    """Weight decay; none on biases and one-dimensional parameters."""
    summed_views: bool | None = deviation(
        effect="the loss is twice as large, which AdamW does not see", source="equation after 1; objective.py:51-83"
    )
    """Add up the means of both views' losses, in place of the mean of all."""

    @property
    def projector_widths(self) -> list[int]:
        """Widths of the projector's layers behind the backbone."""
        return [*[self.projector_hidden] * (self.projector_layers - 1), self.out_dim]

    def step_work(self, arch: Architecture) -> Work:
        """Two views, and all pairs of them."""
        views, widths = 2 * self.batch_size, [arch.dim, *self.projector_widths]
        flops = views * (vit(arch, self.size, cls_only=True) + mlp(widths) + 2.0 * views * self.out_dim)
        learnt = parameters(arch) + mlp_parameters(widths)
        return Work(LEARN * flops, kept=views * kept(arch, self.size), outside=views * views, learnt=learnt)


SETTINGS = SimclrSettings
