"""Look at a long video in samples."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import cv2  # noqa: F401  before decord, whose zlib would else take the place of OpenCV's: OpenCV then reads no PNG (returns None)
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Float

from densewalk.core.errors import UserError
from densewalk.core.progress import track
from densewalk.data.settings import VideoSettings
from densewalk.data.video.encode import Picture
from densewalk.data.video.inspection import CUT_CHANGE, FrameInspection, cut_frames
from densewalk.data.video.probe import open_video, packet_times, probe, time_base, video_stream
from densewalk.data.video.transcode import FramePipeline, Scaler, decode_frames, peculiarities, target_size

# a look at a video decodes all of it up to this many pixels (half an hour of 480p at 30 fps, a minute of 4K), looks at this many
# pictures, for cuts between this many of them, and takes no key frames further apart than this many seconds
WHOLE, SAMPLES, PLACES, MOST_STEP = 3e10, 1200, 32, 15.0


# -- looking without copying -----------------------------------------------------------------------------------------


class Survey:
    """Frames of a video spread over its length, at the training copy's size, and what is found on the way.

    Iterate it once for (seconds after the first frame, picture); then ask it. A short video is decoded whole, as `transcode`
    would; of a long one, one key frame is decoded in each of even stretches, and all frames only between those two neighbours
    whose pictures differ most, where cuts are to be expected. Memory holds a thumbnail and two numbers for each frame looked at.

    Attributes:
        decoded, tried: frames that decode, of how many.
        whole: whether all frames were looked at. step: seconds from one that was to the next.
        intervals: shortest, middle and longest time between two frames of the file, in seconds.

    Args:
        whole: decode all frames; by default where that takes no more than `WHOLE` pixels.

    Raises:
        UserError: no video, or, at the first iteration, one that does not decode.
    """

    def __init__(self, path: str | Path, settings: VideoSettings, *, whole: bool | None = None, threads: int | None = None) -> None:
        self.info = probe(path)
        self.settings, self.threads = settings, threads or len(os.sched_getaffinity(0))
        shown, keys = packet_times(path)
        if len(shown) < self.info.frames - self.info.fps:
            raise UserError(f"{path} is cut off: {len(shown)} of {self.info.frames} frames are there", todo="download it again")
        with open_video(path) as container:
            unit = float(time_base(video_stream(container, path)))
        self.intervals = tuple(float(q) * unit for q in np.quantile(np.diff(shown), [0.0, 0.5, 1.0])) if len(shown) > 1 else None
        self.keys, self.step = spread_out(keys, shown, unit)
        pixels = self.info.frames * self.info.width * self.info.height
        self.whole = whole if whole is not None else pixels <= WHOLE or self.step > MOST_STEP
        if self.whole:
            self.step = 1 / self.info.fps
        self.found: dict[str, Any] = {}
        self.decoded = self.tried = 0

    def __iter__(self) -> Iterator[tuple[float, Picture]]:
        return self._all() if self.whole else self._keys()

    def _all(self) -> Iterator[tuple[float, Picture]]:
        passage = FramePipeline(self.info, self.settings, self.threads, "look at all frames")
        every = max(1, self.info.frames // SAMPLES)
        reformatter = VideoReformatter()
        for number, frame in enumerate(passage.frames()):
            if number % every == 0:
                yield number / float(passage.rate), reformatter.reformat(frame, format="rgb24").to_ndarray()
        self.found = passage.found()
        self.decoded, self.tried = passage.decoder.decoded, max(self.info.frames, passage.decoder.decoded)

    def _keys(self) -> Iterator[tuple[float, Picture]]:
        size = target_size(self.info.width, self.info.height, self.settings.short_side)
        scale, inspection = Scaler(*size, self.info.rotation, self.threads), FrameInspection(self.settings, 1 / self.step)
        reformatter = VideoReformatter()
        for number, (frame, good) in enumerate(self._key_frames()):
            if number == 0:
                odd = peculiarities(frame)
            scaled = scale(frame)
            inspection.see(scaled, good)
            yield number * self.step, reformatter.reformat(scaled, format="rgb24").to_ndarray()
        usable, idle = inspection.usable()
        cuts, note = self._cuts(np.array(inspection.change), scale)
        self.found = {"fps": 1 / self.step, "frames": len(inspection), "duration": self.info.duration, "usable": usable, "cuts": cuts}
        self.found["problems"] = odd + idle + note

    def _key_frames(self) -> Iterator[tuple[av.VideoFrame, bool]]:
        """Each chosen key frame and True, or the one before it and False where it does not decode."""
        last = None
        with open_video(self.info.path) as container:
            stream = video_stream(container, self.info.path)
            for key in track(self.keys, "look at key frames"):
                frame = _key_frame(container, stream, key)
                self.decoded, self.tried = self.decoded + (frame is not None), self.tried + 1
                last = frame or last
                if last is None:
                    raise UserError(f"{self.info.path} does not decode at its beginning", todo="download it again")
                yield last, frame is not None

    def _cuts(self, change: Float[np.ndarray, " frames"], scale: Scaler) -> tuple[list[float], list[str]]:
        """Cuts in stretches from the beginning, and a sentence if they were not looked for wherever they may be."""
        likely = [int(i) for i in np.argsort(-change, kind="stable") if i > 0 and change[i] >= CUT_CHANGE]
        cuts: list[float] = []
        with open_video(self.info.path) as container:
            stream = video_stream(container, self.info.path)
            for i in track(sorted(likely[:PLACES]), "look for cuts"):
                seconds = float((self.keys[i - 1] - self.keys[0]) * time_base(stream))
                found = self._cuts_between(container, stream, self.keys[i - 1], self.keys[i], scale)
                cuts += [(seconds + n / self.info.fps) / self.step for n in found]
        left = len(likely) - PLACES
        return cuts, [f"cuts were looked for at the {PLACES} likeliest places only, {left} more are possible"] if left > 0 else []

    def _cuts_between(self, container: InputContainer, stream: VideoStream, start: int, end: int, scale: Scaler) -> list[int]:
        """Cuts from one key frame to another, in frames from the first."""
        inspection = FrameInspection(self.settings, self.info.fps)
        container.seek(start, stream=stream)
        for frame in decode_frames(container, stream):
            if frame is None or frame.pts is None or frame.pts > end:
                break
            inspection.see(scale(frame), good=True)
        return cut_frames(np.array(inspection.change), self.info.fps)


def spread_out(keys: Sequence[int], shown: Sequence[int], unit: float) -> tuple[list[int], float]:
    """The first key frame of each of the shortest even stretches that all have one, and a stretch's length in seconds.

    At most `SAMPLES` stretches. for n: chosen[n] = min(key for key in keys if start + n * length <= key)
    """
    if not keys or not shown:
        return [], float("inf")
    end = shown[-1] + (shown[-1] - shown[0]) / max(1, len(shown) - 1)
    length = max(float(np.diff([*keys, end]).max()), (end - keys[0]) / SAMPLES, 1.0)
    stretch = ((np.asarray(keys) - keys[0]) // length).astype(int)
    chosen = np.unique(stretch, return_index=True)[1]
    return [keys[i] for i in chosen], length * unit


def _key_frame(container: InputContainer, stream: VideoStream, key: int) -> av.VideoFrame | None:
    """The key frame at a time stamp, or None if it does not decode."""
    try:
        container.seek(key, stream=stream)
        return next(decode_frames(container, stream), None)
    except av.FFmpegError:
        return None
