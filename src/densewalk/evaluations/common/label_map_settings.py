"""Settings of evaluations on images with label maps: the layouts, and which images are scored."""

from collections.abc import Sequence
from math import gcd
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.hashing import config_hash
from densewalk.core.settings import PathText, Unique, deviation, is_null
from densewalk.data.benchmarks import sizes
from densewalk.data.benchmarks.label_rules import LABELS, LabelRule, identity_rule
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown
from densewalk.evaluations.common.settings import EvaluationSettings, FeatureRead
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work, vit

# other names in `data/benchmarks/label_rules.py`, where `coco_stuff` has 171 classes
SUPERCATEGORIES = {"coco_things": "coco_things_12", "coco_stuff": "coco_stuff_15"}


class LabelledSettings(EvaluationSettings):
    """Images with label maps. Names of protocols do not contain these fields: `dataset` tells what they describe."""

    layout: Literal["ade20k", "voc", "cityscapes", "coco_things", "coco_stuff", "masks", "video"]
    """`ade20k`: ADEChallengeData2016. `voc`: VOCdevkit/VOC2012. `cityscapes`: leftImg8bit and gtFine. `coco_things`, `coco_stuff`:
    COCO 2017 with its panoptic annotations, joined to 12 and 15 supercategories. `masks`: a folder of images and one of masks with
    equal names. `video`: a video and a folder of masks named by frame number, 00000.png for the first frame."""
    images: PathText | None = None
    """Layout `masks`: folder of the images below `root`. Layout `video`: the video file below `root`."""
    masks: PathText | None = None
    """Folder of the masks below `root` (layouts `masks` and `video`); layout `voc`: folder of the masks inside VOC2012,
    SegmentationClass if not given."""
    num_classes: Annotated[int | None, SHOWN_BY_ANOTHER] = Field(default=None, ge=2)
    """Layouts `masks` and `video`: number of label values; a mask may hold 0 to num_classes - 1 and `ignore`."""
    ignore: Annotated[int | None, SHOWN_BY_ANOTHER] = Field(default=None, ge=0)
    """Layouts `masks` and `video`: label of pixels that count for nothing."""
    class_names: list[str] | None = None
    """Layouts `masks` and `video`: names of the labels, for legends."""

    @model_validator(mode="after")
    def layout_has_what_it_needs(self) -> Self:
        """Require the fields of this layout and refuse others, which would silently do nothing."""
        own = ("images", "masks", "num_classes")
        if self.label_set in LABELS:
            extra = [n for n in ("images", "num_classes", "ignore", "class_names") if getattr(self, n) is not None]
            extra += ["masks"] if self.layout != "voc" and self.masks is not None else []
            if extra:
                raise ValueError(f"layout {self.layout} knows its own {', '.join(extra)}: leave them out")
        elif missing := [n for n in own if getattr(self, n) is None]:
            raise ValueError(f"layout {self.layout} needs {', '.join(missing)}")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(f"{len(self.class_names)} class_names for num_classes {self.num_classes}")
        return self

    @property
    def data_paths(self) -> tuple[str, ...]:
        """Images and masks; of a public data set, its root."""
        return tuple(f"{self.root}/{part}" for part in (self.images, self.masks)) if self.layout in ("masks", "video") else (self.root,)

    @property
    def label_set(self) -> str:
        """The labels' name in `data/benchmarks/label_rules.py`; the layout's own where there is none."""
        return SUPERCATEGORIES.get(self.layout, self.layout)

    @property
    def label_values(self) -> int:
        """Number of labels a prediction can take."""
        return LABELS[self.label_set][0] if self.label_set in LABELS else self.num_classes  # type: ignore[return-value]

    @property
    def ignored(self) -> int | None:
        """The label that is not scored."""
        return LABELS[self.label_set][1] if self.label_set in LABELS else self.ignore

    @property
    def rule(self) -> LabelRule:
        """The labels of a mask's pixels: their values."""
        return identity_rule(self.label_values, self.ignored)

    def images_of(self, split: Literal["training", "validation"], every: int, offset: int = 0) -> int | None:
        """Images of a split: of a public data set as published, of a folder every so many of its masks; None where they are not there."""
        if self.layout in sizes.IMAGES:
            return sizes.IMAGES[self.layout][split == "validation"]
        masks = sizes.files_in(Path(self.root) / (self.masks or ""))
        return None if masks is None else len(range(offset, masks, every))

    def feature_read(
        self, split: Literal["training", "validation"], name: str, every: int, offset: int = 0, *, passes: int = 1, more: Sequence[Any] = ()
    ) -> FeatureRead:
        """The features of a split's images at `input_size`: equal for evaluations that list the same images and prepare them alike.

        Args:
            name: list of layout `voc`. every, offset: of layouts `masks` and `video`. more: what else the features depend on.
        """
        chosen = {"voc": name, "masks": [every, offset], "video": [every, offset]}.get(self.layout, split)
        folders = [self.images, self.masks] if self.layout in ("masks", "video") else []
        images = [self.root, self.layout, folders, chosen, self.input_size, *more]  # type: ignore[attr-defined]
        return FeatureRead(config_hash(images), passes)

    def require_disjoint(self, train: str, val: str) -> None:
        """Refuse `train_every`, `val_every` and `val_offset` that put an image into both splits.

        That is the case where a * train_every = val_offset + b * val_every has a solution. The layouts with fixed splits pass.

        Args:
            train: what the names of the settings begin with, `train` or `memory`. val: likewise, `val` or `query`.
        """
        names = (f"{train}_every", f"{val}_every", f"{val}_offset")
        train_every, val_every, offset = (getattr(self, name) for name in names)
        if self.label_set not in LABELS and offset % gcd(train_every, val_every) == 0:
            raise ValueError(
                f"{names[0]} {train_every}, {names[1]} {val_every} and {names[2]} {offset} make some images both {train} and {val}; "
                "choose an offset that is no multiple of the two numbers' common divisor"
            )


Features = Literal["all", "position", "position_code", "without_position"]


def are_all(features: str) -> bool:
    """For `Field(exclude_if=are_all)`: the setting is newer than stored results, whose hashes stay as they were."""
    return features == "all"


class FeatureSettings(LabelledSettings):
    """Evaluations that can be asked how much of their score is position."""

    features: Features = Field(default="all", exclude_if=are_all)
    """`all`: the backbone's. Floors: `position`, at each place of the grid the mean of the training images' features there, whatever the
    image; `position_code`, sines and cosines of row and column (32 numbers), without any backbone. `without_position`: the backbone's
    minus that mean, as long as before. The mean is that of at most 1,000 training images, spread over their list, not augmented. The
    places are those of the backbone's input, so of a crop where crops are learned from."""

    @property
    def reads_backbone(self) -> bool:
        """Whether an image's features depend on the image."""
        return self.features in ("all", "without_position")


PAMR_ITERATIONS, PAMR_DILATIONS = 10, (1, 2, 4, 8, 12, 24)


class RefinedSettings(LabelledSettings):
    """Evaluations whose predicted label maps can be refined by the image's colors before they are scored.

    The settings are newer than stored results, whose hashes stay as they were.
    """

    refine: Literal["pamr"] | None = Field(default=None, exclude_if=is_null)
    """`pamr`: pixel-adaptive mask refinement (https://arxiv.org/abs/2005.08104, section 3.3), which has no parameters: the labels'
    scores move to pixels of similar color, at the size of the network's input, or of the image where every pixel of it is scored. Another
    protocol than without it."""
    refine_iterations: int = Field(default=PAMR_ITERATIONS, ge=1, le=1000, exclude_if=lambda value: value == PAMR_ITERATIONS)
    """How often the scores move."""
    refine_dilations: Annotated[tuple[Annotated[int, Field(ge=1, le=1000)], ...], Unique] = Field(
        default=PAMR_DILATIONS, min_length=1, exclude_if=lambda value: value == PAMR_DILATIONS
    )
    """Distances of a pixel's neighbors, of which there are eight at each, in pixels."""

    @model_validator(mode="after")
    def refinement_is_chosen(self) -> Self:
        """Refuse settings of a refinement that is not made: they would silently do nothing."""
        changed = [("refine_iterations", PAMR_ITERATIONS), ("refine_dilations", PAMR_DILATIONS)]
        if self.refine is None and (extra := [name for name, default in changed if getattr(self, name) != default]):
            raise ValueError(f"{extra[0]}: nothing is refined; set `refine: pamr`, or leave it out")
        return self


class ScoredSettings(RefinedSettings):
    """The images that are scored, and their size."""

    val_list: str = "val"
    """Layout `voc`: list in ImageSets/Segmentation with the scored images."""
    val_every: int = Field(default=8, ge=1)
    """Layouts `masks` and `video`: every n-th labelled image from `val_offset` on is scored."""
    val_offset: int = Field(default=6, ge=0)
    """Layouts `masks` and `video`: the first scored image."""
    input_size: Annotated[int, Shown("{} px")] = Field(default=448, ge=16)
    """Side of the square images in pixels, rounded down to a multiple of the backbone's patch size."""
    mask_size: int = Field(default=100, ge=1)
    """Side that masks are reduced to."""

    def feature_reads(self) -> dict[str, FeatureRead]:
        """The validation images, once."""
        return {"validation": self.feature_read("validation", self.val_list, self.val_every, self.val_offset)}

    def work(self, arch: Architecture) -> Work | None:
        """One pass over the scored images; what is clustered on their features is not counted."""
        images = self.images_of("validation", self.val_every, self.val_offset)
        return None if images is None else Work(images * vit(arch, self.input_size))


class ValidationSettings(ScoredSettings):
    """Scored images in the protocols of NeCo and Leopart."""

    compat: Annotated[Literal["paper", "released"], Shown("compat {}")] = "paper"
    """`paper`: the protocol as published. `released`: the released code's known deviations."""
    count_absent_classes: bool | None = deviation(
        source="PredsmIoU of NeCo's code", effect="ADE20K's empty class costs 1/151", omit_null=True
    )
    """Count a class that occurs nowhere as 0 in the mean, instead of leaving it out."""


class BatchedValidationSettings(ValidationSettings):
    """Validation images that the released code scores batch by batch."""

    drop_incomplete_batch: bool | None = deviation(
        source="NeCo's code (drop_last)", effect="VOC: 1408 or 1440 of 1449 images are scored", omit_null=True
    )
    """Layout `voc`: score whole batches only, of `batch_size` images (linear_segmentation) or of 32 (overcluster)."""
