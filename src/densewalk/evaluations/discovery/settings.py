"""Settings of object discovery."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.metric import Metric
from densewalk.data.benchmarks import sizes
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown, is_published
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work, vit

# the data sets of LOST's table: name -> settings that choose their images
PUBLISHED_DATA: dict[str, dict[str, object]] = {
    "VOC07": {"layout": "voc", "year": 2007, "split": "trainval"},
    "VOC12": {"layout": "voc", "year": 2012, "split": "trainval"},
    "COCO20k": {"layout": "coco", "images": "train2014"},
}


class DiscoverySettings(EvaluationSettings):
    """One box in each image, found without any training, against the boxes of all its objects."""

    TABLE: ClassVar[str] = "discovery"
    PROCESSES: ClassVar[bool] = True
    VERSION: ClassVar[int] = 2
    """2: images are turned as their EXIF says, 16-bit gray is scaled."""
    TITLE: ClassVar[str] = "Object discovery (CorLoc)"
    PICTURES: ClassVar[str] = "true objects (blue) and the box that {run} finds (orange)"
    METRICS: ClassVar[dict[str, Metric]] = {"CorLoc": Metric("% of images whose box has IoU of at least 0.5 with an object's")}

    layout: Annotated[Literal["voc", "coco"], Shown(lambda s: f"{s.chosen_images}, all objects")]
    """`voc`: VOCdevkit/VOC2007 or VOC2012. `coco`: a folder of images and an annotation file."""
    year: Annotated[Literal[2007, 2012], SHOWN_BY_ANOTHER] = 2012
    """Layout `voc`: which of the two."""
    split: Annotated[str, SHOWN_BY_ANOTHER] = "trainval"
    """Layout `voc`: list in ImageSets/Main."""
    images: str = "train2014"
    """Layout `coco`: folder of the images below `root`."""
    annotations: str | None = None
    """Layout `coco`: annotation file below `root`; annotations/instances_{images}.json if not given."""
    ids: Annotated[str | None, SHOWN_BY_ANOTHER] = None
    """Layout `coco`: file below `root` that lists the images to use, by id or file name (COCO20k's 19,817); all by default."""
    method: Annotated[Literal["lost", "attention"], Shown(lambda s: s.method_name, "first")] = "lost"
    """`lost`: patches similar to the patch that is least like all others. `attention`: the CLS token's attention of one head (DINO-seg)."""
    k_patches: Annotated[int, SHOWN_BY_ANOTHER] = Field(default=100, ge=1)
    """Method `lost`: patches of lowest degree that the seed may expand to."""
    head: Annotated[int, SHOWN_BY_ANOTHER] = Field(default=4, ge=0)
    """Method `attention`: head of the last block, counted from 0."""
    mass: Annotated[float, SHOWN_BY_ANOTHER] = Field(default=0.6, gt=0, le=1)
    """Method `attention`: share of the attention that the kept patches hold."""

    @model_validator(mode="after")
    def layout_has_what_it_needs(self) -> Self:
        """Refuse fields of the other layout, which would silently do nothing."""
        other = ("images", "annotations", "ids") if self.layout == "voc" else ("year", "split")
        extra = [name for name in other if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default]
        if extra:
            raise ValueError(f"layout {self.layout} has no {', '.join(extra)}: leave them out")
        return self

    def work(self, arch: Architecture) -> Work | None:
        """One pass over images of about 500 x 375 px, and the products of their patches' keys."""
        images = sizes.DISCOVERY.get(self.dataset)
        if images is None:
            return None
        patches = (500 // arch.patch) * (375 // arch.patch)
        return Work(images * (vit(arch, 375, 500) + 2.0 * patches**2 * arch.dim))

    @property
    def needs(self) -> frozenset[str]:
        """Keys for LOST, the CLS token's attention for the other method."""
        return frozenset({"keys" if self.method == "lost" else "attention"})

    @property
    def method_name(self) -> str:
        """The method with its parameters."""
        if self.method == "lost":
            return f"LOST, keys of the last block, k {self.k_patches}"
        return f"CLS attention of head {self.head}, {100 * self.mass:g} % of its mass, largest component"

    @property
    def chosen_images(self) -> str:
        """The images that are used."""
        if self.layout == "voc":
            return f"VOC{self.year} {self.split}"
        return f"COCO {self.images}{f' by {self.ids}' if self.ids else ''}, no crowds"

    @property
    def published_protocol(self) -> str | None:
        """`LOST` where method and images are those of LOST's table."""
        data = PUBLISHED_DATA.get(self.dataset)
        if data is None or any(getattr(self, name) != value for name, value in data.items()):
            return None
        chosen = self.dataset != "COCO20k" or self.ids is not None
        return "LOST" if chosen and is_published(self, "year", "split", "ids", "annotations", "head", "mass") else None


SETTINGS = {"discovery": DiscoverySettings}
