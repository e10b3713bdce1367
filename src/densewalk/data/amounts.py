"""How much a source of training data holds, for estimates. Free of torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Amount:
    """A video file, a folder of images, or one of videos as folders of frames (parts: how many)."""

    kind: Literal["video", "images", "sequences"]
    frames: int
    fps: float = 1.0
    parts: int = 1

    @property
    def seconds(self) -> float:
        """Length of a video."""
        return self.frames / self.fps
