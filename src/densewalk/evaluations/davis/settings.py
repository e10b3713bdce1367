"""Settings of DAVIS label propagation."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.hashing import config_hash
from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.core.settings import deviation, switch
from densewalk.data.benchmarks import sizes
from densewalk.evaluations.common.label_propagation_settings import DINOV3_SIZES, PropagationPresets
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown, is_published
from densewalk.evaluations.common.settings import FeatureRead


class DavisSettings(PropagationPresets):
    """Video object segmentation: the first frame's masks travel along frozen features (DINO's protocol).

    The released code is https://github.com/facebookresearch/dino at commit 7c446df.
    """

    TABLE: ClassVar[str] = "davis"
    PROCESSES: ClassVar[bool] = True
    VERSION: ClassVar[int] = 3
    """3: unsupervised, empty proposals are added where there are fewer than objects; frames are in the order of their numbers."""
    TITLE: ClassVar[str] = "Video object segmentation (DAVIS)"
    RECIPE: ClassVar[str] = "label propagation"
    PICTURES: ClassVar[str] = "frames of {name}: the true objects above, below as {run} propagates them from the first frame"
    RESOURCES: ClassVar[Resources] = Resources(threads=4)
    METRICS: ClassVar[dict[str, Metric]] = {
        "J&F": Metric("%", "mean of J and F"),
        "J": Metric("%", "region similarity, mean over objects"),
        "F": Metric("%", "contour accuracy, mean over objects"),
        "J_recall": Metric("% of frames with J above 50"),
        "F_recall": Metric("% of frames with F above 50"),
        "J_decay": Metric("% lost from the first to the last quarter", better="lower"),
        "F_decay": Metric("% lost from the first to the last quarter", better="lower"),
        "J&F_copied": Metric("% of the first frame's labels copied to every frame instead", "a floor", better=None),
        "J_copied": Metric("% of the first frame's labels copied to every frame instead", "a floor", better=None),
    }

    task: Annotated[Literal["semi-supervised", "unsupervised"], Shown("{}", "first")] = "semi-supervised"
    """`unsupervised`: instead of the first mask, clusters of the first frame's features are propagated, and each object is scored
    with the cluster that fits it best. Reads Annotations_unsupervised where `year` is 2017."""
    proposals: int = Field(default=20, ge=1, le=20)
    """Task `unsupervised`: number of clusters; DAVIS allows 20."""
    year: Annotated[Literal[2016, 2017], Shown(lambda s: f"{s.year} {s.split}{s.subset}", "first")] = 2017
    """Which lists of sequences, ImageSets/2016 or 2017. In 2016 all objects of a sequence count as one."""
    split: Annotated[str, SHOWN_BY_ANOTHER] = "val"
    """List in ImageSets/{year}: `val` or `train`. Of `test-dev` only the first masks are public: nothing is scored, and submission.zip is
    what DAVIS's server takes."""
    resolution: Annotated[str, SHOWN_BY_ANOTHER] = "480p"
    """Folder below JPEGImages and Annotations."""
    compat: Annotated[Literal["paper", "released"], Shown("compat {}", "last")] = "paper"
    """`released`: DINO's code, with which the published values were made, to the digit."""
    red_std: Annotated[float, Field(gt=0)] | None = switch(
        paper=0.229, released=0.228, source="eval_video_segmentation.py:244", effect="a typing error in the normalization"
    )
    """Standard deviation that red is normalized with."""
    keep_small_objects: bool | None = switch(
        paper=True, released=False, source="eval_video_segmentation.py:182", effect="an object too small for any patch is lost"
    )
    """Give an object that the reduced first mask would lose the patch that it covers most."""
    constant_channel_wins: bool | None = deviation(source="eval_video_segmentation.py (norm_mask)", effect="NaN wins the argmax everywhere")
    """Let a channel with one value everywhere become 0 / 0 when channels are stretched."""

    def ladder_reads(self) -> dict[str, FeatureRead]:
        """The frames, as the network takes them."""
        rules, own = self.pixel_rules, self.resolved()
        side = [rules.short_patches] if rules.short_patches is not None else [self.short_side, self.multiple]
        return {"frames": FeatureRead(config_hash([self.root, self.year, self.split, self.resolution, side, rules.resize, own.red_std]))}

    @property
    def frames(self) -> int | None:
        """Of the official lists."""
        return sizes.DAVIS.get((self.year, self.split))

    @property
    def published_protocol(self) -> str | None:
        """DINO's, with its released code's deviations, or DINOv3's, where every other setting is theirs and the data are DAVIS-2017's."""
        if self.dataset != "DAVIS-2017" or not is_published(self, "compat"):
            return None
        if self.preset in DINOV3_SIZES:
            return f"label propagation (DINOv3, {self.preset[-1].upper()})" if self.compat == "paper" else None
        return "label propagation (DINO)" if self.compat == "released" else None

    @property
    def scored(self) -> bool:
        """False for a list whose masks are on the server only."""
        return not self.split.startswith("test")

    @model_validator(mode="after")
    def clusters_are_scored(self) -> Self:
        """Refuse clusters without any mask to compare them with."""
        if self.task == "unsupervised" and not self.scored:
            raise ValueError(f"task: unsupervised has nothing to be scored with on {self.split}; choose split val or train")
        return self


SETTINGS = {"davis": DavisSettings}
