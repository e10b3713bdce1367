"""Codec, size, frame rate and length of a video file."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from densewalk.core.errors import UserError
from densewalk.core.progress import clock


@dataclass(frozen=True)
class VideoInfo:
    """A file's own statements about its video.

    width, height: in square pixels, upright. fps: average. frames: exact, as shown. duration: seconds. rotation: degrees that the
    stored frames are to be turned by, clockwise (0, 90, 180, 270).
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


def probe(path: str | Path, *, samples: bool = True) -> VideoInfo:
    """Describe a video and make sure that its beginning, middle and end decode.

    Args:
        samples: False looks at the beginning only.

    Raises:
        UserError: the file is missing, is no video, or does not decode.
    """
    with open_video(path) as container:
        stream = video_stream(container, path)
        info = _describe(container, stream, first_frame(container, stream, path, 0.0), path)
        for share in (0.5, 1.0) if samples else ():
            first_frame(container, stream, path, share * info.duration)
    return info


@contextmanager
def open_video(path: str | Path) -> Iterator[InputContainer]:
    """Open a video file's container; it is closed after the block."""
    if not Path(path).is_file():
        raise UserError(f"video {path} does not exist", todo="correct the path or download it")
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        found = f"{path} cannot be opened as a video ({error.strerror})"
        raise UserError(found, todo="check it with a player; download it again if it is cut off") from error
    with container:
        yield container


def video_stream(container: InputContainer, path: str | Path) -> VideoStream:
    """Return the stream of moving images."""
    # text and images open as videos of their own kind, and an album's cover is a stream of one image
    no_video = container.format.name in ("tty", "image2") or container.format.name.endswith("_pipe")
    streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    if no_video or not streams:
        raise UserError(f"{path} is no video ({container.format.long_name})", allowed="any file with a video stream that FFmpeg reads")
    if streams[0].codec_context is None:
        raise UserError(f"{path} is encrypted, or in a codec that FFmpeg does not know", todo="convert it with what can play it")
    return streams[0]


def first_frame(container: InputContainer, stream: VideoStream, path: str | Path, seconds: float) -> av.VideoFrame:
    """Return the first frame that decodes from a time on, or from the key frame before it."""
    reason = "it may be cut off or encrypted"
    try:
        # where a container has no index, seeking leads to any frame: begin earlier if no key frame follows
        for earlier in (0.0, 10.0, seconds):
            container.seek((stream.start_time or 0) + int(max(0.0, seconds - earlier) / time_base(stream)), stream=stream)
            packets = 0
            for packet in container.demux(stream):
                packets += packet.size > 0
                for frame in packet.decode():
                    if not frame.is_corrupt:
                        return frame
            if packets == 0:
                break
    except av.FFmpegError as error:
        reason = str(error.strerror)
    raise UserError(f"{path} does not decode at {clock(seconds)} ({reason})", todo="download it again")


def _describe(container: InputContainer, stream: VideoStream, frame: av.VideoFrame, path: str | Path) -> VideoInfo:
    rate, turn = average_rate(stream, path), clockwise_turn(frame)
    frames = stream.frames - count_discarded(stream) if stream.frames else len(packet_times(path)[0])
    if turn % 90:
        raise UserError(f"{path} is to be shown turned by {turn} degrees", allowed="0, 90, 180, 270", todo="re-encode it upright")
    size = round(stream.width * (stream.sample_aspect_ratio or 1)), stream.height
    width, height = size[::-1] if turn % 180 else size
    if stream.duration:
        duration = float(stream.duration * time_base(stream))
    else:
        duration = container.duration / av.time_base if container.duration else frames / float(rate)
    return VideoInfo(
        path=str(path),
        codec=stream.codec_context.name,
        width=width,
        height=height,
        fps=float(rate),
        frames=frames,
        duration=duration,
        pixel_format=str(stream.pix_fmt),
        rotation=turn,
    )


def average_rate(stream: VideoStream, path: str | Path) -> Fraction:
    """Return the frames a second."""
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise UserError(f"{path} states no frame rate", todo="remux it with ffmpeg")
    return rate


def time_base(stream: VideoStream) -> Fraction:
    """Return the seconds of one unit of the stream's time stamps."""
    return stream.time_base or Fraction(1, av.time_base)


def clockwise_turn(frame: av.VideoFrame) -> int:
    """Return the degrees to turn the frame clockwise; files state the counter-clockwise ones."""
    return round(-frame.rotation) % 360


def count_discarded(stream: VideoStream) -> int:
    """Count frames that are stored but not shown, which a cut without re-encoding leaves."""
    return sum(entry.is_discard for entry in stream.index_entries)


def packet_times(path: str | Path) -> tuple[list[int], list[int]]:
    """Read the sorted time stamps of shown frames and of key frames; nothing is decoded."""
    shown, keys = [], []
    with open_video(path) as container:
        for packet in container.demux(video_stream(container, path)):
            stamp = packet.dts if packet.pts is None else packet.pts
            if packet.size and stamp is not None:
                shown += [] if packet.is_discard else [stamp]
                keys += [stamp] if packet.is_keyframe else []
    return sorted(shown), sorted(keys)


def missing_codecs(codecs: Iterable[str]) -> list[str]:
    """Return those of the codecs that PyAV was built without."""
    return [codec for codec in codecs if codec not in av.codecs_available]
