"""Settings of object discovery."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from densewalk.core.metric import Metric
from densewalk.evaluations.common.protocol_name import changes
from densewalk.evaluations.common.settings import EvaluationSettings

# the data sets of LOST's table: name -> settings that choose their images
PUBLISHED_DATA: dict[str, dict[str, object]] = {
    "VOC07": {"layout": "voc", "year": 2007, "split": "trainval"},
    "VOC12": {"layout": "voc", "year": 2012, "split": "trainval"},
    "COCO20k": {"layout": "coco", "images": "train2014"},
}


class DiscoverySettings(EvaluationSettings):
    """One box in each image, found without any training, against the boxes of all its objects."""

    TABLE: ClassVar[str] = "discovery"
    VERSION: ClassVar[int] = 1
    TITLE: ClassVar[str] = "Object discovery (CorLoc)"
    PICTURES: ClassVar[str] = "true objects (blue) and the box that {run} finds (orange)"
    METRICS: ClassVar[dict[str, Metric]] = {"CorLoc": Metric("% of images whose box has IoU of at least 0.5 with an object's")}

    layout: Literal["voc", "coco"]
    """`voc`: VOCdevkit/VOC2007 or VOC2012. `coco`: a folder of images and an annotation file."""
    year: Literal[2007, 2012] = 2012
    """Layout `voc`: which of the two."""
    split: str = "trainval"
    """Layout `voc`: list in ImageSets/Main."""
    images: str = "train2014"
    """Layout `coco`: folder of the images below `root`."""
    annotations: str | None = None
    """Layout `coco`: annotation file below `root`; annotations/instances_{images}.json if not given."""
    ids: str | None = None
    """Layout `coco`: file below `root` that lists the images to use, by id or file name (COCO20k's 19,817); all by default."""
    method: Literal["lost", "attention"] = "lost"
    """`lost`: patches that resemble the one least like all others. `attention`: the CLS token's attention of one head (DINO-seg)."""
    k_patches: int = Field(default=100, ge=1)
    """Method `lost`: patches of lowest degree that the seed may expand to."""
    head: int = Field(default=4, ge=0)
    """Method `attention`: head of the last block, counted from 0."""
    mass: float = Field(default=0.6, gt=0, le=1)
    """Method `attention`: share of the attention that the kept patches hold."""

    @model_validator(mode="after")
    def layout_has_what_it_needs(self) -> Self:
        """No field of the other layout, which would silently do nothing."""
        other = ("images", "annotations", "ids") if self.layout == "voc" else ("year", "split")
        extra = [name for name in other if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default]
        if extra:
            raise ValueError(f"layout {self.layout} has no {', '.join(extra)}: leave them out")
        return self

    @property
    def protocol(self) -> str:
        """The recipe and the choice of images."""
        if self.method == "lost":
            recipe = f"LOST, keys of the last block, k {self.k_patches}"
        else:
            recipe = f"CLS attention of head {self.head}, {100 * self.mass:g} % of its mass, largest component"
        if self.layout == "voc":
            data = f"VOC{self.year} {self.split}"
        else:
            data = f"COCO {self.images}" + (f" by {self.ids}" if self.ids else "") + ", no crowds"
        shown = ("method", "k_patches", "head", "mass", "year", "split", "images", "ids")
        return ", ".join([recipe, data, "all objects", *changes(self, *shown)])

    @property
    def published_protocol(self) -> str | None:
        """`LOST` where method and images are those of LOST's table."""
        data = PUBLISHED_DATA.get(self.dataset)
        as_published = data is not None and all(getattr(self, name) == value for name, value in data.items())
        chosen = self.ids is not None if self.dataset == "COCO20k" else True
        changed = changes(self, "year", "split", "images", "ids", "annotations", "head", "mass")
        return "LOST" if as_published and chosen and not changed else None


SETTINGS = {"discovery": DiscoverySettings}
