"""Settings of zero-shot box tracking."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.data.benchmarks import sizes
from densewalk.evaluations.common.label_propagation_settings import LabelPropagationSettings
from densewalk.evaluations.common.protocol_name import SHOWN_BY_ANOTHER, Shown


class TrackingSettings(LabelPropagationSettings):
    """Single-object tracking: the first frame's box is propagated along frozen features. Our own protocol: nothing is published for it."""

    TABLE: ClassVar[str] = "tracking"
    PROCESSES: ClassVar[bool] = True
    VERSION: ClassVar[int] = 2
    """2: frames are in the order of their numbers."""
    TITLE: ClassVar[str] = "Box tracking"
    RECIPE: ClassVar[str] = "zero-shot box propagation (densewalk's own)"
    PICTURES: ClassVar[str] = "frames of {name}: the true box (blue) and the one that {run} tracks (orange)"
    RESOURCES: ClassVar[Resources] = Resources(threads=4, runtime=480)
    METRICS: ClassVar[dict[str, Metric]] = {
        "AO": Metric("%", "mean IoU over all frames of all sequences"),
        "SR_50": Metric("% of frames with IoU above 50"),
        "SR_75": Metric("% of frames with IoU above 75"),
        "AO_sequences": Metric("%", "mean over sequences of their mean IoU"),
    }

    split: Annotated[str, Shown(lambda s: f"{s.split}{s.subset}", "first")] = "val"
    """Folder below `root` with list.txt and the sequences; GOT-10k's `test` has no boxes."""
    box: Annotated[Literal["component", "quantile"], Shown(lambda s: s.box_rule)] = "quantile"
    """How a frame's labels become a box. `component`: around the largest connected component of the object's pixels. `quantile`:
    around the object's pixels without the outermost `tail` of them on each side, extended to where a filled box would end."""
    tail: Annotated[float, SHOWN_BY_ANOTHER] = Field(default=0.05, ge=0, lt=0.5)
    """`quantile`: share of the object's pixels that may lie outside the box on each of its sides."""

    @property
    def frames(self) -> int | None:
        """Of GOT-10k."""
        return sizes.GOT10K.get(self.split)

    @property
    def box_rule(self) -> str:
        """`box` in words."""
        return "box of the largest piece" if self.box == "component" else f"box of all but {100 * self.tail:g} % a side"


SETTINGS = {"tracking": TrackingSettings}
