"""Look at a video without copying it: all frames of a short one, key frames of a long one."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Float

from densewalk.core.errors import UserError
from densewalk.core.progress import track
from densewalk.data.settings import VideoSettings
from densewalk.data.video.encode import RgbFrame
from densewalk.data.video.inspection import CUT_CHANGE, FrameInspection
from densewalk.data.video.probe import probe_timeline
from densewalk.data.video.seeking import PacketReader
from densewalk.data.video.timeline import Key
from densewalk.data.video.transcode import FramePipeline, Scaler, decode_packets, describe_oddities, target_size

# a video of up to this many pixels is decoded whole: half an hour of 480p at 30 fps, a minute of 4K
WHOLE_PIXELS = 3e10
# key frames that are looked at, at most, and places between two of them that are searched for cuts
SAMPLES, CUT_PLACES = 1200, 32
# seconds: a video whose key frames are further apart is decoded whole
MAX_STEP = 15.0


class Survey:
    """Frames evenly over a video, at the training copy's size, and what is found on the way.

    Iterate it once for (seconds after the first frame, frame); then ask it. A short video is decoded whole, as `transcode`
    would; of a long one, one key frame is decoded in each of even stretches, and all frames only between those two neighbors
    that differ most, where cuts are to be expected. Memory holds a thumbnail and two numbers for each frame looked at.

    Attributes:
        decoded, tried: frames that decode, of how many.
        whole: whether all frames were looked at. step: seconds from one that was to the next.
        intervals: shortest, middle and longest time between two frames of the file, in seconds.
        usable, cuts, problems: as in a receipt, but in seconds.

    Args:
        whole: decode all frames; by default where that takes no more than `WHOLE_PIXELS`.

    Raises:
        UserError: no video, or, at the first iteration, one that does not decode.
    """

    def __init__(self, settings: VideoSettings, *, whole: bool | None = None) -> None:
        path = Path(settings.source)
        self.info, self.timeline = probe_timeline(path)
        self.settings, self.threads = settings, len(os.sched_getaffinity(0))
        if self.info.missing_frames > self.info.fps:
            stated = self.info.frames + self.info.missing_frames
            raise UserError(f"{path} is cut off: {self.info.frames} of {stated} frames are there", todo="download it again")
        shown, unit = self.timeline.shown, float(self.timeline.unit)
        self.intervals = tuple(float(q) * unit for q in np.quantile(np.diff(shown), [0.0, 0.5, 1.0])) if len(shown) > 1 else None
        self.keys, self.step = choose_key_frames(self.timeline.keys, shown, unit)
        pixels = self.info.frames * self.info.width * self.info.height
        self.whole = whole if whole is not None else pixels <= WHOLE_PIXELS
        # key frames say where they are only if the stamps do
        self.whole = self.whole or self.step > MAX_STEP or self.timeline.restarts > 0 or not self.timeline.ordered
        self.whole = self.whole or not self._begins_with_itself(self.keys[-1])
        if self.whole:
            self.step = 1 / self.info.fps
        self.decoded = self.tried = 0
        self.usable: list[tuple[float, float]] = []
        self.cuts: list[float] = []
        self.problems: list[str] = []

    def _begins_with_itself(self, key: Key) -> bool:
        """Whether decoding from a key frame begins with it; else key frames only begin to refresh the image."""
        reader = PacketReader(self.info.path)
        frame = _first_from(reader, key)
        reader.close()
        return frame is not None and frame.pts == key.stamp

    def __iter__(self) -> Iterator[tuple[float, RgbFrame]]:
        return self._all() if self.whole else self._keys()

    def _all(self) -> Iterator[tuple[float, RgbFrame]]:
        pipeline = FramePipeline(self.info, self.timeline, self.settings, self.threads, "look at all frames")
        every = max(1, self.info.frames // SAMPLES)
        reformatter = VideoReformatter()
        for number, frame in enumerate(pipeline.frames()):
            if number % every == 0:
                yield number / float(pipeline.rate), reformatter.reformat(frame, format="rgb24").to_ndarray()
        contents = pipeline.contents()
        self.usable = [(start / contents.fps, end / contents.fps) for start, end in contents.usable]
        self.cuts = [cut / contents.fps for cut in contents.cuts]
        self.problems = contents.problems
        self.decoded, self.tried = pipeline.decoder.decoded, max(self.info.frames, pipeline.decoder.decoded)

    def _keys(self) -> Iterator[tuple[float, RgbFrame]]:
        size = target_size(self.info.width, self.info.height, self.settings.short_side)
        scale, inspection = Scaler(*size, self.info.orientation, self.threads), FrameInspection(self.settings, 1 / self.step)
        reformatter = VideoReformatter()
        self.problems += self.info.notes
        times = []
        for number, (seconds, frame, intact) in enumerate(self._key_frames()):
            if number == 0:
                self.problems += describe_oddities(frame)
            scaled = scale(frame)
            inspection.add(scaled, intact)
            times.append(seconds)
            yield seconds, reformatter.reformat(scaled, format="rgb24").to_ndarray()
        usable, idle = inspection.usable()
        edges = [*times, self.info.duration]
        self.usable = [(edges[start], edges[end]) for start, end in usable]
        self.problems += idle
        self._find_cuts(np.array(inspection.change), scale)

    def _key_frames(self) -> Iterator[tuple[float, av.VideoFrame, bool]]:
        """Yield seconds from the first frame, each chosen key frame and True; if it does not decode, the last one and False."""
        reader, last = PacketReader(self.info.path), None
        for key in track(self.keys, "look at key frames"):
            frame = _first_from(reader, key)
            self.decoded, self.tried = self.decoded + (frame is not None), self.tried + 1
            last = frame or last
            if last is None:
                raise UserError(f"{self.info.path} does not decode at its beginning", todo="download it again")
            yield max(0.0, self.timeline.seconds(key.stamp)), last, frame is not None
        reader.close()

    def _find_cuts(self, change: Float[np.ndarray, " frames"], scale: Scaler) -> None:
        """Find the cuts between the key frames that differ most, and say if more are possible."""
        likely = [int(i) for i in np.argsort(-change, kind="stable") if i > 0 and change[i] >= CUT_CHANGE]
        reader = PacketReader(self.info.path)
        for i in track(sorted(likely[:CUT_PLACES]), "look for cuts"):
            inspection = FrameInspection(self.settings, self.info.fps)
            seconds = self.timeline.seconds(self.keys[i - 1].stamp)
            for frame in decode_packets(reader.packets(self.keys[i - 1])):
                if frame is None or frame.pts is None or frame.pts > self.keys[i].stamp:
                    break
                inspection.add(scale(frame), intact=True)
            self.cuts += [seconds + n / self.info.fps for n in inspection.cuts()]
        reader.close()
        if (left := len(likely) - CUT_PLACES) > 0:
            self.problems.append(f"cuts were looked for at the {CUT_PLACES} likeliest places only, {left} more are possible")


def _first_from(reader: PacketReader, key: Key) -> av.VideoFrame | None:
    """Decode the first frame from a key frame on, None if it is damaged. What is shown before the key frame needs what comes before."""
    frames = decode_packets(reader.packets(key))
    return next((frame for frame in frames if frame is None or frame.pts is None or frame.pts >= key.stamp), None)


def choose_key_frames(keys: Sequence[Key], shown: Sequence[int], unit: float) -> tuple[list[Key], float]:
    """Choose the first key frame of each of the shortest even stretches that all have one.

    Also return a stretch's length in seconds. At most `SAMPLES` stretches.

    for n: chosen[n] = the first key frame at start + n * length or later
    """
    if not keys or not shown:
        return [], float("inf")
    end = shown[-1] + (shown[-1] - shown[0]) / max(1, len(shown) - 1)
    stamps = np.array([key.stamp for key in keys], np.int64)
    length = max(float(np.diff([*stamps, end]).max()), (end - float(stamps[0])) / SAMPLES, 1.0)
    stretch = ((stamps - stamps[0]) // length).astype(int)
    chosen = np.unique(stretch, return_index=True)[1]
    return [keys[i] for i in chosen], length * unit
