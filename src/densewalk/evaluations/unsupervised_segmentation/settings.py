"""Settings of fully unsupervised segmentation."""

from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.core.settings import MOST_STEPS, Difference, deviation
from densewalk.evaluations.common.label_map_settings import ValidationSettings
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown
from densewalk.evaluations.common.settings import FeatureRead
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work, vit

WITH_BACKGROUND = ("voc", "masks", "video")


class UnsupervisedSegmentationSettings(ValidationSettings):
    """Foreground by attention, its parts by k-means, objects by community detection on the parts' co-occurrence (Leopart, NeCo)."""

    TABLE: ClassVar[str] = "unsupervised_segmentation"
    PROCESSES: ClassVar[bool] = True
    VERSION: ClassVar[int] = 3
    """2: a cluster does not count among its own neighbors, as released; images are turned as their EXIF says, 16-bit gray is scaled.
    3: an ignored label among the classes takes no cluster."""
    TITLE: ClassVar[str] = "Unsupervised segmentation"
    PICTURES: ClassVar[str] = "image, ground truth and segments of {run}, matched to classes"
    RESOURCES: ClassVar[Resources] = Resources(mem_mb=32_000)
    FEATURES: ClassVar[str] = "attention"
    """Name of the features in the cache: the attention is one dimension more."""
    NEEDS: ClassVar[frozenset[str]] = frozenset({"attention"})
    METRICS: ClassVar[dict[str, Metric]] = {
        "mIoU": Metric("% after community detection"),
        "mIoU_cbfe": Metric("% of the extracted foreground's k-means"),
        "J_foreground": Metric("% Jaccard of the extracted foreground"),
    }
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference("communities by Infomap, whose license is not permissive", "by Louvain's method", "Leopart, section 3.3"),
        Difference("settings tuned on training masks by 300 trials", "Leopart's fixed settings", "NeCo's fully_unsup_seg.py"),
        Difference("attention masks read from files", "the evaluated backbone's own attention", "NeCo's fully_unsup_seg.py"),
    )

    def feature_reads(self) -> dict[str, FeatureRead]:
        """Both splits: once for the principal components, once to project them."""
        more, reads = [self.FEATURES], {}
        if self.threshold is None:
            reads["training"] = self.feature_read("training", self.train_list, self.train_every, passes=2, more=more)
        validation = self.feature_read("validation", self.val_list, self.val_every, self.val_offset, passes=2, more=more)
        return reads | {"validation": validation}

    background: int = Field(default=0, ge=0)
    """Label of the background; all other labels are foreground."""
    train_list: str = "train"
    """Layout `voc`: list in ImageSets/Segmentation with the images whose masks choose `threshold`."""
    train_every: int = Field(default=4, ge=1)
    """Layouts `masks` and `video`: every n-th labelled image (from the first on) is for choosing `threshold`."""
    mass: Annotated[float, SHOWN_BY_ANOTHER] = Field(default=0.65, gt=0, le=1)
    """Share of the CLS token's attention, mean of all heads, that the attention's foreground holds."""
    foreground_clusters: Annotated[int, Shown(lambda s: s.foreground_name, "first")] = Field(default=200, ge=2)
    """Clusters of all patches, each of which is foreground or background."""
    threshold: Annotated[float | None, SHOWN_BY_ANOTHER] = Field(default=None, ge=0, le=1)
    """A cluster is foreground if this share of it, mean over images, lies in the attention's foreground; null: chosen on the training
    images by their masks, as published, so that a few labels are used after all. A number uses none."""
    community_clusters: Annotated[int, Shown(lambda s: s.communities_name, "first")] = Field(default=149, ge=2)
    """Clusters of the foreground's patches that communities are made of (Leopart: 149 for ViT-S/16, 109 for ViT-B/8)."""
    edge_threshold: Annotated[float, SHOWN_BY_ANOTHER] = Field(default=0.09, ge=0, le=1)
    """Two of these are linked if each makes up this share of the other's neighborhood, mean over images (Leopart: 0.09 for ViT-S/16,
    0.07 for ViT-B/8)."""
    communities: int | None = Field(default=None, ge=1)
    """Communities to aim at; null: as many as there are foreground classes."""
    repeats: int = Field(default=5, ge=1, le=MOST_STEPS)
    """k-means runs with seeds of their own, over which `mIoU_cbfe` is averaged."""
    community_repeats: int = Field(default=10, ge=1, le=MOST_STEPS)
    """Runs of k-means and community detection with seeds of their own, over which `mIoU` is averaged."""
    mistyped_angle: bool | None = deviation(
        source="fully_unsup_seg.py (angles)", effect="a neighbor two up and one left for one up and left at distance 2", omit_null=True
    )
    """Look for neighbors at 4/3 pi instead of 5/4 pi, of eight angles."""
    components: int = Field(default=50, ge=1)
    """Principal components that are kept of the standardized features."""
    iterations: int = Field(default=100, ge=1, le=MOST_STEPS)
    """Most k-means iterations."""
    restarts: int = Field(default=5, ge=1, le=MOST_STEPS)
    """Starts of each k-means run, of which the best is taken."""

    def work(self, arch: Architecture) -> Work | None:
        """One pass over the scored images, and over those that choose the threshold; what is clustered is not counted."""
        scored, choosing = super().work(arch), self.images_of("training", self.train_every)
        if scored is None or choosing is None:
            return None
        return Work(scored.flops + (choosing * vit(arch, self.input_size) if self.threshold is None else 0.0))

    @model_validator(mode="after")
    def background_is_a_class(self) -> Self:
        """Require a background, and that the images that choose the threshold are not scored."""
        if self.layout not in WITH_BACKGROUND:
            raise ValueError(f"layout {self.layout} has no background class; allowed: {', '.join(WITH_BACKGROUND)}")
        if self.background >= self.label_values or self.background == self.ignored:
            raise ValueError(f"background {self.background} is no class; allowed: 0 to {self.label_values - 1} without `ignore`")
        if self.foreground_classes < 1:
            raise ValueError("beside the background there is no class; raise num_classes")
        if self.threshold is None:
            self.require_disjoint("train", "val")
        return self

    @property
    def foreground_classes(self) -> int:
        """Number of classes besides the background."""
        ignored_among_them = self.ignored is not None and self.ignored < self.label_values
        return self.label_values - 1 - ignored_among_them

    @property
    def foreground_name(self) -> str:
        """The foreground's extraction."""
        labels = "threshold by training masks" if self.threshold is None else f"threshold {self.threshold:g}"
        return f"CBFE ({self.foreground_clusters} clusters, own attention {100 * self.mass:g} %, {labels})"

    @property
    def communities_name(self) -> str:
        """The search for objects."""
        return f"CD by Louvain ({self.community_clusters} clusters, edges {self.edge_threshold:g})"


SETTINGS = {"unsupervised_segmentation": UnsupervisedSegmentationSettings}
