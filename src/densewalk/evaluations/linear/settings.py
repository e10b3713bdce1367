"""Settings of linear classification."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown, is_published
from densewalk.evaluations.common.settings import EvaluationSettings


class LinearSettings(EvaluationSettings):
    """Linear classifiers on frozen features.

    A setting left at null follows `recipe`; densewalk.evaluations.linear gives the source of each.
    """

    TABLE: ClassVar[str] = "classification"
    VERSION: ClassVar[int] = 1
    TITLE: ClassVar[str] = "Image classification"
    RECIPE: ClassVar[str] = "linear probe"
    RESOURCES: ClassVar[Resources] = Resources(threads=16, mem_mb=32_000, runtime=1440)
    METRICS: ClassVar[dict[str, Metric]] = {
        "top1_best": Metric("%", "best epoch and classifier on the validation set, as published"),
        "top1_last": Metric("%", "best classifier after the last step"),
    }
    # published values are those of the epoch (DINO) or classifier (DINOv2) that is best on the validation set
    PUBLISHED_METRICS: ClassVar[dict[str, str] | None] = {"top1_best": "top1"}
    RECIPES: ClassVar[dict[str, dict[str, Any]]] = {
        "dino": {
            "batch_size": 1024,
            "learning_rates": [0.001],
            "epochs": 100,
            "epoch_steps": None,
            "decay": "epoch",
            "interpolation": "bilinear",
        },
        "dora": {
            "batch_size": 2048,
            "learning_rates": [0.01],
            "epochs": 100,
            "epoch_steps": None,
            "decay": "epoch",
            "interpolation": "bilinear",
        },
        "dinov2": {
            "batch_size": 128,
            "learning_rates": [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1],
            "epochs": 10,
            "epoch_steps": 1250,
            "decay": "step",
            "interpolation": "bicubic",
        },
    }

    recipe: Annotated[Literal["dino", "dora", "dinov2"], Shown("recipe {}", "last")] = "dino"
    """`dino`: one classifier, 100 epochs. `dora`: the same with DoRA's learning rate and batch. `dinov2`: a grid of classifiers,
    trained together in 12,500 steps."""
    training: str = "train"
    """Folder below `root` with the images to train on, one folder per class."""
    validation: str = "val"
    """Folder below `root` with the images to score on."""
    blocks: list[int] | None = Field(default=None, min_length=1)
    """A classifier each: from how many last blocks the CLS token is taken. `dino`, `dora`: 4, for widths of 768 and more 1.
    `dinov2`: 1 and 4."""
    average_pool: list[bool] | None = Field(default=None, min_length=1)
    """A classifier each: whether the mean of the last block's patch tokens is appended. `dino`, `dora`: no, for widths of 768
    and more yes. `dinov2`: both."""
    learning_rates: list[float] | None = Field(default=None, min_length=1)
    """A classifier each: learning rate for a batch of 256, scaled linearly."""
    batch_size: Annotated[int | None, Shown(lambda s: s.probe_name)] = Field(default=None, ge=1)
    """Pictures of one step; the last incomplete batch of a pass is dropped."""
    epochs: Annotated[int | None, SHOWN_BY_ANOTHER] = Field(default=None, ge=1)
    """The classifiers are scored after each."""
    epoch_steps: Annotated[int | None, SHOWN_BY_ANOTHER] = Field(default=None, ge=1)
    """Steps of an epoch; one pass over the training pictures for `dino` and `dora`."""
    decay: Literal["epoch", "step"] | None = None
    """Whether the learning rate follows its half cosine to 0 once an epoch or at every step."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """Of the random crops."""
    resize: int = Field(default=256, ge=1)
    """Shorter side of a validation image in pixels (bicubic)."""
    size: int = Field(default=224, ge=1)
    """Side of the crops in pixels, a multiple of the patch size."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD, which has no weight decay here."""

    def resolved(self) -> Self:
        """The same settings with the recipe's value for every null, but for `blocks` and `average_pool`, which wait for the backbone."""
        unset = {name: value for name, value in self.RECIPES[self.recipe].items() if getattr(self, name) is None}
        return self.model_copy(update=unset)

    def features_for(self, dim: int) -> list[tuple[int, bool]]:
        """Every (number of last blocks, with mean patch token) that gets classifiers, for a backbone of width `dim`."""
        wide = dim >= 768
        usual: tuple[list[int], list[bool]] = ([1, 4], [False, True]) if self.recipe == "dinov2" else ([1 if wide else 4], [wide])
        blocks, pools = self.blocks or usual[0], self.average_pool or usual[1]
        return [(count, pool) for count in blocks for pool in pools]

    @property
    def probe_name(self) -> str:
        """Features, learning rates and length of the training."""
        recipe = self.resolved()
        tokens, rates = "CLS", recipe.learning_rates or []
        if not (self.blocks or self.average_pool):
            grid = "grid of 1 and 4 blocks, with and without mean patch"
            tokens += f", {grid if self.recipe == 'dinov2' else '4 blocks (from width 768: 1 and mean patch)'}"
        optimizer = f"SGD lr {rates[0]:g}" + (f" to {rates[-1]:g} ({len(rates)})" if len(rates) > 1 else "") + " per 256"
        steps = f" of {recipe.epoch_steps} steps" if recipe.epoch_steps else ""
        return f"{tokens}, {optimizer}, batch {recipe.batch_size}, {recipe.epochs} epochs{steps}"

    @property
    def published_protocol(self) -> str | None:
        """`linear probe (DINO)`, `(DoRA)` or `(DINOv2)` where every setting is the published one and the data are ImageNet's."""
        names = {"dino": "DINO", "dora": "DoRA", "dinov2": "DINOv2"}
        same = self.dataset == "ImageNet-1k" and is_published(self, "recipe")
        return f"{self.RECIPE} ({names[self.recipe]})" if same else None


SETTINGS = {"linear": LinearSettings}
