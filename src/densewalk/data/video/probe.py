"""Codec, size, orientation, frame rate and length of a video file."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from densewalk.core.errors import UserError
from densewalk.core.progress import clock
from densewalk.data.video.orientation import Orientation, frame_orientation
from densewalk.data.video.seeking import PacketReader
from densewalk.data.video.streams import describe_choice, open_video, video_stream
from densewalk.data.video.timeline import Pace, Timeline, begins_with, measure_pace, read_index, scan_packets, stated_rates, time_base


@dataclass(frozen=True)
class VideoInfo:
    """What is known about a file's video.

    width, height: in square pixels, upright. fps, frames, duration: as the time stamps of the packets say, frames as shown, seconds
    without jumps. rotation, mirrored: what makes the stored frames upright (`Orientation`). stated_duration: seconds that the file
    states for this stream. missing_frames: what the file states and lacks. jump: seconds after which the time
    stamps jump. notes: sentences for the receipt.
    """

    path: str
    codec: str
    width: int
    height: int
    fps: float
    frames: int
    duration: float
    pixel_format: str
    rotation: int
    mirrored: bool = False
    stated_duration: float | None = None
    missing_frames: int = 0
    jump: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def orientation(self) -> Orientation:
        """What makes the stored frames upright."""
        return Orientation(self.rotation, self.mirrored)


def probe(path: str | Path, *, samples: bool = True) -> VideoInfo:
    """Describe a video and make sure that its beginning, middle and end decode; of an MP4 or MOV file only the index is read.

    Args:
        samples: False looks at the beginning only.

    Raises:
        UserError: the file is missing, is no video, or does not decode.
    """
    return _examine(path, samples, quick=True)[0]


def probe_timeline(path: str | Path, *, samples: bool = True) -> tuple[VideoInfo, Timeline]:
    """Describe a video as `probe` does, and read the time stamps of all its packets."""
    return _examine(path, samples, quick=False)


def _examine(path: str | Path, samples: bool, *, quick: bool) -> tuple[VideoInfo, Timeline]:
    with open_video(path) as container:
        stream = video_stream(container, path)
        first = first_frame(container, stream, path)
        index = read_index(stream) if quick else None
        # it has times of decoding: those of showing differ where steps do, or the first frames of an open GOP were cut off
        is_exact = index is not None and index.is_even() and begins_with(path, first.pts)
        timeline = index if index is not None and is_exact else scan_packets(path).starting_at(first.pts)
        if not timeline.shown:
            raise UserError(f"{path} has no frame with a time stamp", todo="check it with a player; re-encode it with ffmpeg")
        info = _describe(container, stream, first, timeline, path)
        for share in (0.5, 1.0) if samples else ():
            require_decodes(container, stream, timeline, share, path)
    return info, timeline


def first_frame(container: InputContainer, stream: VideoStream, path: str | Path) -> av.VideoFrame:
    """Return the first frame that decodes, from the container's beginning or where it stands."""
    reason = "it may be cut off or encrypted"
    try:
        for packet in container.demux(stream):
            for frame in packet.decode():
                if not frame.is_corrupt:
                    return frame
    except av.FFmpegError as error:
        reason = str(error.strerror)
    raise UserError(f"{path} does not decode at {clock(0.0)} ({reason})", todo="download it again")


def require_decodes(container: InputContainer, stream: VideoStream, timeline: Timeline, share: float, path: str | Path) -> None:
    """Raise a UserError if no frame decodes at a share of the video, or from one of the key frames before it."""
    stamp = timeline.shown[round(share * (len(timeline.shown) - 1))]
    seconds, reason = max(0.0, timeline.seconds(stamp)), "it may be cut off or encrypted"
    try:
        for packets in _packets_before(container, stream, timeline, stamp, path):
            if any(not frame.is_corrupt for packet in packets for frame in packet.decode()):
                return
    except av.FFmpegError as error:
        reason = str(error.strerror)
    raise UserError(f"{path} does not decode at {clock(seconds)} ({reason})", todo="download it again")


def _packets_before(
    container: InputContainer, stream: VideoStream, timeline: Timeline, stamp: int, path: str | Path
) -> Iterator[Iterator[av.Packet]]:
    """Yield the packets from each of the last key frames before a stamp on."""
    if not timeline.keys:  # the file's index is exact
        for earlier in (0.0, 10.0, timeline.seconds(stamp)):
            container.seek(stamp - int(earlier / time_base(stream)), stream=stream)
            first = [packet for packet in islice(container.demux(stream), 1) if packet.size]
            if not first:  # the index knows a frame that the file lacks
                return
            yield chain(first, container.demux(stream))
        return
    reader, last = PacketReader(path), bisect_right(timeline.keys, stamp, key=lambda key: key.stamp) - 1
    for number in range(max(0, last), max(-1, last - 3), -1):
        yield reader.packets(timeline.keys[number])
    reader.close()


def _describe(container: InputContainer, stream: VideoStream, frame: av.VideoFrame, timeline: Timeline, path: str | Path) -> VideoInfo:
    orientation = frame_orientation(frame, path)
    pace = measure_pace(timeline, stated_rates(stream), path)
    size = round(stream.width * (stream.sample_aspect_ratio or 1)), stream.height
    width, height = size[::-1] if orientation.swaps_sides else size
    return VideoInfo(
        path=str(path),
        codec=stream.codec_context.name,
        width=width,
        height=height,
        fps=float(pace.rate),
        frames=len(timeline.shown),
        duration=pace.duration,
        pixel_format=str(stream.pix_fmt),
        rotation=orientation.turn,
        mirrored=orientation.mirrored,
        stated_duration=_stated_duration(container, stream, max(0.0, float(timeline.shown[0] * timeline.unit))),
        missing_frames=max(0, _stated_frames(stream) - max(len(timeline.shown), _frames_by_time(stream, pace))),
        jump=pace.jump,
        notes=describe_choice(container, stream),
    )


def _stated_frames(stream: VideoStream) -> int:
    """Return the number of frames that the file states, 0 if it does not."""
    index = read_index(stream)
    return stream.frames if index is None else len(index.shown)


def _frames_by_time(stream: VideoStream, pace: Pace) -> int:
    """Return the frames that would fill the time: AVI counts those that were dropped when it was recorded."""
    return round(pace.duration * pace.rate) if stream.container.format.name == "avi" else 0


def _stated_duration(container: InputContainer, stream: VideoStream, start: float) -> float | None:
    """Return the seconds that the file states for the stream, or for all of it, which counts from time 0."""
    if stream.duration:
        return float(stream.duration * time_base(stream))
    try:  # Matroska: 00:10:00.040000000
        hours, minutes, seconds = stream.metadata.get("DURATION", "").split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds) - start
    except ValueError:
        return container.duration / av.time_base - start if container.duration else None


def missing_codecs(codecs: Iterable[str]) -> list[str]:
    """Return those of the codecs that PyAV was built without."""
    return [codec for codec in codecs if codec not in av.codecs_available]
