"""Settings of distillation."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from densewalk.core.metric import Ceiling
from densewalk.core.resources import Resources
from densewalk.core.settings import Epochs, LearningRate, ShareRange
from densewalk.models.architecture import Architecture
from densewalk.models.work import LEARN, Work, kept, parameters, vit
from densewalk.training.settings import PresetSettings


class DistillSettings(PresetSettings):
    """Distillation: a vision transformer learns the dense and pooled features of other networks, on video frames or images.

    No publication is reproduced: losses and defaults are usual ones, lengths and rates are ours.
    """

    TEACHERS: ClassVar[bool] = True
    RESOURCES: ClassVar[Resources] = Resources(gpu=1, threads=8, mem_mb=64_000, runtime=1440)
    SAME_NUMBERS: ClassVar[tuple[str, ...]] = ("cache_gib",)
    PICTURES: ClassVar[dict[str, str]] = {
        "similarity": "Images, and how similar each place is to the middle: by the first teacher, and by what has learned from it."
    }
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        # vit_micro_patch16 from scratch on a video of minutes
        "small_video": {"size": 160, "batch_size": 12, "steps": 600, "lr": 2e-3, "warmup_epochs": 2, "pooled_weight": 0.0},
    }

    batch_size: int = Field(default=256, ge=1)
    """Images of one optimizer step over all processes together."""
    epochs: Epochs | None = 100
    """Passes over the data. Exactly one of `epochs` and `steps`."""

    augmentation: Literal["crops", "none"] = "crops"
    """`crops`: random crops and flips, the same pixels for all networks. `none`: whole images; each teacher sees each of them once."""
    size: int = Field(default=224, ge=8)
    """Side of the images that the network learns from, in pixels."""
    teacher_size: int | None = Field(default=None, ge=8)
    """Side of the same images for the teachers; `size` if not given."""
    scale: ShareRange = (0.3, 1.0)
    """Share of the image's area that a crop covers, from and to."""
    cache_gib: float = Field(default=4.0, ge=0)
    """Augmentation `none`: memory for the teachers' features, in GiB for each process; those for which there is none are computed again."""

    loss: Literal["cosine", "smooth_l1"] = "cosine"
    """Of features with unit length, at each position of a teacher's map and for the pooled vectors. `cosine`: 1 - cosine. `smooth_l1`:
    Huber's loss, with threshold 1, of channels in units of their root mean square."""
    dense_weight: float = Field(default=1.0, ge=0)
    """Weight of the loss of maps."""
    pooled_weight: float = Field(default=1.0, ge=0)
    """Weight of the loss of vectors, which the CLS token learns."""
    projector_hidden: int | None = Field(default=None, ge=1)
    """Width of the hidden layer between the network's features and a teacher's; a linear layer if not given."""

    lr: LearningRate = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW, whatever the batch. It falls to 0 along a cosine."""
    warmup_epochs: float = Field(default=5, ge=0)
    """Linear warm-up of the learning rate."""
    weight_decay: float = Field(default=0.04, ge=0)
    """Weight decay; none on biases and one-dimensional parameters."""

    @property
    def teachers_size(self) -> int:
        """Side of the images for the teachers."""
        return self.teacher_size or self.size

    def sides(self) -> dict[str, int]:
        """As of any method."""
        return {"size": self.size}

    def obstacle(self) -> str | None:
        """Nothing to learn, or a warm-up that is longer than the training."""
        if not (self.dense_weight or self.pooled_weight):
            return "dense_weight and pooled_weight are both 0"
        if self.epochs is not None and self.warmup_epochs > self.epochs:
            return f"warmup_epochs {self.warmup_epochs} are more than epochs {self.epochs}"
        return None

    def across_samples(self) -> None:
        """Nothing: the loss is a mean over images."""

    def ceilings(self) -> dict[str, Ceiling]:
        """RankMe looks at no more than 64 images."""
        return {"feature_rank": Ceiling(64, "64, the images that it looks at")}

    def step_work(self, arch: Architecture) -> Work:
        """The network, and a teacher that costs as much as it does: which teachers there are is not known here."""
        flops = self.batch_size * (LEARN * vit(arch, self.size) + vit(arch, self.teachers_size))
        return Work(flops, kept=self.batch_size * kept(arch, self.size), learnt=parameters(arch), fixed=parameters(arch))


SETTINGS = DistillSettings
