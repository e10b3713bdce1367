"""Settings of k-NN classification."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.data.benchmarks import sizes
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown, is_published
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work, vit

# the numbers of neighbors that DINO and DINOv2 report
NEIGHBORS = (10, 20, 100, 200)
WEIGHTS = {"dino": "exp", "dinov2": "softmax"}


class KnnSettings(EvaluationSettings):
    """Weighted k-NN classification with frozen features; nothing is trained."""

    TABLE: ClassVar[str] = "classification"
    PROCESSES: ClassVar[bool] = True
    VERSION: ClassVar[int] = 4
    """4: at temperatures of 0.005 and less, votes do not vanish. 3: of equally similar images, the earlier comes first: so it is
    the same for several processes as for one. 2: EXIF."""
    TITLE: ClassVar[str] = "Image classification"
    RECIPE: ClassVar[str] = "weighted k-NN, CLS"
    RESOURCES: ClassVar[Resources] = Resources(mem_mb=32_000)
    NEEDS: ClassVar[frozenset[str]] = frozenset({"pooled"})
    METRICS: ClassVar[dict[str, Metric]] = {f"top1_k{k}": Metric("%", f"{k} neighbors") for k in NEIGHBORS}
    # DINO's published value is that of 20 neighbors; DINOv2's names no number, so that none is compared with ours
    PUBLISHED_METRICS: ClassVar[dict[str, str] | None] = {"top1_k20": "top1"}

    recipe: Annotated[Literal["dino", "dinov2"], Shown("recipe {}", "last")] = "dino"
    """Whose protocol. DINO weighs a neighbor by exp(cosine / temperature), DINOv2 by the softmax of the same over the 200
    nearest: all weights of a query are divided by the same number, so the predictions are the same."""
    training: str = "train"
    """Folder below `root` with the labelled images, one folder per class."""
    validation: str = "val"
    """Folder below `root` with the images to classify."""
    resize: Annotated[int, SHOWN_BY_ANOTHER] = Field(default=256, ge=1)
    """Shorter side of an image in pixels (bicubic)."""
    size: Annotated[int, Shown(lambda s: f"{s.size} px of {s.resize}")] = Field(default=224, ge=1)
    """Side of the center crop in pixels, a multiple of the patch size."""
    temperature: Annotated[float, Shown(lambda s: f"{WEIGHTS[s.recipe]}(cosine / {s.temperature:g})")] = Field(default=0.07, gt=0)
    """Of the neighbors' weights."""

    def work(self, arch: Architecture) -> Work | None:
        """ImageNet's images once each, and the products of both splits' features."""
        if not self.dataset.startswith("ImageNet"):
            return None
        training, validation = sizes.IMAGES["imagenet"]
        return Work((training + validation) * vit(arch, self.size, cls_only=True) + 2.0 * training * validation * arch.dim)

    @property
    def data_paths(self) -> tuple[str, ...]:
        """Folders of both splits."""
        return (f"{self.root}/{self.training}", f"{self.root}/{self.validation}")

    @property
    def published_protocol(self) -> str | None:
        """`k-NN (DINO)` where every setting is the published one and the data are ImageNet's."""
        return "k-NN (DINO)" if self.dataset == "ImageNet-1k" and is_published(self) else None


SETTINGS = {"knn": KnnSettings}
