"""Settings of k-NN classification."""

from typing import ClassVar, Literal

from pydantic import Field

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.evaluations.common.protocol_name import changes
from densewalk.evaluations.common.settings import EvaluationSettings

# the numbers of neighbours that DINO and DINOv2 report
NEIGHBOURS = (10, 20, 100, 200)


class KnnSettings(EvaluationSettings):
    """Weighted k-NN classification with frozen features; nothing is trained."""

    TABLE: ClassVar[str] = "classification"
    VERSION: ClassVar[int] = 1
    TITLE: ClassVar[str] = "Image classification"
    RESOURCES: ClassVar[Resources] = Resources(mem_mb=32_000)
    METRICS: ClassVar[dict[str, Metric]] = {f"top1_k{k}": Metric("%", f"{k} neighbours") for k in NEIGHBOURS}
    # DINO's published value is that of 20 neighbours; DINOv2's names no number, so that none stands beside ours
    PUBLISHED_METRICS: ClassVar[dict[str, str] | None] = {"top1_k20": "top1"}

    recipe: Literal["dino", "dinov2"] = "dino"
    """Whose protocol. DINO weighs a neighbour by exp(cosine / temperature), DINOv2 by the softmax of the same over the 200
    nearest: every weight of one query is divided by the same number, so the predictions are the same ones."""
    training: str = "train"
    """Folder below `root` with the labelled pictures, one folder per class."""
    validation: str = "val"
    """Folder below `root` with the pictures to classify."""
    resize: int = Field(default=256, ge=1)
    """Shorter side of a picture in pixels (bicubic)."""
    size: int = Field(default=224, ge=1)
    """Side of the centre crop in pixels, a multiple of the patch size."""
    temperature: float = Field(default=0.07, gt=0)
    """Of the neighbours' weights."""

    @property
    def protocol(self) -> str:
        """Everything but the data's place."""
        shown = ("recipe", "resize", "size", "temperature")
        name = "exp" if self.recipe == "dino" else "softmax"
        parts = [f"weighted k-NN, CLS, {self.size} px of {self.resize}", f"{name}(cosine / {self.temperature:g})"]
        return ", ".join([*parts, *changes(self, *shown), f"recipe {self.recipe}"])

    @property
    def published_protocol(self) -> str | None:
        """`k-NN (DINO)` where every setting is the published one and the data are ImageNet's."""
        return "k-NN (DINO)" if self.dataset == "ImageNet-1k" and not changes(self) else None


SETTINGS = {"knn": KnnSettings}
