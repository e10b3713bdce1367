"""Settings of unsupervised video segmentation."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.metric import Metric
from densewalk.core.settings import MOST_STEPS, is_null
from densewalk.data.benchmarks import sizes
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work, vit


class VideoSegmentationSettings(EvaluationSettings):
    """Clusters of frozen features against the objects of annotated videos (Time-Tuning, https://arxiv.org/abs/2308.11796, section 4)."""

    TABLE: ClassVar[str] = "video_segmentation"
    PROCESSES: ClassVar[bool] = True
    VERSION: ClassVar[int] = 2
    """2: frames are in the order of their numbers."""
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
    """Frames of a clip; 16 for DAVIS and 4 for YouTube-VOS if not given. The rest of a video is a shorter clip."""
    size: Annotated[int, Shown("{} px")] = Field(default=224, ge=16)
    """Short side that frames are resized to, and side of the square that is cut from their middle."""
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
        return self.clip_frames or {"davis": 16, "youtube_vos": 4}[self.layout]

    def work(self, arch: Architecture) -> Work | None:
        """One pass over all frames; what is clustered on their features is not counted."""
        davis = sizes.DAVIS.get((self.year, self.split or "val"))
        frames = davis if self.layout == "davis" else sizes.YOUTUBE_VOS_TRAIN
        return None if frames is None else Work(frames * vit(arch, self.size))

    @property
    def list_name(self) -> str:
        """The list or folder of the sequences."""
        return f"{self.year} {self.split or 'val'}" if self.layout == "davis" else self.split or "train"


SETTINGS = {"video_segmentation": VideoSegmentationSettings}
