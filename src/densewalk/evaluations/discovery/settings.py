"""Settings of object discovery."""

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.metric import Metric
from densewalk.core.settings import switch
from densewalk.data.benchmarks import sizes
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown, is_published
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work, vit

# the data sets of LOST's table: name -> settings that choose their images
PUBLISHED_DATA: dict[str, dict[str, object]] = {
    "VOC07": {"layout": "voc", "year": 2007, "split": "trainval", "image_sets": "Main"},
    "VOC12": {"layout": "voc", "year": 2012, "split": "trainval", "image_sets": "Main"},
    "COCO20k": {"layout": "coco", "images": "train2014"},
}
MASKED_DATA: dict[str, object] = {"layout": "voc", "year": 2012, "split": "val", "image_sets": "Segmentation"}
"""Where DINO scored its attention's masks: VOC12 val."""
DATA_FIELDS = ("year", "split", "image_sets", "ids", "annotations")
# method -> the settings that only it has
OWN_FIELDS = {
    "lost": ("k_patches",),
    "attention": ("head", "mass", "component_search", "mask_mass", "object_masks"),
    "tokencut": ("features", "graph", "tau", "taus", "select"),
}
SWEPT = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4]
"""TokenCut's thresholds of which DINOv3's paper reports the best."""


class DiscoverySettings(EvaluationSettings):
    """One box in each image, found without any training, against the boxes of all its objects."""

    TABLE: ClassVar[str] = "discovery"
    PROCESSES: ClassVar[bool] = True
    VERSION: ClassVar[int] = 3
    """2: images are turned as their EXIF says, 16-bit gray is scaled. 3: the mean IoU is a metric, `Jaccard_box`; masks are scored."""
    TITLE: ClassVar[str] = "Object discovery (CorLoc)"
    PICTURES: ClassVar[str] = "true objects (blue) and the box that {run} finds (orange)"
    METRICS: ClassVar[dict[str, Metric]] = {
        "CorLoc": Metric("% of images whose box has IoU of at least 0.5 with an object's"),
        "Jaccard_box": Metric("%", "mean over images of the best IoU of the box with an object's"),
        "Jaccard_mask": Metric("%", "best IoU of any head's attention mask with an object's mask; mean over objects, then over images"),
        "CorLoc_position": Metric("%", "of a box around the whole image", better=None),
        "Jaccard_box_position": Metric("%", "of a box around the whole image", better=None),
    }

    layout: Annotated[Literal["voc", "coco"], Shown(lambda s: f"{s.chosen_images}, all objects")]
    """`voc`: VOCdevkit/VOC2007 or VOC2012. `coco`: a folder of images and an annotation file."""
    year: Annotated[Literal[2007, 2012], SHOWN_BY_ANOTHER] = 2012
    """Layout `voc`: which of the two."""
    split: Annotated[str, SHOWN_BY_ANOTHER] = "trainval"
    """Layout `voc`: list in the folder of `image_sets`."""
    image_sets: Annotated[Literal["Main", "Segmentation"], SHOWN_BY_ANOTHER] = "Main"
    """Layout `voc`: folder of lists below ImageSets. Images of `Segmentation` have masks: with the method `attention`, `Jaccard_mask` is
    scored."""
    images: str = "train2014"
    """Layout `coco`: folder of the images below `root`."""
    annotations: str | None = None
    """Layout `coco`: annotation file below `root`; annotations/instances_{images}.json if not given."""
    ids: Annotated[str | None, SHOWN_BY_ANOTHER] = None
    """Layout `coco`: file below `root` that lists the images to use, by id or file name (COCO20k's 19,817); all by default."""
    method: Annotated[Literal["lost", "attention", "tokencut"], Shown(lambda s: s.method_name, "first")] = "lost"
    """`lost`: patches similar to the patch that is least like all others. `attention`: the largest component of the CLS token's
    attention; with the defaults, DINO-seg; DoRA's protocol with `head: mean` and `mass: 0.8`. `tokencut`: a normalized cut."""
    k_patches: Annotated[int, SHOWN_BY_ANOTHER] = Field(default=100, ge=1)
    """Method `lost`: patches of lowest degree that the seed may expand to."""
    head: Annotated[Annotated[int, Field(ge=0)] | Literal["mean"], SHOWN_BY_ANOTHER] = 4
    """Method `attention`: head of the last block, counted from 0, or the mean of all heads."""
    mass: Annotated[float, SHOWN_BY_ANOTHER] = Field(default=0.6, gt=0, le=1)
    """Method `attention`: share of the attention that the kept patches hold."""
    component_search: Annotated[Literal["all", "released"], SHOWN_BY_ANOTHER] = switch(
        default="all",
        paper="all",
        released="released",
        source="LOST, DINO-seg",
        effect="other boxes where the last component is the largest",
    )
    """Method `attention`: components among which the largest is looked for: all, or all but the last in reading order; one component
    alone then gives way to the rest of the image."""
    mask_mass: Annotated[float, SHOWN_BY_ANOTHER] = Field(default=0.6, gt=0, le=1)
    """Method `attention` with `image_sets: Segmentation`: share of its attention that each head's mask holds for `Jaccard_mask`."""
    object_masks: Annotated[Literal["SegmentationObject", "SegmentationClass"], SHOWN_BY_ANOTHER] = "SegmentationObject"
    """The same: folder of masks; its objects, or the objects of a class together. DINO's paper does not say which."""
    features: Annotated[Literal["keys", "queries", "values", "output"], SHOWN_BY_ANOTHER] = "keys"
    """Method `tokencut`: of the last block with its heads side by side, or the final patch features (DINOv3's variant)."""
    graph: Annotated[Literal["binary", "weighted"], SHOWN_BY_ANOTHER] = "binary"
    """Method `tokencut`: an edge weighs 1, or the cosine of its two patches."""
    tau: Annotated[float, SHOWN_BY_ANOTHER] = Field(default=0.2, ge=0, lt=1)
    """Method `tokencut`: cosine from which two patches are similar."""
    taus: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], SHOWN_BY_ANOTHER] = []
    """Method `tokencut`: more thresholds, whose CorLoc is in the result's details (`CorLoc_by_tau`)."""
    select: Annotated[Literal["none", "best"], SHOWN_BY_ANOTHER] = "none"
    """Method `tokencut`: `best` reports the one of `taus` with the highest CorLoc instead of `tau`, chosen on the scored images, as
    DINOv3's paper does."""

    @model_validator(mode="after")
    def layout_has_what_it_needs(self) -> Self:
        """Refuse fields of the other layout or of another method, which would silently do nothing."""
        other = ("images", "annotations", "ids") if self.layout == "voc" else ("year", "split", "image_sets")
        if extra := self._changed(other):
            raise ValueError(f"layout {self.layout} has no {', '.join(extra)}: leave them out")
        if extra := self._changed([name for method, names in OWN_FIELDS.items() if method != self.method for name in names]):
            raise ValueError(f"method {self.method} has no {', '.join(extra)}: leave them out")
        if self.select == "best" and not self.taus:
            raise ValueError(f"select: best chooses from `taus`, which is empty; DINOv3's are {SWEPT}")
        if len(set(self.taus)) < len(self.taus):
            raise ValueError("taus: the same threshold twice")
        return self

    def _changed(self, names: Iterable[str]) -> list[str]:
        """Those of the fields that differ from their defaults."""
        return [name for name in names if getattr(self, name) != type(self).model_fields[name].default]

    def work(self, arch: Architecture) -> Work | None:
        """One pass over images of about 500 x 375 px, and the products of their patches' features; TokenCut's cuts, 40 steps each."""
        images = sizes.DISCOVERY.get(self.dataset)
        if images is None:
            return None
        patches = (500 // arch.patch) * (375 // arch.patch)
        products = arch.dim + 40 * len(self.thresholds) if self.method == "tokencut" else arch.dim
        return Work(images * (vit(arch, 375, 500) + 2.0 * patches**2 * products))

    @property
    def needs(self) -> frozenset[str]:
        """Keys, the CLS token's attention, or the final patch features."""
        if self.method == "attention":
            return frozenset({"attention"})
        return frozenset({"dense" if self.method == "tokencut" and self.features == "output" else "keys"})

    @property
    def thresholds(self) -> list[float]:
        """TokenCut's, each once; the first is `tau`."""
        return list(dict.fromkeys([self.tau, *self.taus]))

    @property
    def scores_masks(self) -> bool:
        """True if `Jaccard_mask` is scored."""
        return self.method == "attention" and self.image_sets == "Segmentation"

    @property
    def method_name(self) -> str:
        """The method with its parameters."""
        if self.method == "lost":
            return f"LOST, keys of the last block, k {self.k_patches}"
        if self.method == "tokencut":
            source = "output features" if self.features == "output" else f"{self.features} of the last block"
            chosen = f"best of tau {'/'.join(f'{tau:g}' for tau in self.taus)}" if self.select == "best" else f"tau {self.tau:g}"
            curve = f", curve {'/'.join(f'{tau:g}' for tau in self.taus)}" if self.taus and self.select == "none" else ""
            return f"TokenCut, {source}, {self.graph} graph, {chosen}{curve}"
        heads = "mean of the heads" if self.head == "mean" else f"head {self.head}"
        search = ", all but the last, as released" if self.component_search == "released" else ""
        masks = f", {100 * self.mask_mass:g} % in masks of {self.object_masks}" if self.scores_masks else ""
        return f"CLS attention of {heads}, {100 * self.mass:g} % of its mass, largest component{search}{masks}"

    @property
    def chosen_images(self) -> str:
        """The images that are used."""
        if self.layout == "voc":
            return f"VOC{self.year} {'segmentation ' if self.image_sets == 'Segmentation' else ''}{self.split}"
        return f"COCO {self.images}{f' by {self.ids}' if self.ids else ''}, no crowds"

    @property
    def published_protocol(self) -> str | None:
        """LOST's and TokenCut's tables, DINOv3's variant of TokenCut, and DINO's masks, each on its own images."""
        if self.method == "attention":
            masked = self.dataset == "VOC12 val" and self._has(MASKED_DATA)
            free = ("method", "head", "mass", "component_search", "object_masks")  # they change no mask, or are not stated
            return "attention mask, best head, mass 0.6 (DINO)" if masked and is_published(self, *DATA_FIELDS, *free) else None
        data = PUBLISHED_DATA.get(self.dataset)
        if data is None or not self._has(data) or (self.dataset == "COCO20k" and self.ids is None):
            return None
        if self.method == "lost":
            return "LOST" if is_published(self, *DATA_FIELDS) else None
        if is_published(self, *DATA_FIELDS, "method", "taus"):
            return "TokenCut"
        swept = self.features == "output" and self.select == "best" and self.taus == SWEPT
        chosen = swept and is_published(self, *DATA_FIELDS, "method", "features", "select", "tau", "taus")
        return "TokenCut, output features, best tau (DINOv3)" if chosen else None

    def _has(self, values: Mapping[str, object]) -> bool:
        return all(getattr(self, name) == value for name, value in values.items())


SETTINGS = {"discovery": DiscoverySettings}
