"""Settings of linear segmentation on reduced masks, NeCo's protocol."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.core.settings import MOST_STEPS, LearningRate, deviation
from densewalk.evaluations.common.label_map_settings import BatchedValidationSettings, FeatureSettings
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown, is_published
from densewalk.evaluations.common.settings import FeatureRead
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work, vit


class LinearSegmentationSettings(BatchedValidationSettings, FeatureSettings):
    """A 1x1 convolution on the frozen last layer, trained and by default scored on masks of 100 x 100 (NeCo's linear segmentation).

    The released code is https://github.com/vpariza/NeCo at commit 3932160, with which the published values were made.
    """

    TABLE: ClassVar[str] = "linear_segmentation"
    LEARNS: ClassVar[bool] = True
    PROCESSES: ClassVar[bool] = True
    VERSION: ClassVar[int] = 2
    """2: images are turned as their EXIF says, 16-bit gray is scaled."""
    TITLE: ClassVar[str] = "Linear segmentation (frozen features)"
    PICTURES: ClassVar[str] = "image, ground truth and prediction of {run}"
    RESOURCES: ClassVar[Resources] = Resources(mem_mb=64_000, runtime=1440)
    METRICS: ClassVar[dict[str, Metric]] = {"mIoU": Metric("%")}

    scoring: Annotated[Literal["reduced", "full"], Shown(lambda s: s.scoring_name, "first")] = "reduced"
    """`reduced`: masks of `mask_size` are predicted, as published. `full`: every pixel of the image as it lies on the disk. The two
    are different protocols."""
    mask_size: Annotated[int, SHOWN_BY_ANOTHER] = Field(default=100, ge=1)
    """Side that masks are reduced to."""
    train_list: str = "trainaug"
    """Layout `voc`: list in ImageSets/Segmentation with the training images."""
    train_every: int = Field(default=4, ge=1)
    """Layouts `masks` and `video`: every n-th labelled image (from the first on) is for training."""
    train_images: int | None = Field(default=None, ge=1)
    """Only so many training images, drawn by the seed (NeCo takes 11828 of COCO's)."""
    epochs: int = Field(default=25, ge=1, le=MOST_STEPS)
    """Passes over the training images."""
    drop_epoch: int = Field(default=20, ge=1)
    """From this epoch on the learning rate is a tenth."""
    batch_size: int = Field(default=128, ge=1)
    """Images of one step; the last batch of an epoch may be smaller."""
    learning_rate: LearningRate = Field(default=0.01, gt=0)
    """Of SGD."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD."""
    weight_decay: float = Field(default=1e-4, ge=0)
    """Of SGD."""
    crop_scale: tuple[float, float] = (0.8, 1.0)
    """Range of a training crop's share of the image. Crops are flipped half of the time."""
    fixed_order: bool | None = deviation(source="linear_finetune.py (shuffle)", effect="every epoch has the same batches", omit_null=True)
    """Layouts `voc` and `ade20k`: train on the images in the order of their list, in every epoch."""

    @model_validator(mode="after")
    def training_is_not_validation(self) -> Self:
        """Refuse images that are both trained on and scored, and crops that are no part of the image."""
        self.require_disjoint("train", "val")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(f"crop_scale {low:g} to {high:g} is no range within 0 to 1")
        return self

    def feature_reads(self) -> dict[str, FeatureRead]:
        """The validation images, once, where their features depend on them."""
        return super().feature_reads() if self.reads_backbone else {}

    def work(self, arch: Architecture) -> Work | None:
        """The training images through the frozen backbone in each epoch, and the validation images once."""
        training = self.images_of("training", self.train_every)
        validation = self.images_of("validation", self.val_every, self.val_offset)
        if training is None or validation is None:
            return None
        seen = self.epochs * min(training, self.train_images or training) + validation
        return Work(seen * vit(arch, self.input_size))

    @property
    def scoring_name(self) -> str:
        """`scoring` in words."""
        masks = f"{self.mask_size}x{self.mask_size} masks"
        return f"linear {masks}" if self.scoring == "reduced" else f"linear full resolution (trained on {masks})"

    @property
    def published_protocol(self) -> str | None:
        """NeCo's, where every setting is its own. Its COCO masks are not the panoptic ones, so that COCO has no published value."""
        same_data = self.dataset == {"voc": "PascalVOC", "ade20k": "ADE20K"}.get(self.layout)
        return "linear 100x100 masks" if same_data and self.compat == "released" and is_published(self, "compat") else None


SETTINGS = {"linear_segmentation": LinearSegmentationSettings}
