"""Settings of in-context segmentation, the Hummingbird protocol."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.core.settings import Difference, deviation, switch
from densewalk.data.benchmarks.label_rules import LABELS
from densewalk.evaluations.common.label_map_settings import LabelledSettings, require_apart

PUBLISHED_AT_DEFAULT = (
    "memory_list",
    "query_list",
    "fraction_seeds",
    "input_size",
    "augmentation_epochs",
    "memory_size",
    "neighbours",
    "temperature",
    "blue_std",
    "remember_ignored",
    "count_absent_classes",
)


class IncontextSettings(LabelledSettings):
    """Dense nearest-neighbor retrieval: patches of labeled memory images vote on the patches of query images.

    The released code is https://github.com/vpariza/open-hummingbird-eval at commit 5e79da2, with which the published values were made.
    """

    TABLE: ClassVar[str] = "incontext"
    VERSION: ClassVar[int] = 1
    TITLE: ClassVar[str] = "In-context segmentation"
    PICTURES: ClassVar[str] = "image, ground truth and prediction of {run}"
    RESOURCES: ClassVar[Resources] = Resources(threads=4, mem_mb=64_000)
    METRICS: ClassVar[dict[str, Metric]] = {
        "mIoU": Metric("%", "predictions are classes"),
        "mIoU_hungarian": Metric("%", "predictions matched to classes after the fact, as published"),
    }
    # published values are Hungarian-matched: our metric -> the metric's name in published.csv
    PUBLISHED_METRICS: ClassVar[dict[str, str] | None] = {"mIoU_hungarian": "mIoU"}

    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference("approximate search (ScaNN)", "exact search", "hbird_eval.py"),
        Difference("fails where `memory_size` is more patches than there are", "all patches are kept", "hbird_eval.py:447-517"),
    )

    memory_list: str = "trainaug"
    """Layout `voc`: list in ImageSets/Segmentation with the memory images."""
    query_list: str = "val"
    """Layout `voc`: list in ImageSets/Segmentation with the query images."""
    memory_every: int = Field(default=4, ge=1)
    """Layouts `masks` and `video`: every n-th labelled image (from the first on) is memory."""
    query_every: int = Field(default=8, ge=1)
    """Layouts `masks` and `video`: every n-th labelled image from `query_offset` on is a query."""
    query_offset: int = Field(default=6, ge=0)
    """Layouts `masks` and `video`: the first query; the default lies midway between two memory images."""
    fraction: Literal["1", "1/8", "1/64", "1/128"] = "1"
    """Share of the memory images that is used."""
    fraction_seeds: list[int] = Field(default=[42, 400, 783, 1293, 4019], min_length=1)
    """Below fraction 1: seeds of the random samples of memory images; the score is the mean over them."""
    input_size: int = Field(default=512, ge=16)
    """Side of the square images in pixels, rounded down to a multiple of the backbone's patch size (512: 504 for patch 14)."""
    augmentation_epochs: int = Field(default=2, ge=0)
    """Passes over the memory images with random colours and crops; 0: one pass over the images as they are."""
    memory_size: int | None = Field(default=10_240_000, ge=1)
    """Patches in memory; where there are more, each image keeps an equal number, those with rare classes preferred.
    null: all."""
    neighbours: int = Field(default=30, ge=1)
    """Memory patches that vote on a query patch."""
    temperature: float = Field(default=0.02, gt=0)
    """Of the softmax over the neighbours' cosine similarities."""
    compat: Literal["paper", "released"] = "paper"
    """`paper`: the protocol as published. `released`: the released code's known deviations."""
    blue_std: Annotated[float, Field(gt=0)] | None = switch(
        omit_null=True, paper=0.225, released=0.255, source="hbird_eval.py, all versions", effect="a typing error in the normalization"
    )
    """Standard deviation that blue is normalized with."""
    remember_ignored: bool | None = deviation(source="hbird_eval.py:309-310", effect="unlabeled patches vote for class 0", omit_null=True)
    """Store ignored pixels in memory as class 0."""
    count_absent_classes: bool | None = deviation(
        source="hbird_eval.py:253 (PredsmIoU)", effect="ADE20K's empty class costs 1/151", omit_null=True
    )
    """Count a class that occurs nowhere as 0 in the mean, instead of leaving it out."""

    @model_validator(mode="after")
    def queries_are_not_memory(self) -> Self:
        """No image may answer for itself."""
        if self.label_set not in LABELS:
            require_apart(self.memory_every, self.query_every, self.query_offset, ("memory_every", "query_every", "query_offset"))
        return self

    @property
    def protocol(self) -> str:
        """Everything but the data."""
        memory = "all patches" if self.memory_size is None else f"at most {self.memory_size} patches"
        epochs = f"augmentation epochs {self.augmentation_epochs}" if self.augmentation_epochs else "no augmentation"
        parts = [
            f"dense NN, fraction {self.fraction}",
            f"{self.input_size} px",
            f"{self.neighbours} neighbours (exact)",
            f"temperature {self.temperature:g}",
            f"memory {memory}, {epochs}",
        ]
        if self.fraction != "1":
            parts.append(f"mean of {len(self.fraction_seeds)} samples")
        if self.layout == "voc":
            parts.append(f"{self.memory_list} to {self.query_list}")
        if self.label_set not in LABELS:
            parts.append(f"memory every {self.memory_every}, queries every {self.query_every} from {self.query_offset}")
        parts.append(f"compat {self.compat}")
        set_here = [f"{name} {getattr(self, name)}" for name in self.switches() if getattr(self, name) is not None]
        return ", ".join([*parts, *set_here])

    @property
    def published_protocol(self) -> str | None:
        """`dense NN, fraction ...` where every setting is the published one (Hummingbird's, run with the released code)."""
        names = {"voc": "PascalVOC", "ade20k": "ADE20K"}
        as_published = all(getattr(self, name) == type(self).model_fields[name].get_default() for name in PUBLISHED_AT_DEFAULT)
        if self.dataset == names.get(self.layout) and self.compat == "released" and as_published:
            return f"dense NN, fraction {self.fraction}"
        return None


SETTINGS = {"incontext": IncontextSettings}
