"""Settings of landmark retrieval."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.data.benchmarks import sizes
from densewalk.evaluations.common.presets import NamedPresets
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown, is_published
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work, vit

PUBLISHED_DATA = {"ROxford5k": "roxford5k", "RParis6k": "rparis6k"}
FITTED = {"thumbnail": "longest side {} px", "square": "{} px, padded to a square"}


class RetrievalSettings(NamedPresets):
    """Images of the same landmark found by the cosine of one vector an image: revisited Oxford and Paris. Nothing is trained.

    Presets: `dino` (https://arxiv.org/abs/2104.14294, section 4.2.1, without its landmark weights) and `dinov3`
    (https://arxiv.org/abs/2508.10104, section D). The benchmark's own protocol crops the queries; theirs do not.
    """

    TABLE: ClassVar[str] = "retrieval"
    PROCESSES: ClassVar[bool] = True
    VERSION: ClassVar[int] = 1
    TITLE: ClassVar[str] = "Landmark retrieval"
    RECIPE: ClassVar[str] = "cosine of CLS"
    PICTURES: ClassVar[str] = "queries, and the first images that {run} finds: blue right, orange wrong"
    RESOURCES: ClassVar[Resources] = Resources()
    NEEDS: ClassVar[frozenset[str]] = frozenset({"pooled"})
    METRICS: ClassVar[dict[str, Metric]] = {
        "mAP_medium": Metric("%", "easy and hard images to be found"),
        "mAP_hard": Metric("%", "hard images to be found, easy ones removed"),
        "mAP_easy": Metric("%", "easy images to be found, hard ones removed"),
        "mP10_medium": Metric("% of the first 10 images that are right"),
        "mP10_hard": Metric("% of the first 10 images that are right"),
        "mP10_easy": Metric("% of the first 10 images that are right"),
        "mAP_medium_constant": Metric("% of equal features: images in the list's order", "a floor", better=None),
        "mAP_hard_constant": Metric("% of equal features: images in the list's order", "a floor", better=None),
        "mAP_easy_constant": Metric("% of equal features: images in the list's order", "a floor", better=None),
    }
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"dino": {}, "dinov3": {"fit": "square"}}

    preset: Literal["dino", "dinov3"] = "dino"
    """Whose protocol."""
    layout: Annotated[Literal["roxford5k", "rparis6k"], Shown("{}", "first")]
    """Folder below `root`, with gnd_{layout}.pkl and jpg."""
    size: Annotated[int, Shown(lambda s: FITTED[s.fit].format(s.size))] = Field(default=224, ge=16)
    """Longest side of an image in pixels."""
    fit: Annotated[Literal["thumbnail", "square"], SHOWN_BY_ANOTHER] = "thumbnail"
    """`thumbnail`: Lanczos, never enlarged; what is left over by whole patches is cut off on the right and below, as a ViT's
    convolution does. `square`: bicubic, also enlarged, black on both sides of the shorter side."""
    scales: list[Annotated[float, Field(gt=0, le=2)]] = Field(default=[1.0], min_length=1)
    """Factors by which the image is resized (bilinear) before the network; the mean of their vectors is taken. DINO's multi-scale
    evaluation has 1, 0.7071 and 0.5."""
    crop_query: bool = False
    """Cut queries to the box of their landmark, as the benchmark's own protocol does."""

    def work(self, arch: Architecture) -> Work | None:
        """Each image once for each factor, at an aspect ratio of 4 to 3."""
        images, queries = sizes.LANDMARKS[self.layout]
        if PUBLISHED_DATA.get(self.dataset) != self.layout:
            return None
        shorter = self.size if self.fit == "square" else self.size * 3 // 4
        return Work((images + queries) * sum(vit(arch, int(shorter * s), int(self.size * s), cls_only=True) for s in self.scales))

    @property
    def data_paths(self) -> tuple[str, ...]:
        """The folder of the layout."""
        return (f"{self.root}/{self.layout}",)

    @property
    def published_protocol(self) -> str | None:
        """DINOv3's where every setting is its own."""
        same = self.preset == "dinov3" and PUBLISHED_DATA.get(self.dataset) == self.layout and is_published(self)
        return "CLS cosine 224 (DINOv3)" if same else None


SETTINGS = {"retrieval": RetrievalSettings}
