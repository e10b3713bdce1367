"""Settings of the position X-ray."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.core.settings import PathText
from densewalk.data.benchmarks.sizes import files_in, images_below
from densewalk.evaluations.common.protocol_name import Shown
from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.models.architecture import Architecture
from densewalk.models.work import Work, vit


class PositionSettings(EvaluationSettings):
    """How much of a dense map is position: places predicted from features, and variance between places. No labels, nothing is tuned."""

    TABLE: ClassVar[str] = "position"
    VERSION: ClassVar[int] = 1
    TITLE: ClassVar[str] = "Position in the features"
    RECIPE: ClassVar[str] = "position"
    RESOURCES: ClassVar[Resources] = Resources(mem_mb=32_000, runtime=240)
    # lower: a description of the features rather than a merit, but what labels do not ask for
    METRICS: ClassVar[dict[str, Metric]] = {
        "R2": Metric("%", "variance of row and column that a ridge on the features explains in held-out images", "lower"),
        "R2_row": Metric("%", "of the row alone", "lower"),
        "R2_column": Metric("%", "of the column alone", "lower"),
        "eta2": Metric("%", "variance of the features that lies between places; 100 divided by the images for noise", "lower"),
        "omega2": Metric("%", "the same, corrected for the number of images; 0 for noise", "lower"),
    }

    images: PathText | None = None
    """Folder of the images below `root`; `root` itself if it is not given."""
    input_size: Annotated[int, Shown("{} px")] = Field(default=448, ge=16)
    """Side of the square images in pixels, rounded down to a multiple of the backbone's patch size."""
    held_out_every: Annotated[int, Shown("every {}th image held out")] = Field(default=5, ge=2)
    """Every n-th image is held out of the regression, and R2 is of these."""
    ridge: float = Field(default=1e-3, gt=0)
    """Penalty of the regression, times the number of patches."""

    @property
    def folder(self) -> str:
        """The folder of the images."""
        return str(Path(self.root) / (self.images or ""))

    @property
    def data_paths(self) -> tuple[str, ...]:
        """The images alone."""
        return (self.folder,)

    def work(self, arch: Architecture) -> Work | None:
        """The images once."""
        images = images_below(self.folder) or files_in(Path(self.folder))
        return None if images is None else Work(images * vit(arch, self.input_size))


SETTINGS = {"position": PositionSettings}
