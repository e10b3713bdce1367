"""Read frames of a video by number, with PyAV or decord.

The truth is sequential decoding: frame n is the n-th frame that decoding from the beginning returns. In a damaged file a frame that does
not decode keeps its number: reading it is an error, and those behind it are not counted differently. `FrameFile` finds frames by the time
stamps of their packets, and checks each frame that it decodes on the way. decord counts from the key frame that its own, older FFmpeg
lands at: `DecordFile` is only used where a file's packets rule out a wrong count and frames of both readers are equal.
"""

import logging
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import cv2  # noqa: F401  before decord, whose zlib would else take the place of OpenCV's: OpenCV then reads no PNG (returns None)
import decord
import numpy as np
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import UInt8

from densewalk.core.errors import UserError
from densewalk.data.video.orientation import frame_orientation
from densewalk.data.video.probe import first_frame
from densewalk.data.video.seeking import PacketReader
from densewalk.data.video.streams import open_video, video_stream
from densewalk.data.video.timeline import Key, Timeline, scan_packets, time_base

log = logging.getLogger("densewalk")

Frames = UInt8[np.ndarray, "frames height width 3"]
DECORD_ERRORS = (decord.DECORDError, RuntimeError)
# frames that are decoded at each of three key frames when a file is opened, and the largest mean difference of two readers' gray levels
SAMPLED, LARGEST_DIFFERENCE = 8, 0.5


class FrameFile:
    """Frames of a video by number, read by PyAV.

    Args:
        times: of the shown frames, ascending. keys: the key frames.
    """

    def __init__(self, path: Path, times: Sequence[int], keys: Sequence[Key]) -> None:
        self.path, self.times, self.keys = path, times, keys
        self.packets = PacketReader(path, threads=1)
        self.size = self.packets.stream.width, self.packets.stream.height
        self.reformatter = VideoReformatter()
        self.position: int | None = None  # number of the last decoded frame
        self.frames: Iterator[av.VideoFrame] = iter(())

    def __len__(self) -> int:
        return len(self.times)

    def read(self, wanted: Sequence[int]) -> Frames:
        """Read frames of ascending numbers."""
        return np.stack([self.reformatter.reformat(self._frame(number), format="rgb24").to_ndarray() for number in wanted])

    def verify(self) -> None:
        """Make sure that frames from the first, the middle and the last key frame on are those that the packets say.

        Raises:
            UserError: one of the first is not, or most are not. Fewer are damage, which is an error when they are read.
        """
        tried = lost = 0
        for key in sorted({0, len(self.keys) // 2, len(self.keys) - 1}):
            first = bisect_left(self.times, self.keys[key].stamp)
            found = [self._find(number) is not None for number in range(first, min(first + SAMPLED, len(self)))]
            tried, lost = tried + len(found), lost + found.count(False)
            if (key == 0 and not all(found)) or 2 * lost > tried:
                number = first + found.index(False)
                where = f"frame {number} is not where its packets say, or does not decode"
                raise UserError(f"{self.path} cannot be read by frame number: {where}", todo="read its training copy instead")

    def _frame(self, number: int) -> av.VideoFrame:
        frame = self._find(number)
        if frame is None:
            raise UserError(f"{self.path} does not decode at frame {number}", todo="download it again, or read its training copy")
        if (frame.width, frame.height) != self.size:
            sizes = f"{frame.width}x{frame.height}, not {self.size[0]}x{self.size[1]}"
            raise UserError(f"{self.path}: frame {number} is {sizes}", todo="read its training copy")
        return frame

    def _find(self, number: int) -> av.VideoFrame | None:
        """Decode on from here if no key frame lies between, else from the last one before."""
        key = max(0, bisect_right(self.keys, self.times[number], key=_stamp) - 1)
        ahead = self.position is not None and bisect_left(self.times, self.keys[key].stamp) <= self.position < number
        frame = self._decode_to(number) if ahead else None
        if frame is None:
            begin = self.keys[key]
            self.frames, self.position = self.packets.frames(begin), bisect_left(self.times, begin.stamp) - 1
            frame = self._decode_to(number, begin.stamp)
        return frame

    def _decode_to(self, number: int, begin: int | None = None) -> av.VideoFrame | None:
        """Return frame `number`, or None if the next ones do not lead to it one by one.

        Args:
            begin: the stamp of the key frame that decoding has just been set to. What is shown before it needs what comes before it.
        """
        at, self.position = self.position, None
        if at is None:
            return None
        try:
            for frame in self.frames:
                if frame.is_corrupt or frame.pts is None:
                    return None
                if begin is not None and frame.pts < begin:
                    continue
                at += 1
                if self.times[at] != frame.pts:
                    return None
                if at == number:
                    self.position = at
                    return frame
        except av.FFmpegError as error:
            log.debug("%s, on the way to frame %d: %s", self.path, number, error)
        return None


def _stamp(key: Key) -> int:
    return key.stamp


def open_copy(path: Path, gop: int) -> FrameFile:
    """Open a training copy: its frames and key frames are where its rate and `gop` say."""
    with open_video(path) as container:
        stream = video_stream(container, path)
        _require_upright(first_frame(container, stream, path), path)
        step, total = _constant_step(stream, path), stream.frames
    keys = [Key(stamp, stamp) for stamp in range(0, total * step, step * gop)]
    return FrameFile(path, range(0, total * step, step), keys)


def _constant_step(stream: VideoStream, path: Path) -> int:
    step = 1 / (stream.average_rate * time_base(stream)) if stream.average_rate else None
    if step is None or step.denominator != 1:
        raise UserError(f"{path} has no constant frame rate", todo="delete it, so that it is made again")
    return int(step)


def open_verified(path: Path, *, decord_wanted: bool, decord_required: bool = False) -> "FrameFile | DecordFile":
    """Open any video that is stored upright and whose frames can be found by their stamps.

    Args:
        decord_wanted: read it with decord where that returns the same frames. decord_required: warn where it does not.

    Raises:
        UserError: frames cannot be found by their stamps, or are not where those say.
    """
    with open_video(path) as container:
        stream = video_stream(container, path)
        first = first_frame(container, stream, path)
        _require_upright(first, path)
        timeline = scan_packets(path).starting_at(first.pts)
        if timeline.doubt or not timeline.keys:
            reason = timeline.doubt or "it has no key frame"
            raise UserError(f"{path} cannot be read by frame number: {reason}", todo="read its training copy instead")
        why_not = _why_not_decord(stream, first, timeline)
    file = FrameFile(path, timeline.shown, timeline.keys)
    file.verify()
    if not decord_wanted:
        return file
    other = None
    try:
        other = DecordFile(path) if why_not is None else None
        why_not = why_not or _difference(file, other)
    except DECORD_ERRORS as error:
        why_not = str(error).strip().splitlines()[-1]
    if why_not is None and other is not None:
        return other
    log.log(logging.WARNING if decord_required else logging.DEBUG, "decord does not suit %s (%s): PyAV reads it", path, why_not)
    return file


def _require_upright(frame: av.VideoFrame, path: Path) -> None:
    orientation = frame_orientation(frame, path)
    if str(orientation) != "upright":
        raise UserError(f"{path} is stored {orientation}", todo="read its training copy instead")


def _why_not_decord(stream: VideoStream, first: av.VideoFrame, timeline: Timeline) -> str | None:
    """Return what would make decord count wrong, or fail."""
    reasons = {
        "its container's index is not exact": not stream.container.format.name.startswith(("mov", "matroska")),
        "it has several video streams": len(stream.container.streams.video) > 1,
        "decord cannot open AV1": "av1" in stream.codec_context.name,
        "it holds frames that are not shown": timeline.discards > 0,
        "its groups of pictures are open": not timeline.closed,
        "it does not have 8 bits or even sides": first.format.components[0].bits != 8 or first.width % 2 > 0 or first.height % 2 > 0,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _difference(file: FrameFile, other: "DecordFile | None") -> str | None:
    """Compare two readers' frames at the last, the middle and the first key frame, in an order in which decord has to seek."""
    if other is None or len(other) != len(file):
        return "it counts other frames"
    for key in sorted({0, len(file.keys) // 2, len(file.keys) - 1}, reverse=True):
        number = bisect_left(file.times, file.keys[key].stamp)
        for numbers in ([number, min(number + 1, len(file) - 1)], [max(number - 1, 0)]):
            here, there = file.read(numbers).astype(np.int16), other.read(numbers).astype(np.int16)
            if here.shape != there.shape or np.abs(here - there).mean(axis=(1, 2, 3)).max() > LARGEST_DIFFERENCE:
                return f"it returns other frames around number {number}"
    return None


class DecordFile:
    """Frames of a video by number, read by decord."""

    def __init__(self, path: Path) -> None:
        self.file = decord.VideoReader(str(path), num_threads=1)

    def __len__(self) -> int:
        return len(self.file)

    def read(self, wanted: Sequence[int]) -> Frames:
        """Read frames of ascending numbers."""
        frames = self.file.get_batch(list(wanted)).asnumpy()
        # else decord's thread goes on decoding without bound (https://github.com/dmlc/decord/issues/208)
        self.file.seek(0)
        return frames
