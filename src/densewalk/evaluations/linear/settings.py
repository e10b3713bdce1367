"""Settings of linear classification."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.core.settings import LearningRate, Steps, switch
from densewalk.data.benchmarks import sizes
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown, is_published
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work, vit

Count = Annotated[int, Field(ge=1)]
GRID = [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1]


class LinearSettings(EvaluationSettings):
    """Linear classifiers on frozen features.

    Sources of the recipes: DINO (https://arxiv.org/abs/2104.14294, section 4.1) and its eval_linear.py, DoRA's README
    (https://github.com/shashankvkt/DoRA_ICLR24), DINOv2 (https://arxiv.org/abs/2304.07193, appendix B.3) and its linear.py.
    """

    TABLE: ClassVar[str] = "classification"
    LEARNS: ClassVar[bool] = True
    VERSION: ClassVar[int] = 2
    """2: images are turned as their EXIF says."""
    TITLE: ClassVar[str] = "Image classification"
    RECIPE: ClassVar[str] = "linear probe"
    RESOURCES: ClassVar[Resources] = Resources(threads=16, mem_mb=32_000, runtime=1440)
    METRICS: ClassVar[dict[str, Metric]] = {
        "top1_best": Metric("%", "best epoch and classifier on the validation set, as published"),
        "top1_last": Metric("%", "best classifier after the last step"),
    }
    # published values are those of the epoch (DINO) or classifier (DINOv2) that is best on the validation set
    PUBLISHED_METRICS: ClassVar[dict[str, str] | None] = {"top1_best": "top1"}

    recipe: Annotated[Literal["dino", "dora", "dinov2"], Shown("recipe {}", "last")] = "dino"
    """`dino`: one classifier, 100 epochs. `dora`: the same with DoRA's learning rate and batch. `dinov2`: a grid of classifiers,
    trained together in 12,500 steps."""
    training: str = "train"
    """Folder below `root` with the images to train on, one folder per class."""
    validation: str = "val"
    """Folder below `root` with the images to score on."""
    blocks: list[int] | None = Field(default=None, min_length=1)
    """A classifier each: from how many last blocks the CLS token is taken. `dino`, `dora`: 4, for widths of 768 and more 1.
    `dinov2`: 1 and 4. A network without CLS token needs [1] here and [false] for `average_pool`."""
    average_pool: list[bool] | None = Field(default=None, min_length=1)
    """A classifier each: whether the mean of the last block's patch tokens is appended. `dino`, `dora`: no, for widths of 768
    and more yes. `dinov2`: both."""
    learning_rates: Annotated[list[LearningRate], Field(min_length=1)] | None = switch(by="recipe", dino=[0.001], dora=[0.01], dinov2=GRID)
    """A classifier each: learning rate for a batch of 256, scaled linearly."""
    batch_size: Annotated[Count | None, Shown(lambda s: s.probe_name)] = switch(by="recipe", dino=1024, dora=2048, dinov2=128)
    """Images of one step; the last incomplete batch of a pass is dropped."""
    epochs: Annotated[Steps | None, SHOWN_BY_ANOTHER] = switch(by="recipe", dino=100, dora=100, dinov2=10)
    """The classifiers are scored after each."""
    epoch_steps: Annotated[Steps | None, SHOWN_BY_ANOTHER] = switch(by="recipe", dino=None, dora=None, dinov2=1250)
    """Steps of an epoch; one pass over the training images for `dino` and `dora`."""
    decay: Literal["epoch", "step"] | None = switch(by="recipe", dino="epoch", dora="epoch", dinov2="step")
    """Whether the learning rate follows its half cosine to 0 once an epoch or at every step."""
    interpolation: Literal["bilinear", "bicubic"] | None = switch(by="recipe", dino="bilinear", dora="bilinear", dinov2="bicubic")
    """Of the random crops."""
    resize: int = Field(default=256, ge=1)
    """Shorter side of a validation image in pixels (bicubic)."""
    size: int = Field(default=224, ge=1)
    """Side of the crops in pixels, a multiple of the patch size."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of SGD, which has no weight decay here."""

    def features_for(self, dim: int) -> list[tuple[int, bool]]:
        """Every (number of last blocks, with mean patch token) that gets classifiers, for a backbone of width `dim`."""
        wide = dim >= 768
        usual: tuple[list[int], list[bool]] = ([1, 4], [False, True]) if self.recipe == "dinov2" else ([1 if wide else 4], [wide])
        blocks, pools = self.blocks or usual[0], self.average_pool or usual[1]
        return [(count, pool) for count in blocks for pool in pools]

    def work(self, arch: Architecture) -> Work | None:
        """Every training image through the frozen backbone in each epoch, as its crop differs, and the validation images after it."""
        recipe = self.resolved()
        if not self.dataset.startswith("ImageNet") or recipe.epochs is None or recipe.batch_size is None:
            return None
        training, validation = sizes.IMAGES["imagenet"]
        seen = recipe.epoch_steps * recipe.batch_size if recipe.epoch_steps else training
        return Work(recipe.epochs * (seen + validation) * vit(arch, self.size))

    @property
    def needs(self) -> frozenset[str]:
        """One vector an image where that is all that the classifiers see; else the tokens of the last blocks."""
        return frozenset({"pooled" if (self.blocks, self.average_pool) == ([1], [False]) else "block_tokens"})

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
    def data_paths(self) -> tuple[str, ...]:
        """Folders of both splits."""
        return (f"{self.root}/{self.training}", f"{self.root}/{self.validation}")

    @property
    def published_protocol(self) -> str | None:
        """`linear probe (DINO)`, `(DoRA)` or `(DINOv2)` where every setting is the published one and the data are ImageNet's."""
        names = {"dino": "DINO", "dora": "DoRA", "dinov2": "DINOv2"}
        same = self.dataset == "ImageNet-1k" and is_published(self, "recipe")
        return f"{self.RECIPE} ({names[self.recipe]})" if same else None


SETTINGS = {"linear": LinearSettings}
