"""Settings of semantic correspondence."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.core.settings import switch
from densewalk.data.benchmarks import sizes
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown, is_published
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work, vit

ALPHAS = (0.05, 0.1, 0.15, 0.2)
"""Shares of the object's size within which a prediction is correct."""
RELEASES = "evaluation code of DIFT 9421eb2, INSID3 f1c9622 and probe3d a1f1464"
NAMES = {
    "own": "bilinear source, nearest patch",
    "dift": "maps enlarged to the image (DIFT)",
    "insid3": "windowed soft-argmax (INSID3)",
    "probe3d": "nearest patch on padded squares (probe3d)",
}


class CorrespondenceSettings(EvaluationSettings):
    """Where a keypoint of one image lies in another image of the same category, by the most similar patch (SPair-71k); no training."""

    TABLE: ClassVar[str] = "correspondence"
    PROCESSES: ClassVar[bool] = True
    VERSION: ClassVar[int] = 1
    TITLE: ClassVar[str] = "Semantic correspondence (PCK)"
    PICTURES: ClassVar[str] = "keypoints of the left image and where {run} finds them in the right one: right (blue) and wrong (orange)"
    RESOURCES: ClassVar[Resources] = Resources(gpu=1, threads=4, runtime=240)
    METRICS: ClassVar[dict[str, Metric]] = {
        "PCK@0.1": Metric("%", "keypoints predicted within 0.1 of the size of the object's box"),
        **{f"PCK@{alpha:g}": Metric("%", f"within {alpha:g}") for alpha in ALPHAS if alpha != 0.1},
        "PCK@0.1_position": Metric("%", "of the same relative place in the other image", better=None),
    }

    split: Annotated[Literal["test", "val", "trn"], Shown("SPair-71k {}")] = "test"
    """List of pairs; test has 12,234."""
    layout: Literal["large", "small"] = "large"
    """Folder of lists below Layout."""
    readout: Annotated[Literal["own", "dift", "insid3", "probe3d"], Shown(lambda s: s.readout_name, "first")] = "own"
    """How a keypoint is looked up. `own`: the feature between the patches around it, the most similar patch's center; images keep their
    aspect. `dift`, `insid3`, `probe3d`: as the released code of these papers, whose conventions differ by up to half a patch."""
    size: Annotated[Annotated[int, Field(ge=16)] | None, SHOWN_BY_ANOTHER] = switch(
        by="readout", own=480, dift=768, insid3=768, probe3d=800, effect="more patches, each of fewer pixels", source=RELEASES
    )
    """`own`: short side in pixels, both sides rounded to the nearest whole patches; the others: side of the square that the image is
    squeezed to, or padded (probe3d), rounded down to whole patches."""
    threshold: Annotated[Literal["bbox", "image"], SHOWN_BY_ANOTHER] = "bbox"
    """What the distance is compared with: the longer side of the target's box, or of the target image."""
    average: Annotated[Literal["image", "point"] | None, SHOWN_BY_ANOTHER] = switch(
        by="readout",
        own="image",
        dift="image",
        insid3="image",
        probe3d="point",
        effect="pairs of more keypoints count more",
        source=RELEASES,
    )
    """`image`: mean of the pairs' shares; `point`: share of all keypoints."""
    over: Annotated[Literal["pairs", "categories"] | None, SHOWN_BY_ANOTHER] = switch(
        by="readout",
        own="pairs",
        dift="pairs",
        insid3="pairs",
        probe3d="categories",
        effect="categories of more pairs count more or not",
        source=RELEASES,
    )
    """Over all pairs at once, or the mean of the categories' values."""
    pairs_per_category: Annotated[Annotated[int, Field(ge=1)] | None, SHOWN_BY_ANOTHER] = None
    """Only so many pairs of each category, drawn once and for all; all by default. probe3d draws 200 in a way of its own."""
    window: Annotated[float, SHOWN_BY_ANOTHER] = Field(default=7, gt=0)
    """`insid3`: standard deviation of the window about the best patch, in patches."""
    temperature: Annotated[float, SHOWN_BY_ANOTHER] = Field(default=0.04, gt=0)
    """`insid3`: of the softmax of the windowed cosines."""

    def work(self, arch: Architecture) -> Work | None:
        """Every image of SPair-71k once, those of `own` as of 500 x 375 px; looking keypoints up is not counted."""
        size = self.resolved().size
        assert size is not None
        sides = (size, size * 4 // 3) if self.readout == "own" else (size, size)
        return Work(sizes.SPAIR_IMAGES * vit(arch, *sides)) if self.dataset == "SPair-71k" else None

    @property
    def readout_name(self) -> str:
        """The read-out with its parameters, and how its errors are counted."""
        s = self.resolved()
        shape = {"own": "short side {} px", "probe3d": "{} px, padded"}.get(s.readout, "{} px").format(s.size)
        soft = f", window {s.window:g}, temperature {s.temperature:g}" if s.readout == "insid3" else ""
        some = f", {s.pairs_per_category} pairs of each category" if s.pairs_per_category else ""
        return f"PCK by {s.average} over {s.over}, {s.threshold} threshold, {shape}, {NAMES[s.readout]}{soft}{some}"

    @property
    def published_protocol(self) -> str | None:
        """INSID3's, on all pairs; what probe3d draws is not stated."""
        s = self.resolved()
        standard = (s.size, s.average, s.over) == (768, "image", "pairs") and self.readout == "insid3"
        if self.dataset != "SPair-71k" or not standard:
            return None
        return "PCK by image, 768 px, windowed soft-argmax (INSID3)" if is_published(self, "readout", "size", "average", "over") else None


SETTINGS = {"correspondence": CorrespondenceSettings}
