"""Settings of semantic segmentation through mmsegmentation: the data on which the recipes are run."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.settings import Difference
from densewalk.data.benchmarks import sizes
from densewalk.data.benchmarks.label_rules import CLASSES, LabelRule, class_rule
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown, is_published
from densewalk.evaluations.segmentation.recipes import LinearSettings, SegmentationSettings, UpernetSettings

# training and validation split by default
SPLITS = {
    "voc": ("trainaug", "val"),
    "cityscapes": ("train", "val"),
    "coco_stuff": ("train2017", "val2017"),
    "folders": ("training", "validation"),
}


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
    def test_images(self) -> int | None:
        """Of ADE20K."""
        return sizes.IMAGES["ade20k"][1] if self.dataset == "ADE20K" else None

    @property
    def rule(self) -> LabelRule:
        """Labels 1 to `classes`; 0 is not scored."""
        return class_rule(tuple(range(1, self.classes + 1)), 0)

    @property
    def published_protocol(self) -> str | None:
        """The preset's published name, if nothing that matters was changed."""
        return self.PUBLISHED.get(self.preset) if self.dataset == "ADE20K" and is_published(self) else None


class LayoutData(SegmentationSettings):
    """A data set in one of the public layouts.

    Crops, sizes and learning rates are the recipe's for ADE20K: no published number of these recipes is known for the data here.
    """

    TABLE: ClassVar[str] = "segmentation"
    VERSION: ClassVar[int] = 1
    TITLE: ClassVar[str] = "Semantic segmentation (other data)"

    layout: Annotated[Literal["voc", "cityscapes", "coco_stuff", "folders"], Shown("{}", "last")]
    """`voc`: VOCdevkit/VOC2012, 21 classes, 255 not scored. `cityscapes`: leftImg8bit and gtFine with *_labelTrainIds.png, 19
    classes, 255 not scored. `coco_stuff`: the 164k images with the released label maps, 171 classes, 255 not scored. `folders`:
    masks with the names of their images, one folder for each split below `images` and `masks`."""
    training: Annotated[str | None, Shown(lambda s: " to ".join(s.splits), "last")] = None
    """The split to train on. Layout `voc`: a list in ImageSets/Segmentation, trainaug if not given. Others: the folder, by default
    train, train2017 or training."""
    validation: Annotated[str | None, SHOWN_BY_ANOTHER] = None
    """The split to test on; by default val, val2017 or validation."""
    images: str | None = None
    """Layout `folders`: folder below `root`, images if not given."""
    masks: str | None = None
    """Layout `folders`: folder below `root`, annotations if not given. Layout `voc`: folder inside VOC2012, SegmentationClass if not
    given; the masks of trainaug are SegmentationClassAug."""
    num_classes: int | None = Field(default=None, ge=2, le=255)
    """Layout `folders`: number of label values; a mask may hold 0 to num_classes - 1, and `ignore`."""
    ignore: int | None = Field(default=None, ge=0)
    """Layout `folders`: the label of pixels that count for nothing, e.g. 0 (mmsegmentation's reduce_zero_label) or 255."""
    class_names: list[str] | None = None
    """Layout `folders`: names of the labels from 0 on, the ignored one included if it is below num_classes."""

    @model_validator(mode="after")
    def layout_has_what_it_needs(self) -> Self:
        """Require the fields of this layout and refuse others, which would silently do nothing."""
        if self.layout == "folders":
            if self.num_classes is None:
                raise ValueError("layout folders needs num_classes")
            if len(self.rule.values) < 2:
                raise ValueError(f"num_classes {self.num_classes} with ignore {self.ignore} leaves one class")
            if self.class_names is not None and len(self.class_names) != self.num_classes:
                raise ValueError(f"{len(self.class_names)} class_names for num_classes {self.num_classes}")
            return self
        own = ["images", "num_classes", "ignore", "class_names", *(["masks"] if self.layout != "voc" else [])]
        extra = [name for name in own if getattr(self, name) is not None]
        if extra:
            raise ValueError(f"layout {self.layout} knows its own {', '.join(extra)}: leave them out")
        return self

    @property
    def test_images(self) -> int | None:
        """Of a public data set."""
        return sizes.IMAGES[self.layout][1] if self.layout in sizes.IMAGES else None

    @property
    def data_paths(self) -> tuple[str, ...]:
        """Images and masks; of a public data set, its root."""
        own = (self.images or "images", self.masks or "annotations")
        return tuple(f"{self.root}/{part}" for part in own) if self.layout == "folders" else (self.root,)

    @property
    def rule(self) -> LabelRule:
        """The classes of a mask's pixels."""
        return class_rule(tuple(range(self.num_classes)), self.ignore) if self.num_classes is not None else CLASSES[self.layout]

    @property
    def splits(self) -> tuple[str, str]:
        """Training and validation split."""
        training, validation = SPLITS[self.layout]
        return self.training or training, self.validation or validation


class Ade20kLinearSettings(LinearSettings, Ade20kData):
    """Linear segmentation of ADE20K: a linear head on the frozen backbone; see `preset`."""

    # none for dinov2_ms: its windows and training range are known at second hand only
    PUBLISHED: ClassVar[dict[str, str]] = {
        "dinov2": "linear BN+1x1 (DINOv2)",
        "ibot": "linear 4-layer concat (iBOT)",
        "dinov3": "linear BN+1x1, 1024 patches (DINOv3)",
    }
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference("the head of `dinov3` drops a tenth of the channels in training", "none", "DINOv3, eval/segmentation/config.py"),
    )


class Ade20kUpernetSettings(UpernetSettings, Ade20kData):
    """UPerNet on ADE20K, fine-tuned end to end; see `preset`."""

    PUBLISHED: ClassVar[dict[str, str]] = {"small_160k": "UPerNet 160k ss (DoRA)", "base_160k": "UPerNet 160k ss (iBOT)"}


class SegmentationLinearSettings(LinearSettings, LayoutData):
    """Linear segmentation: a linear head on the frozen backbone; see `preset`."""


class SegmentationUpernetSettings(UpernetSettings, LayoutData):
    """UPerNet, fine-tuned end to end; see `preset`."""


SETTINGS = {
    "ade20k_linear": Ade20kLinearSettings,
    "ade20k_upernet": Ade20kUpernetSettings,
    "segmentation_linear": SegmentationLinearSettings,
    "segmentation_upernet": SegmentationUpernetSettings,
}
