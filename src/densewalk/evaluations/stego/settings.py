"""Settings of STEGO."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.core.settings import Difference, LearningRate, Steps, deviation
from densewalk.evaluations.common.label_map_settings import FeatureSettings, ScoredSettings
from densewalk.evaluations.common.presets import NamedPresets
from densewalk.evaluations.common.protocol_name import Shown
from densewalk.evaluations.common.settings import FeatureRead
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work, vit

KINDS = ("self", "knn", "random")
FIVE = 5


class StegoSettings(NamedPresets, ScoredSettings, FeatureSettings):
    """Codes of frozen patch features, learned from their own correspondences without labels, and clustered (STEGO).

    Sources: https://arxiv.org/abs/2203.08414 and its code, https://github.com/mhamilton723/STEGO at commit eb4d6b5.
    """

    TABLE: ClassVar[str] = "stego"
    LEARNS: ClassVar[bool] = True
    VERSION: ClassVar[int] = 2
    """2: clusters take the classes with which most pixels agree, as in STEGO's code, not those of largest IoU; an ignored label among the
    classes takes none."""
    TITLE: ClassVar[str] = "Unsupervised segmentation by correspondences (STEGO)"
    RECIPE: ClassVar[str] = "STEGO"
    PICTURES: ClassVar[str] = "image, ground truth and clusters of the codes of {run}, matched to classes"
    RESOURCES: ClassVar[Resources] = Resources(mem_mb=64_000, runtime=1440)
    METRICS: ClassVar[dict[str, Metric]] = {
        "mIoU": Metric("% of the cluster probe on the codes, as published", "clusters matched to classes one to one"),
        "mIoU_kmeans": Metric("% of k-means on the codes", "no cluster is left without a pixel, as by the probe"),
        "mIoU_features": Metric("% of k-means on the frozen features", "what the backbone gives without STEGO's head"),
        "mIoU_linear": Metric("% of a linear probe on the codes", "which has seen labels"),
        "mIoU_constant": Metric("%", "a floor: one cluster everywhere, the class that fits it best", None),
    }
    # of configs/train_config.yml; the defaults are COCO-Stuff's with ViT-S/8
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {
        "coco27": {},
        "coco27_older": {"shift_random": 0.16},
        "coco27_base": {"weight_self": 0.1, "weight_knn": 1.0, "weight_random": 0.154}
        | {"shift_self": 0.12, "shift_knn": 0.2, "shift_random": 1.0},
        "potsdam": {"shift_random": 0.46},
        "iaroa": {"shift_self": 0.18, "shift_knn": 0.12, "shift_random": 0.46},
        "cityscapes": {"weight_self": 1.0, "weight_knn": 0.577, "weight_random": 0.906}
        | {"shift_self": 0.458, "shift_knn": 0.175, "shift_random": 0.314},
        "small_video": {"code_dim": 32, "iterations": 300, "crops": "none", "knn_gap": 2},
    }
    NOT_REPRODUCED: ClassVar[tuple[Difference, ...]] = (
        Difference("predictions refined by a dense CRF", "none, or PAMR by `refine: pamr`", "STEGO, src/crf.py"),
        Difference("images cut to a square in the middle", "squeezed to a square, as by the other evaluations", "STEGO, src/utils.py"),
        Difference("images enlarged and reduced to the nearest pixel", "bilinear", "STEGO, src/utils.py"),
        Difference("the step with the best validation mIoU is kept", "the last one", "STEGO, src/train_segmentation.py"),
        Difference("COCO-Stuff's 27 and Cityscapes' 27 classes", "the layouts' own labels", "STEGO, src/data.py"),
    )

    preset: str = "coco27"
    """Values of the released configuration, or `small_video`, which is ours: coco27 (ViT-S/8), coco27_older, coco27_base (ViT-B/8),
    potsdam, iaroa, cityscapes or small_video. Other keys that are given win over its values. The shifts are made for DINO's features
    and no other backbone's: see `share_above_shift` in the details."""
    compat: Annotated[Literal["paper", "released"], Shown("compat {}")] = "paper"
    """`paper`: the method as published. `released`: the released code's known deviations."""
    input_size: Annotated[int, Shown("{} px")] = Field(default=320, ge=16)
    """Side of the scored images in pixels, rounded down to a multiple of the backbone's patch size."""
    mask_size: int = Field(default=320, ge=1)
    """Side that masks are reduced to, and codes are enlarged to (bilinear), for the score."""
    train_list: str = "trainaug"
    """Layout `voc`: list in ImageSets/Segmentation with the training images."""
    train_every: int = Field(default=4, ge=1)
    """Layouts `masks` and `video`: every n-th labelled image (from the first on) is for training."""
    train_size: int = Field(default=224, ge=16)
    """Side of a training view in pixels, rounded down to a multiple of the backbone's patch size."""
    crops: Literal["five", "none"] = "five"
    """Training views of an image: its corners and its middle, or the whole of it."""
    crop_ratio: float = Field(default=0.5, gt=0, le=1)
    """Sides of the five crops, as a share of the image's."""
    code_dim: Annotated[int, Shown("codes of {}")] = Field(default=70, ge=1)
    """Numbers of a code."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the features' channels that is dropped, independently for both branches of the head and for the correspondences."""
    feature_samples: int = Field(default=11, ge=1)
    """Rows and columns of the random positions of an image at which features are compared."""
    neg_samples: int = Field(default=5, ge=1)
    """Random other images of the batch that each image is compared with."""
    knn: int = Field(default=7, ge=1)
    """Each image is compared with one of so many nearest views, by the cosine of their mean features."""
    knn_gap: int = Field(default=0, ge=0)
    """Nearest views are of images at least so many places away in the list of training images: the next frame of a video is nearly the
    same picture. 0: any other view."""
    weight_self: float = Field(default=0.67, ge=0)
    """Weight of an image's correspondences with itself."""
    weight_knn: float = Field(default=0.25, ge=0)
    """Weight of those with a nearest view."""
    weight_random: float = Field(default=0.63, ge=0)
    """Weight of those with other images of the batch."""
    shift_self: float = Field(default=0.08, ge=-2, le=2)
    """Codes attract each other where the correspondence of features exceeds this, and repel each other elsewhere (the paper's b)."""
    shift_knn: float = Field(default=0.02, ge=-2, le=2)
    """The same for a nearest view."""
    shift_random: float = Field(default=0.66, ge=-2, le=2)
    """The same for other images of the batch."""
    pointwise_centering: bool = True
    """Subtract from the correspondences of each position their mean over the other image's positions."""
    zero_clamp: bool = True
    """Codes that are opposites attract and repel no more than orthogonal ones."""
    stabilize: bool = False
    """Codes whose cosine exceeds 0.8 attract no more."""
    weight_crf: float = Field(default=0.0, ge=0)
    """Weight of a loss by which codes of near pixels of similar color agree (0 as released)."""
    iterations: Annotated[Steps, Shown("{} it")] = 5000
    """Optimizer steps."""
    batch_size: Annotated[int, Shown("batch {}")] = Field(default=16, ge=2)
    """Views of a step, each with its nearest one."""
    learning_rate: LearningRate = Field(default=5e-4, gt=0)
    """Adam's, of the head."""
    probe_learning_rate: LearningRate = Field(default=5e-3, gt=0)
    """Adam's, of the linear and cluster probes, which learn along and send nothing back."""
    dropped_neighbors: bool | None = deviation(
        source="STEGO, src/precompute_knns.py", effect="neighbors are those of features with dropped channels, other ones in every run"
    )
    """Find the nearest views by features with dropped channels (here by the seed)."""

    @model_validator(mode="after")
    def training_is_not_validation(self) -> Self:
        """Refuse images that are both trained on and scored."""
        self.require_disjoint("train", "val")
        return self

    def feature_reads(self) -> dict[str, FeatureRead]:
        """The scored images, together with their mirrored selves."""
        if self.features != "all":
            return {}
        return {"validation": self.feature_read("validation", self.val_list, self.val_every, self.val_offset, more=["mirrored"])}

    def work(self, arch: Architecture) -> Work | None:
        """Each training view once, the scored images twice; the head is small."""
        training = self.images_of("training", self.train_every)
        scored = self.images_of("validation", self.val_every, self.val_offset)
        if training is None or scored is None:
            return None
        return Work(training * self.views * vit(arch, self.train_size) + 2 * scored * vit(arch, self.input_size))

    @property
    def views(self) -> int:
        """Training views of an image."""
        return FIVE if self.crops == "five" else 1

    @property
    def clusters(self) -> int:
        """As many as there are classes that count."""
        return self.label_values - (self.ignored is not None and self.ignored < self.label_values)


SETTINGS = {"stego": StegoSettings}
