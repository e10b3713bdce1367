"""Settings of (over)clustering."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.core.settings import MOST_STEPS, Difference, is_null
from densewalk.evaluations.common.label_map_settings import BatchedValidationSettings
from densewalk.evaluations.common.protocol_name import Shown, is_published
from densewalk.evaluations.common.settings import FeatureRead


class OverclusterSettings(BatchedValidationSettings):
    """k-means on frozen patch features of the validation images, clusters being matched to classes (NeCo, Leopart).

    The released code is https://github.com/vpariza/NeCo at commit 3932160, with which the published values were made.
    """

    TABLE: ClassVar[str] = "overcluster"
    PROCESSES: ClassVar[bool] = True
    VERSION: ClassVar[int] = 3
    """2: images are turned as their EXIF says, 16-bit gray is scaled. 3: an ignored label among the classes takes no cluster."""
    TITLE: ClassVar[str] = "Clusters of frozen features"
    PICTURES: ClassVar[str] = "image, ground truth and clusters of {run}, matched to classes"
    RESOURCES: ClassVar[Resources] = Resources(mem_mb=64_000, runtime=480)
    METRICS: ClassVar[dict[str, Metric]] = {"mIoU": Metric("%")}
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference("k-means starts at random points (faiss)", "starts by k-means++ (scikit-learn)", "eval_overcluster.py"),
    )

    clusters: Annotated[int | None, Shown(lambda s: s.recipe, "first")] = Field(default=None, ge=2)
    """Number of clusters, each of which takes the class of most of its pixels (published: 300 and 500); null: as many as classes,
    matched one to one."""
    many_to_one: Literal["iou"] | None = Field(default=None, exclude_if=is_null)
    """Where there are more clusters than classes: `iou` gives each cluster the class with which it has the largest IoU instead of the
    one that most of its pixels have. The released code has this option; no published value is made with it."""
    repeats: int = Field(default=5, ge=1, le=MOST_STEPS)
    """k-means runs with seeds of their own, over which the score is averaged."""
    components: int = Field(default=50, ge=1)
    """Principal components that are kept of the standardized features."""
    iterations: int = Field(default=100, ge=1, le=MOST_STEPS)
    """Most k-means iterations."""
    restarts: int = Field(default=5, ge=1, le=MOST_STEPS)
    """Starts of each k-means run, of which the best is taken."""

    @model_validator(mode="after")
    def matched_many_to_one(self) -> Self:
        """Refuse a rule for many clusters where there are as many as classes: it would silently do nothing."""
        if self.many_to_one is not None and self.clusters is None:
            raise ValueError("many_to_one: without `clusters` the matching is one to one; set `clusters`, or leave it out")
        return self

    @property
    def matching(self) -> Literal["hungarian", "many_to_one", "many_to_one_iou"]:
        """How clusters take their classes."""
        if self.clusters is None:
            return "hungarian"
        return "many_to_one" if self.many_to_one is None else "many_to_one_iou"

    @property
    def void(self) -> int | None:
        """The label that takes no cluster and is left out of the mean: the ignored one. None as released."""
        return None if self.resolved().count_absent_classes else self.ignored

    @property
    def scored_classes(self) -> int:
        """Classes that take clusters."""
        return self.label_values - (self.void is not None and self.void < self.label_values)

    def feature_reads(self) -> dict[str, FeatureRead]:
        """The validation images: once for the principal components, once to project them."""
        return {"validation": self.feature_read("validation", self.val_list, self.val_every, self.val_offset, passes=2)}

    @property
    def recipe(self) -> str:
        """The number of clusters and their matching."""
        return "k-means K=GT Hungarian" if self.clusters is None else f"k-means K={self.clusters} many-to-one"

    @property
    def published_protocol(self) -> str | None:
        """NeCo's, where every setting is its own. Its COCO masks are not the panoptic ones, so that COCO has no published value."""
        same_data = self.layout == "voc" and self.dataset == "PascalVOC"
        same_settings = self.compat == "released" and self.clusters in (None, 300, 500) and is_published(self, "compat", "clusters")
        return self.recipe if same_data and same_settings else None


SETTINGS = {"overcluster": OverclusterSettings}
