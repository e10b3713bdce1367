"""Open a video file and choose its stream of moving images."""

import gc
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import av
from av.container import InputContainer
from av.format import Flags
from av.stream import Disposition
from av.video.stream import VideoStream

from densewalk.core.errors import UserError

# A closed file waits for Python's collector, with its decoder's threads, because PyAV's objects refer to each other. A forked process has
# none of these threads: its collector would wait for their end forever. What a process holds when it forks is therefore not collected in
# the other one.
os.register_at_fork(before=gc.freeze, after_in_parent=gc.unfreeze)

# streams of single images: an album's cover, thumbnails of chapters
IMAGES = Disposition.attached_pic | Disposition.timed_thumbnails


@contextmanager
def open_video(path: str | Path) -> Iterator[InputContainer]:
    """Open a video file's container; it is closed after the block."""
    with open_container(path) as container:
        yield container


def open_container(path: str | Path) -> InputContainer:
    """Open a video file's container, which the caller closes.

    Raises:
        UserError: the file does not exist, is a folder, or is no container that FFmpeg reads.
    """
    if Path(path).is_dir():
        todo = "name a file; `densewalk add-video FOLDER` takes a folder of frames"
        raise UserError(f"{path} is a folder, not a video", allowed="a video file", todo=todo)
    if not Path(path).is_file():
        raise UserError(f"video {path} does not exist", todo="correct the path or download it")
    try:
        return av.open(str(path))
    except av.FFmpegError as error:
        found = f"{path} cannot be opened as a video ({error.strerror})"
        raise UserError(found, todo="check it with a player; download it again if it is cut off") from error


def video_stream(container: InputContainer, path: str | Path) -> VideoStream:
    """Return the stream of moving images; of several the one with the largest frames, and the first of equals.

    Raises:
        UserError: there is none, it is encrypted or of an unknown codec, or the file has no time stamps.
    """
    candidates = moving_streams(container)
    # text and images open as videos of their own kind
    no_video = container.format.name in ("tty", "image2") or container.format.name.endswith("_pipe")
    if no_video or not candidates:
        raise UserError(f"{path} is no video ({container.format.long_name})", allowed="any file with a video stream that FFmpeg reads")
    if Flags.no_timestamps in Flags(container.format.flags):
        raise UserError(
            f"{path} is a raw stream ({container.format.long_name}) without a container: nothing in it says when a frame is shown",
            allowed="MP4, Matroska, WebM, MOV, AVI, MPEG-TS and other containers",
            todo=f"put it into one, with its own frame rate: ffmpeg -framerate 25 -i {shlex.quote(str(path))} -crf 15 video.mp4",
        )
    readable = [stream for stream in candidates if stream.codec_context is not None]
    if not readable:
        raise UserError(f"{path} is encrypted, or in a codec that FFmpeg does not know", todo="convert it with what can play it")
    if len(readable) == 1:
        return readable[0]
    stat = Path(path).stat()
    moving = _moving_indices(str(path), stat.st_size, stat.st_mtime_ns)
    return max([s for s in readable if s.index in moving] or readable, key=lambda s: (s.width * s.height, -s.index))


def moving_streams(container: InputContainer) -> list[VideoStream]:
    """List the video streams, without covers and thumbnails that say so."""
    return [stream for stream in container.streams.video if not stream.disposition & IMAGES]


@lru_cache(maxsize=64)
def _moving_indices(path: str, _size: int, _time: int) -> frozenset[int]:
    """Numbers of the video streams with more than one frame."""
    with open_video(path) as container:
        streams = moving_streams(container)
        counts = {stream.index: 0 for stream in streams}
        for packet in container.demux(streams):
            counts[packet.stream_index] += packet.size > 0
            if min(counts.values()) > 1:
                break
    return frozenset(index for index, count in counts.items() if count > 1)


def describe_choice(container: InputContainer, chosen: VideoStream) -> tuple[str, ...]:
    """Return a sentence if the file has several video streams."""
    others = [stream for stream in moving_streams(container) if stream.index != chosen.index]
    if not others:
        return ()
    return (f"{len(others) + 1} video streams: {_label(chosen)} is read, not {', '.join(map(_label, others))}",)


def _label(stream: VideoStream) -> str:
    if stream.codec_context is None:
        return f"number {stream.index} (unknown codec)"
    return f"number {stream.index} ({stream.codec_context.name}, {stream.width}x{stream.height})"
