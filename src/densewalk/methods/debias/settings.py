"""Settings of the SVD debias."""

from typing import ClassVar

from pydantic import Field

from densewalk.core.resources import Resources
from densewalk.models.families.abilities import WITHOUT_POSITION
from densewalk.training.settings import MethodSettings


class DebiasSettings(MethodSettings):
    """INSID3's SVD debias of any vision transformer: the directions in which a black image's tokens differ are taken out of the map."""

    RESOURCES: ClassVar[Resources] = Resources(gpu=0, threads=1, mem_mb=8000, runtime=30)
    GIVES: ClassVar[frozenset[str] | None] = WITHOUT_POSITION

    components: int = Field(default=500, ge=1)
    """Singular vectors that are taken out: 500 of DINOv3-L's 1024 dimensions for segmentation at 1024 px, 20 of B's for keypoints at 768
    px. Fewer than the map has dimensions and places."""


SETTINGS = DebiasSettings
