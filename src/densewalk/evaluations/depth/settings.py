"""Settings of monocular depth by a linear probe."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.hashing import config_hash
from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.core.settings import MOST_STEPS, Difference, Steps, deviation, switch
from densewalk.data.benchmarks import sizes
from densewalk.evaluations.common.presets import PresetSettings
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown, is_published
from densewalk.evaluations.common.settings import FeatureRead
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work, vit

# layout -> lists of training and test images, largest depth in meters, training crop, evaluated box
LAYOUTS: dict[str, dict[str, Any]] = {
    "nyu": {"train_list": "nyu_train.txt", "val_list": "nyu_test.txt", "max_depth": 10.0, "crop": (416, 544), "box": "eigen"},
    "kitti": {
        "train_list": "kitti_eigen_train.txt",
        "val_list": "kitti_eigen_test.txt",
        "max_depth": 80.0,
        "crop": (352, 704),
        "box": "garg",
    },
    "sunrgbd": {"train_list": "nyu_train.txt", "val_list": "SUNRGBD_val_splits.txt", "max_depth": 10.0, "crop": (416, 544), "box": "none"},
}
DATASETS = {"nyu": "NYUv2", "kitti": "KITTI", "sunrgbd": "SUN RGB-D (from NYUv2)"}
SIZES = {"nyu": (480, 640), "kitti": (352, 1216), "sunrgbd": (480, 640)}


class DepthSettings(PresetSettings):
    """A linear layer on frozen patch features predicts the depth of every pixel, as a mean of bins.

    Sources: DINOv2 (https://arxiv.org/abs/2304.07193, section 7.4 and appendix B) and its depth code at commit b8931f7, which follows
    the Monocular-Depth-Estimation-Toolbox at d8aff50; DINOv3 and its code at 6876159 (config-nyu). The SigLoss is AdaBins'
    (https://arxiv.org/abs/2011.14141) with the toolbox's warm-up.
    """

    TABLE: ClassVar[str] = "depth"
    PROCESSES: ClassVar[bool] = False
    VERSION: ClassVar[int] = 2
    """2: the padding that `crop_padding` cuts off is that of the image, also where the depth map has another size (SUN RGB-D)."""
    TITLE: ClassVar[str] = "Monocular depth (frozen features)"
    RECIPE: ClassVar[str] = "depth"
    PICTURES: ClassVar[str] = "image, true depth and the depth that {run} predicts; one scale of colors in a row, white: no value"
    RESOURCES: ClassVar[Resources] = Resources(threads=16, mem_mb=32_000, runtime=2880)
    METRICS: ClassVar[dict[str, Metric]] = {
        "RMSE": Metric("m", "mean over the images", "lower"),
        "AbsRel": Metric("relative error |p - t| / t", "mean over the images", "lower"),
        "d1": Metric("% of pixels with max(p/t, t/p) < 1.25", "mean over the images"),
        "RMSE_constant": Metric("m", "a floor: one number everywhere, the mean depth in training", None),
        "RMSE_position": Metric("m", "a floor: the mean depth in training at the pixel's position", None),
        "AbsRel_constant": Metric("relative error", "the same floor", None),
        "AbsRel_position": Metric("relative error", "the same floor", None),
        "d1_constant": Metric("% of pixels", "the same floor", None),
        "d1_position": Metric("% of pixels", "the same floor", None),
    }
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "dinov2_lin1": {},
        "dinov2_lin4": {"layers": "four"},
        "dinov3": {
            "final_norm": True,
            "cls_token": False,
            "batch_norm": True,
            "upsample": 1,
            "learning_rate": 3e-4,
            "beta2": 0.99,
            "weight_decay": 1e-4,
            "schedule": "dinov3",
            "augment": "dinov3",
            "flip": "map",
            "select": "last",
        },
    }
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference(
            "the gradient loss strides and shifts the first two axes of [batch, 1, height, width], images and channels: with 1 or 2 "
            "images on a GPU, as in all its trainings, it is 0",
            "`gradient_loss: none` is what was run, `intended` takes rows and columns",
            "DINOv2, depth/models/losses/gradientloss.py",
        ),
        Difference(
            "ready-made linear heads of the hub have bins up to 80 m for NYU, too",
            "bins end at `max_depth`, 10 m for NYU as in the training configurations",
            "DINOv2, hub/depthers.py",
        ),
    )

    preset: str = "dinov2_lin1"
    """A published recipe: dinov2_lin1, dinov2_lin4 or dinov3; other keys that are given win over its values."""
    compat: Annotated[Literal["paper", "released"], Shown("compat {}", "last")] = "paper"
    """`paper`: without the known slips. `released`: with them, as the published numbers were made."""
    layout: Literal["nyu", "kitti", "sunrgbd"] = "nyu"
    """`nyu`: lists, and {scene}/rgb_*.jpg with {scene}/sync_depth_*.png in millimeters, below `root` or its folder nyu. `kitti`: lists
    with input/ and gt_depth/, in 1/256 m, below `root` or its folder kitti. `sunrgbd`: trained on nyu below `root`, scored on its folder
    SUNRGBD, in 1/8000 m, whose images are squeezed to 480 x 640."""
    train_list: str | None = None
    """List of the training images, lines of `image depth focal_length`; the layout's own name if not given."""
    val_list: str | None = None
    """List of the scored images; the layout's own name if not given."""
    layers: Annotated[Literal["last", "four"], Shown(lambda s: s.head_name)] = "last"
    """Blocks whose patches are taken: the last one, or four of them (of 12: the 3rd, 6th, 9th and 12th; of 24 the 5th, 12th, 18th and
    24th; of 40 the 10th, 20th, 30th and 40th; otherwise quarters of the depth)."""
    final_norm: Annotated[bool, SHOWN_BY_ANOTHER] = False
    """Apply the backbone's final LayerNorm to every layer that is taken."""
    cls_token: Annotated[bool, SHOWN_BY_ANOTHER] = True
    """Set the layer's CLS token behind every patch: twice the channels."""
    batch_norm: Annotated[bool, SHOWN_BY_ANOTHER] = False
    """Batch normalization before the linear layer. DINOv2's class is called BNHead and has none."""
    upsample: Annotated[int, SHOWN_BY_ANOTHER] = Field(default=4, ge=1, le=16)
    """By what the scores of the bins are interpolated (bilinear) before they become depth."""
    bins: Annotated[int, Shown(lambda s: f"{s.bins} {s.bin_spacing} bins to {s.resolved().max_depth:g} m")] = Field(default=256, ge=2)
    """Number of depths that are mixed."""
    bin_spacing: Annotated[Literal["uniform", "log"], SHOWN_BY_ANOTHER] = "uniform"
    """Evenly spaced depths, or evenly spaced logarithms, from `min_depth` to `max_depth`, both included."""
    bin_weights: Literal["linear", "softmax", "sigmoid"] = "linear"
    """How scores x become weights: (relu(x) + 0.1) or sigmoid(x), divided by their sums, or softmax."""
    min_depth: float = Field(default=1e-3, gt=0)
    """First bin; what is nearer is not scored. In meters."""
    max_depth: Annotated[float | None, SHOWN_BY_ANOTHER] = Field(default=None, gt=0)
    """Last bin; what is farther is not scored. In meters; by layout 10 or 80."""
    iterations: Annotated[Steps, Shown("{} it")] = 38_400
    """Optimizer steps."""
    batch_size: Annotated[int, Shown("batch {}")] = Field(default=16, ge=1)
    """Images of a step. With b instead of the preset's B, the learning rate is multiplied by b / B and iterations and warmup by B / b, as
    far as they are not given (linear scaling, https://arxiv.org/abs/1706.02677)."""
    loss_group: int = Field(default=2, ge=1)
    """Images whose pixels make one SigLoss together; the loss of a batch is the mean over its groups. Published: 2, those of one GPU."""
    loss_warmup: int = Field(default=100, ge=0)
    """So many first steps have a SigLoss without its variance."""
    gradient_loss: Literal["none", "intended"] = switch(
        default="none",
        effect="a second loss of weight 0.5 on differences of neighboring pixels, which the released code meant to have",
        source="DINOv2, depth/models/losses/gradientloss.py",
    )
    """Add the loss on gradients of log depth."""
    learning_rate: Annotated[float, Shown("lr {:g}")] = Field(default=1e-4, gt=0)
    """AdamW's largest. DINOv3's paper chooses among 1e-4, 3e-4 and 1e-3 for every backbone."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's, of all parameters."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """AdamW's; the other one follows `schedule`."""
    max_norm: float = Field(default=35.0, gt=0)
    """Longer gradients of a step are shortened to this norm."""
    warmup: int = Field(default=12_800, ge=0, le=MOST_STEPS)
    """Steps of linear warm-up."""
    schedule: Literal["dinov2", "dinov3"] = "dinov2"
    """Course of learning rate and beta1, see schedules.py."""
    zero_beta1_in_warmup: bool | None = deviation(
        effect="AdamW without momentum for a third of the training; otherwise beta1 is the schedule's first value, 0.85",
        source="DINOv3, config-nyu: the scheduler does not set the momentum while it warms up",
        omit_null=True,
    )
    """`schedule: dinov3`: beta1 is 0 in the warm-up."""
    augment: Annotated[Literal["dinov2", "dinov3", "none"], Shown("augment {}")] = "dinov2"
    """`dinov2`, `dinov3`: rotation, flip, crop and colors of the recipe; every image passes the backbone in every step. `none`: whole
    images, whose features are computed once: for small machines, a protocol of its own."""
    crop: Annotated[tuple[int, int] | None, Field(min_length=2)] = None
    """Height and width of the training crops; by layout 416 x 544 or 352 x 704."""
    select: Literal["last", "test"] | None = switch(
        paper="last",
        released="test",
        effect="the checkpoint with the least AbsRel on the scored images themselves",
        source="DINOv2's configurations (save_best); its table is made so",
        omit_null=True,
    )
    """The head that is scored: the last one, or the best on the test list, looked at every `select_every` steps."""
    select_every: Steps = 800
    """`select: test`: steps between two looks."""
    crop_padding: bool | None = switch(
        paper=True,
        released=False,
        effect="the map of the padded image is squeezed onto the image: 2 % for patches of 14",
        source="DINOv2, depth/models/depther/encoder_decoder.py",
        omit_null=True,
    )
    """Cut off what an image was padded with to whole patches, instead of resizing it with the map."""
    flip: Annotated[Literal["none", "image", "map"], Shown("flip {}")] = "image"
    """Mean with the mirrored image's depth: not at all, of clamped maps of the image's size (DINOv2), or of the head's maps (DINOv3)."""
    box: Annotated[Literal["eigen", "garg", "none"] | None, Shown(lambda s: f"{s.resolved().box} box")] = None
    """Part of an image that is scored; by layout."""
    align: Literal["none", "least_squares"] = "none"
    """`least_squares`: each predicted map is scaled and shifted to its truth before it is scored; a protocol of its own."""

    @model_validator(mode="after")
    def values_agree(self) -> Self:
        """Refuse an unknown preset's leftovers, groups that do not fill a batch, and an empty range of depths."""
        own = self.resolved()
        assert own.max_depth is not None
        if self.batch_size % self.loss_group:
            raise ValueError(f"loss_group {self.loss_group} does not divide batch_size {self.batch_size}")
        if own.max_depth <= self.min_depth:
            raise ValueError(f"max_depth {own.max_depth:g} is not above min_depth {self.min_depth:g}")
        if self.warmup > self.iterations:
            raise ValueError(f"warmup {self.warmup} is longer than the training, iterations {self.iterations}")
        if self.augment == "none" and self.crop is not None:
            raise ValueError("augment none takes whole images: leave out crop")
        return self

    def resolved(self) -> Self:
        """With every switch and every value that follows the layout."""
        layout = {name: value for name, value in LAYOUTS[self.layout].items() if getattr(self, name) is None}
        return super().resolved().model_copy(update=layout)

    @property
    def normalizes_batches(self) -> bool:
        """True if batch normalization looks across the images of a batch."""
        return self.batch_norm

    def obstacle_to_parts(self, parts: int, processes: int = 1) -> str | None:
        """The head's step is small, and its loss couples images."""
        return None if parts == 1 else "the depth probe keeps no activations of the backbone: lower batch_size instead"

    @property
    def head_name(self) -> str:
        """What the linear layer sees."""
        parts = ["lin1" if self.layers == "last" else "lin4", "final norm" * self.final_norm, "CLS" * self.cls_token]
        parts += ["batch norm" * self.batch_norm, f"x{self.upsample}" * (self.upsample > 1)]
        return " ".join(part for part in parts if part)

    @property
    def needs(self) -> frozenset[str]:
        """CLS tokens, maps of layers, or the map that all evaluations take."""
        if self.cls_token:
            return frozenset({"block_tokens"})
        return frozenset({"dense" if self.feature_kind == "" else "levels"})

    @property
    def feature_kind(self) -> str:
        """Name of the features in the cache; empty for those of `Backbone.dense`."""
        if self.layers == "last" and self.final_norm and not self.cls_token:
            return ""
        return f"depth {self.layers} {self.final_norm} {self.cls_token}"

    def feature_reads(self) -> dict[str, FeatureRead]:
        """The scored images, and with `augment: none` the training images."""
        own = self.resolved()
        what = [self.root, self.layout, self.feature_kind, self.flip != "none"]
        looks = self.iterations // self.select_every + 1 if own.select == "test" else 1
        found = {"validation": FeatureRead(config_hash([*what, own.val_list]), looks)}
        if self.augment == "none":
            found["training"] = FeatureRead(config_hash([*what[:3], own.train_list, "whole"]))
        return found

    def work(self, arch: Architecture) -> Work | None:
        """Every crop and every scored image through the frozen backbone; the head is not counted."""
        own = self.resolved()
        images = sizes.DEPTH.get(self.dataset)
        if images is None:
            return None
        assert own.crop is not None
        looks = self.feature_reads()["validation"].passes * (1 if self.flip == "none" else 2)
        training = images[0] * vit(arch, *SIZES[self.layout]) if self.augment == "none" else 0.0
        crops = 0.0 if self.augment == "none" else self.iterations * self.batch_size * vit(arch, *own.crop)
        return Work(training + crops + looks * images[1] * vit(arch, *SIZES[self.layout]))

    @property
    def published_protocol(self) -> str | None:
        """DINOv2's or DINOv3's, where every setting is the published one and the data are named as theirs.

        DINOv3's configuration is public for NYU alone.
        """
        free = ("layout", "compat", "train_list", "val_list")
        if self.dataset != DATASETS[self.layout] or self.compat != "released" or not is_published(self, *free):
            return None
        if self.preset == "dinov3":
            return "linear 256 bins (DINOv3)" if self.layout == "nyu" else None
        return f"linear 256 bins, {'1 layer' if self.preset == 'dinov2_lin1' else '4 layers'} (DINOv2)"


SETTINGS = {"depth": DepthSettings}
