"""Settings of in-context segmentation, the Hummingbird protocol."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.core.settings import MOST_STEPS, Difference, Seed, Unique, deviation, switch
from densewalk.data.benchmarks.label_rules import LABELS
from densewalk.evaluations.common.label_map_settings import FeatureSettings, RefinedSettings
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown, is_published
from densewalk.evaluations.common.settings import FeatureRead
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work, tokens, vit


class IncontextSettings(FeatureSettings, RefinedSettings):
    """Dense nearest-neighbor retrieval: patches of labeled memory images vote on the patches of query images.

    The released code is https://github.com/vpariza/open-hummingbird-eval at commit 5e79da2, with which the published values were made.
    """

    TABLE: ClassVar[str] = "incontext"
    PROCESSES: ClassVar[bool] = True
    VERSION: ClassVar[int] = 3
    """3: of equally similar ones, the earlier comes first: so it is the same for several processes as for one; 2: EXIF, 16-bit gray."""
    TITLE: ClassVar[str] = "In-context segmentation"
    RECIPE: ClassVar[str] = "dense NN"
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

    fraction: Annotated[Literal["1", "1/8", "1/64", "1/128"], Shown("fraction {}")] = "1"
    """Share of the memory images that is used."""
    input_size: Annotated[int, Shown("{} px")] = Field(default=512, ge=16)
    """Side of the square images in pixels, rounded down to a multiple of the backbone's patch size (512: 504 for patch 14)."""
    neighbours: Annotated[int, Shown("{} neighbours (exact)")] = Field(default=30, ge=1)
    """Memory patches that vote on a query patch."""
    temperature: Annotated[float, Shown("temperature {:g}")] = Field(default=0.02, gt=0)
    """Of the softmax over the neighbors' cosine similarities."""
    memory_size: Annotated[int | None, Shown(lambda s: s.memory_name)] = Field(default=10_240_000, ge=1)
    """Patches in memory; where there are more, each image keeps an equal number, those with rare classes preferred.
    null: all."""
    augmentation_epochs: Annotated[int, SHOWN_BY_ANOTHER] = Field(default=2, ge=0, le=MOST_STEPS)
    """Passes over the memory images with random colors and crops; 0: one pass over the images as they are."""
    fraction_seeds: Annotated[list[Seed], Unique, Shown(lambda s: s.samples_name)] = Field(default=[42, 400, 783, 1293, 4019], min_length=1)
    """Below fraction 1: seeds of the random samples of memory images; the score is the mean over them."""
    memory_list: Annotated[str, Shown(lambda s: s.splits_name)] = "trainaug"
    """Layout `voc`: list in ImageSets/Segmentation with the memory images."""
    query_list: Annotated[str, SHOWN_BY_ANOTHER] = "val"
    """Layout `voc`: list in ImageSets/Segmentation with the query images."""
    memory_every: Annotated[int, SHOWN_BY_ANOTHER] = Field(default=4, ge=1)
    """Layouts `masks` and `video`: every n-th labelled image (from the first on) is memory."""
    query_every: Annotated[int, SHOWN_BY_ANOTHER] = Field(default=8, ge=1)
    """Layouts `masks` and `video`: every n-th labelled image from `query_offset` on is a query."""
    query_offset: Annotated[int, SHOWN_BY_ANOTHER] = Field(default=6, ge=0)
    """Layouts `masks` and `video`: the first query; the default lies midway between two memory images."""
    compat: Annotated[Literal["paper", "released"], Shown("compat {}")] = "paper"
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
        """Refuse images that are both memory and query."""
        self.require_disjoint("memory", "query")
        return self

    def work(self, arch: Architecture) -> Work | None:
        """The memory images once in each augmentation epoch, the queries once, and each query's patches with the whole memory.

        Both for each of the samples.
        """
        memory = self.images_of("training", self.memory_every)
        queries = self.images_of("validation", self.query_every, self.query_offset)
        if memory is None or queries is None:
            return None
        samples = 1 if self.fraction == "1" else len(self.fraction_seeds)
        views = memory / int(self.fraction.removeprefix("1/")) * max(1, self.augmentation_epochs)
        patches = tokens(arch, self.input_size) - tokens(arch, 0)
        stored = min(views * patches, self.memory_size or views * patches)
        searched = 2.0 * queries * patches * stored * arch.dim
        return Work(samples * ((views + queries) * vit(arch, self.input_size) + searched), fixed=stored * arch.dim)

    def feature_reads(self) -> dict[str, FeatureRead]:
        """The queries, once for each sample of the memory; the memory where it is not augmented."""
        if not self.reads_backbone:
            return {}
        normalized = [] if self.compat == "paper" and self.blue_std is None else [self.resolved().blue_std]
        sampled, samples = ([], 1) if self.fraction == "1" else ([self.fraction, self.fraction_seeds], len(self.fraction_seeds))
        queries = (self.query_list, self.query_every, self.query_offset)
        reads = {"queries": self.feature_read("validation", *queries, passes=samples, more=normalized)}
        if not self.augmentation_epochs:
            reads["memory"] = self.feature_read("training", self.memory_list, self.memory_every, more=[*normalized, *sampled])
        return reads

    @property
    def memory_name(self) -> str:
        """Size and augmentation of the memory."""
        size = "all patches" if self.memory_size is None else f"at most {self.memory_size} patches"
        return f"memory {size}, " + (f"augmentation epochs {self.augmentation_epochs}" if self.augmentation_epochs else "no augmentation")

    @property
    def samples_name(self) -> str:
        """Number of the samples of memory images, if there are several."""
        return "" if self.fraction == "1" else f"mean of {len(self.fraction_seeds)} samples"

    @property
    def splits_name(self) -> str:
        """The memory and query images, where they can be chosen."""
        if self.label_set not in LABELS:
            return f"memory every {self.memory_every}, queries every {self.query_every} from {self.query_offset}"
        return f"{self.memory_list} to {self.query_list}" if self.layout == "voc" else ""

    @property
    def published_protocol(self) -> str | None:
        """`dense NN, fraction ...` where every setting is the published one (Hummingbird's, run with the released code)."""
        same_data = self.dataset == {"voc": "PascalVOC", "ade20k": "ADE20K"}.get(self.layout)
        same_settings = self.compat == "released" and is_published(
            self, "compat", "fraction", "memory_every", "query_every", "query_offset"
        )
        return f"{self.RECIPE}, fraction {self.fraction}" if same_data and same_settings else None


SETTINGS = {"incontext": IncontextSettings}
