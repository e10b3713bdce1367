"""Settings of video object segmentation where objects enter later: YouTube-VOS and MOSE."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.data.benchmarks import sizes
from densewalk.evaluations.common.label_propagation_settings import PropagationPresets
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown

OVERALL = {
    "J&F": Metric("%", "mean of J and F"),
    "J": Metric("%", "region similarity, mean over objects"),
    "F": Metric("%", "contour accuracy, mean over objects"),
}
COPIED = {
    "J&F_copied": Metric("% of the given masks copied to every later frame instead", "a floor", better=None),
    "J_copied": Metric("% of the given masks copied to every later frame instead", "a floor", better=None),
}


class VideoObjectsSettings(PropagationPresets):
    """Objects whose masks are given once are followed through the video (DINO's and DINOv3's label propagation)."""

    PROCESSES: ClassVar[bool] = True
    VERSION: ClassVar[int] = 1
    RECIPE: ClassVar[str] = "label propagation"
    PICTURES: ClassVar[str] = "frames of {name}: the true objects above (where they are known), below as {run} propagates them"
    RESOURCES: ClassVar[Resources] = Resources(threads=4, runtime=960)

    split: Annotated[str, Shown(lambda s: f"{s.split}{s.chosen}{s.subset}", "first")] = "valid"
    """Folder below `root`. Of `valid` only the given masks are public: predictions are written for the benchmark's server, in
    submission.zip, and scored here only where every frame has a mask."""
    choice: Annotated[Literal["all", "fifth"], SHOWN_BY_ANOTHER] = "all"
    """`fifth`: only the fifth of the videos with the smallest SHA-256 of their names. It stands for the fifth of the training videos on
    which DINOv3 reports YouTube-VOS and MOSE, whose list is not released: so no published value is compared."""
    keep_small_objects: bool = True
    """Give an object that the reduced mask would lose the patch that it covers most."""

    @property
    def data_paths(self) -> tuple[str, ...]:
        """The split, and what says which categories the training set has."""
        return (f"{self.root}/{self.split}", f"{self.root}/train/meta.json")

    @property
    def chosen(self) -> str:
        """`choice` in words, behind the split."""
        return " (a fifth)" if self.choice == "fifth" else ""


class YouTubeVosSettings(VideoObjectsSettings):
    """YouTube-VOS 2018 or 2019 (https://arxiv.org/abs/1809.03327): objects may enter later, each with its mask in its first frame.

    G is the mean of J and F over seen and unseen categories, each a mean over objects. The server does not say which frames it leaves
    out; here an object is scored on the frames after its first one.
    """

    TABLE: ClassVar[str] = "youtube_vos"
    TITLE: ClassVar[str] = "Video object segmentation (YouTube-VOS)"
    METRICS: ClassVar[dict[str, Metric]] = {
        **OVERALL,
        "G": Metric("%", "mean of the next four, the benchmark's overall score"),
        "J_seen": Metric("%", "J of categories that the training set has"),
        "F_seen": Metric("%", "F of categories that the training set has"),
        "J_unseen": Metric("%", "J of other categories"),
        "F_unseen": Metric("%", "F of other categories"),
        **COPIED,
    }

    objects: Annotated[Literal["all", "first"], Shown(lambda s: "objects of the first frame" if s.objects == "first" else "")] = "all"
    """`first`: only objects that are given in the first annotated frame, as in DINOv3's evaluation."""
    scoring: Annotated[Literal["youtube_vos", "davis"], Shown("scored as {}")] = "youtube_vos"
    """Frames that are scored: those after an object's first, or (`davis`) all but the first and the last."""
    seen: list[str] | None = Field(default=None, min_length=1)
    """Categories of the training set; those of train/meta.json below `root` if not given."""

    @model_validator(mode="after")
    def scored_from_the_first_frame(self) -> Self:
        """Refuse DAVIS's score of objects that enter later: before they do, they would be found for certain."""
        if self.scoring == "davis" and self.objects != "first":
            raise ValueError("scoring: davis counts all frames, also those before an object enters; set `objects: first`")
        return self

    @property
    def frames(self) -> int | None:
        """Of the training set; the validation sets' are not known here."""
        return sizes.YOUTUBE_VOS_TRAIN if self.split == "train" and self.choice == "all" else None


class MoseSettings(VideoObjectsSettings):
    """MOSE (https://arxiv.org/abs/2302.01872): crowded scenes in which objects vanish and come back; all are in the first frame."""

    TABLE: ClassVar[str] = "mose"
    TITLE: ClassVar[str] = "Video object segmentation (MOSE)"
    METRICS: ClassVar[dict[str, Metric]] = {**OVERALL, **COPIED}

    scoring: Annotated[Literal["mose", "davis", "vos_benchmark"], Shown("scored as {}")] = "mose"
    """All but the first and the last frame count. `mose`: the organizers' tool, J = (I + 1) / (U + 1). `davis`: DAVIS's J and F.
    `vos_benchmark`: as `davis`, but only from the frame on in which truth or prediction first shows the object."""


SETTINGS = {"youtube_vos": YouTubeVosSettings, "mose": MoseSettings}
