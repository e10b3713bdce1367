"""Settings of zero-shot box tracking."""

from typing import ClassVar, Literal

from pydantic import Field

from densewalk.core.metric import Metric
from densewalk.core.resources import Resources
from densewalk.evaluations.common.label_propagation_settings import LabelPropagationSettings
from densewalk.evaluations.common.protocol_name import changes


class TrackingSettings(LabelPropagationSettings):
    """Single-object tracking: the first frame's box travels along frozen features. Our own protocol: nothing is published for it."""

    TABLE: ClassVar[str] = "tracking"
    VERSION: ClassVar[int] = 1
    TITLE: ClassVar[str] = "Box tracking"
    PICTURES: ClassVar[str] = "frames of {name}: the true box (blue) and the one that {run} tracks (orange)"
    RESOURCES: ClassVar[Resources] = Resources(threads=4, runtime=480)
    METRICS: ClassVar[dict[str, Metric]] = {
        "AO": Metric("%", "mean IoU over all frames of all sequences"),
        "SR_50": Metric("% of frames with IoU above 50"),
        "SR_75": Metric("% of frames with IoU above 75"),
        "AO_sequences": Metric("%", "mean over sequences of their mean IoU"),
    }

    split: str = "val"
    """Folder below `root` with list.txt and the sequences; GOT-10k's `test` has no boxes."""
    sequences: list[str] | None = Field(default=None, min_length=1)
    """Only these sequences of the list; all by default."""
    box: Literal["component", "quantile"] = "quantile"
    """How a frame's labels become a box. `component`: around the largest connected piece of the object's pixels. `quantile`: around
    the object's pixels but for the outermost `tail` of them on each side, drawn out to where a filled box would end."""
    tail: float = Field(default=0.05, ge=0, lt=0.5)
    """`quantile`: share of the object's pixels that may lie outside the box on each of its sides."""

    @property
    def protocol(self) -> str:
        """Everything but the data's place."""
        parts = [
            f"zero-shot box propagation (densewalk's own), {self.split}" + (f" ({', '.join(self.sequences)})" if self.sequences else ""),
            f"short side {self.short_side} px",
            f"top {self.top_k} within {'any distance' if self.radius is None else f'{self.radius} patches'}",
            f"first and last {self.context} frames",
            "box of the largest piece" if self.box == "component" else f"box of all but {100 * self.tail:g} % a side",
        ]
        return ", ".join([*parts, *changes(self, "split", "sequences", "short_side", "top_k", "radius", "context", "box", "tail")])


SETTINGS = {"tracking": TrackingSettings}
