"""Settings of unsupervised video segmentation."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.metric import Metric
from densewalk.core.settings import MOST_STEPS, deviation, is_null
from densewalk.data.benchmarks import sizes
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work, vit


class ClipSettings(EvaluationSettings):
    """Clips of annotated videos, whose frames are cut to a square."""

    PROCESSES: ClassVar[bool] = True
    CLIP_FRAMES: ClassVar[dict[str, int]]
    """Frames of a clip by layout where the study gives no number."""

    layout: Annotated[Literal["davis", "youtube_vos"], Shown(lambda s: s.list_name)]
    """`davis`: JPEGImages and Annotations with ImageSets. `youtube_vos`: {split}/JPEGImages and {split}/Annotations."""
    split: Annotated[str | None, SHOWN_BY_ANOTHER] = None
    """Layout `davis`: list in ImageSets/{year}, `val` if not given. Layout `youtube_vos`: folder below `root`, `train` if not given
    (the only one whose masks are public)."""
    year: Annotated[Literal[2016, 2017], SHOWN_BY_ANOTHER] = 2017
    """Layout `davis`: which lists. In 2016 all objects of a sequence count as one."""
    resolution: str = "480p"
    """Layout `davis`: folder below JPEGImages and Annotations."""
    sequences: list[str] | None = Field(default=None, min_length=1)
    """Only these sequences; all by default."""
    sequence_list: str | None = Field(default=None, exclude_if=is_null)
    """Layout `youtube_vos`: text file below `root` with the names of the sequences to score, one a line. Time-Tuning scores 695 of the
    training sequences and trains on the others."""
    clip_frames: Annotated[int | None, Shown(lambda s: f"clips of {s.frames}")] = Field(default=None, ge=1)
    """Frames of a clip; the number published for the layout if not given. The rest of a video is a shorter clip."""
    size: Annotated[int, Shown("{} px")] = Field(default=224, ge=16)
    """Short side that frames are resized to, and side of the square that is cut from their middle."""

    @model_validator(mode="after")
    def fields_of_the_layout(self) -> Self:
        """Refuse fields that would silently do nothing; a written specification has all of them, with their defaults."""
        unused = [name for name in ("year", "resolution") if getattr(self, name) != type(self).model_fields[name].default]
        if self.layout == "youtube_vos" and unused:
            raise ValueError(f"layout youtube_vos has no {' and no '.join(unused)}: leave them out")
        if self.sequence_list is not None and (self.layout != "youtube_vos" or self.sequences is not None):
            raise ValueError("sequence_list: for layout youtube_vos, and not beside sequences; leave one of them out")
        return self

    @property
    def frames(self) -> int:
        """Frames of a clip."""
        return self.clip_frames or self.CLIP_FRAMES[self.layout]

    def work(self, arch: Architecture) -> Work | None:
        """One pass over all frames; what is made of their features is not counted."""
        davis = sizes.DAVIS.get((self.year, self.split or "val"))
        frames = davis if self.layout == "davis" else sizes.YOUTUBE_VOS_TRAIN
        return None if frames is None else Work(frames * vit(arch, self.size))

    @property
    def list_name(self) -> str:
        """The list or folder of the sequences."""
        return f"{self.year} {self.split or 'val'}" if self.layout == "davis" else self.split or "train"


class VideoSegmentationSettings(ClipSettings):
    """Clusters of frozen features against the objects of annotated videos (Time-Tuning, https://arxiv.org/abs/2308.11796, section 4)."""

    TABLE: ClassVar[str] = "video_segmentation"
    VERSION: ClassVar[int] = 3
    """2: frames are in the order of their numbers. 3: background takes no cluster of a frame or clip that has none."""
    TITLE: ClassVar[str] = "Unsupervised video segmentation"
    RECIPE: ClassVar[str] = "unsupervised video segmentation"
    PICTURES: ClassVar[str] = "frames of {name}: the true objects above, clusters of {run} below"
    METRICS: ClassVar[dict[str, Metric]] = {
        "F": Metric("% mIoU", "clusters of each frame, as many as it has labels, matched one to one"),
        "C": Metric("% mIoU", "clusters of each clip, as many as it has labels, matched one to one"),
        "D": Metric("% mIoU", "clusters of the whole data set, as many as it has labels, matched one to one"),
        "F_over": Metric("% mIoU", "`clusters` of each frame, matched many to one"),
        "C_over": Metric("% mIoU", "`clusters` of each clip, matched many to one"),
        "D_over": Metric("% mIoU", "`dataset_clusters` of the whole data set, matched many to one"),
    }
    CLIP_FRAMES: ClassVar[dict[str, int]] = {"davis": 16, "youtube_vos": 4}

    dataset_size: int = Field(default=112, ge=16)
    """Side at which labels are compared when the whole data set is clustered; otherwise it is `size`."""
    components: int = Field(default=50, ge=1)
    """Principal components that are kept of the standardized features."""
    clusters: Annotated[int, Shown(lambda s: f"K {s.clusters}/{s.dataset_clusters}")] = Field(default=10, ge=1)
    """Clusters of a frame or a clip where there are more than labels."""
    dataset_clusters: Annotated[int, SHOWN_BY_ANOTHER] = Field(default=200, ge=1)
    """Clusters of the whole data set where there are more than labels."""
    iterations: int = Field(default=50, ge=1, le=MOST_STEPS)
    """Most k-means iterations."""
    restarts: int = Field(default=5, ge=1, le=MOST_STEPS)
    """k-means runs, of which the best is taken."""
    many_to_one: Literal["iou"] | None = Field(default=None, exclude_if=is_null)
    """Where there are more clusters than labels (`_over`): `iou` gives each cluster the label with which it has the largest IoU instead
    of the one that most of its pixels have. The released code has this option."""

    @property
    def matching(self) -> Literal["many_to_one", "many_to_one_iou"]:
        """How clusters take their labels where there are more of them."""
        return "many_to_one" if self.many_to_one is None else "many_to_one_iou"


class ClipPropagationSettings(ClipSettings):
    """The first frame's labels propagated along frozen features of a clip, scored by Time-Tuning's propagation score.

    The released code is https://github.com/SMSD75/Timetuning at commit 94550b5, where it watches a training.
    """

    TABLE: ClassVar[str] = "clip_propagation"
    VERSION: ClassVar[int] = 1
    TITLE: ClassVar[str] = "Propagation score of clips"
    RECIPE: ClassVar[str] = "clip propagation (Time-Tuning)"
    PICTURES: ClassVar[str] = "frames of {name}: the true objects above, below as {run} propagates them from the first frame"
    METRICS: ClassVar[dict[str, Metric]] = {
        "propagation_score": Metric("% IoU", "mean over the objects of all clips, the given first frame included"),
        "propagation_score_copied": Metric("% IoU of the first frame's labels copied to every frame instead", "a floor", better=None),
    }
    CLIP_FRAMES: ClassVar[dict[str, int]] = {"davis": 25, "youtube_vos": 25}

    top_k: Annotated[int, Shown(lambda s: f"top {s.top_k} within {s.radius or 'any distance'}")] = Field(default=5, ge=1)
    """Most similar patches that a patch takes its label from."""
    radius: Annotated[int, SHOWN_BY_ANOTHER] = Field(default=12, ge=0)
    """How far a label may move, in patches to each side; 0 for no limit."""
    context: Annotated[int, Shown("first and last {} frames")] = Field(default=4, ge=1)
    """Earlier frames to propagate from, besides the first."""
    temperature: float = Field(default=0.1, gt=0)
    """Of the softmax over the kept patches' cosine similarities."""
    compat: Annotated[Literal["paper", "released"], Shown("compat {}", "last")] = "paper"
    """`released`: the released code's score, to the digit."""
    running_sums: bool | None = deviation(
        source="mask_propagation.py (the score's sums are not set to 0)", effect="a frame's IoU is that of all frames so far"
    )
    """Divide sums of intersections and unions from the first frame on, instead of each frame's own."""
    skip_missed_frames: bool | None = deviation(
        source="mask_propagation.py (the score's divisor)", effect="a lost object scores as if its clip ended where it was lost"
    )
    """Divide by the frames in which the prediction shows the object, instead of those in which the prediction or the truth does."""


SETTINGS = {"video_segmentation": VideoSegmentationSettings, "clip_propagation": ClipPropagationSettings}
