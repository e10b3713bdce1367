"""Settings of evaluations on images with label maps: the layouts, and which images are scored."""

from math import gcd
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from densewalk.data.benchmarks.label_rules import KNOWN, Layout
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown
from densewalk.evaluations.common.settings import EvaluationSettings


class LabelledSettings(EvaluationSettings):
    """Images with label maps. Names of protocols do not contain these fields: `dataset` tells what they describe."""

    layout: Layout
    """`ade20k`: ADEChallengeData2016. `voc`: VOCdevkit/VOC2012. `cityscapes`: leftImg8bit and gtFine. `coco_things`, `coco_stuff`:
    COCO 2017 with its panoptic annotations, joined to 12 and 15 supercategories. `masks`: a folder of images and one of masks with
    equal names. `video`: a video and a folder of masks named by frame number, 00000.png for the first frame."""
    images: str | None = None
    """Layout `masks`: folder of the images below `root`. Layout `video`: the video file below `root`."""
    masks: str | None = None
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
        if self.layout in KNOWN:
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
    def label_values(self) -> int:
        """Number of labels a prediction can take."""
        return KNOWN[self.layout][0] if self.layout in KNOWN else self.num_classes  # type: ignore[return-value]

    @property
    def ignored(self) -> int | None:
        """The label that is not scored."""
        return KNOWN[self.layout][1] if self.layout in KNOWN else self.ignore

    def require_disjoint(self, train: str, val: str) -> None:
        """Refuse `train_every`, `val_every` and `val_offset` that put an image into both splits.

        That is the case where a * train_every = val_offset + b * val_every has a solution. The layouts with fixed splits pass.

        Args:
            train: what the names of the settings begin with, `train` or `memory`. val: likewise, `val` or `query`.
        """
        names = (f"{train}_every", f"{val}_every", f"{val}_offset")
        train_every, val_every, offset = (getattr(self, name) for name in names)
        if self.layout not in KNOWN and offset % gcd(train_every, val_every) == 0:
            raise ValueError(
                f"{names[0]} {train_every}, {names[1]} {val_every} and {names[2]} {offset} make some images both {train} and {val}; "
                "choose an offset that is no multiple of the two numbers' common divisor"
            )


class ValidationSettings(LabelledSettings):
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
    compat: Annotated[Literal["paper", "released"], Shown("compat {}")] = "paper"
    """`released`: the released code's known deviations."""
