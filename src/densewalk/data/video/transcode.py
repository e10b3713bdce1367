"""Make the training copy of a video: small, and cheap to read anywhere.

A copy has a constant frame rate and a key frame at every multiple of its receipt's `gop`, so the place of a frame is known without
an index and at most `gop` frames are decoded for it.
"""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
from av.filter import Graph

from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write
from densewalk.core.hashing import file_sha256
from densewalk.core.progress import Progress, clock
from densewalk.data.receipts import VideoReceipt
from densewalk.data.settings import VideoSettings
from densewalk.data.video.encode import Encoder
from densewalk.data.video.inspection import FrameInspection, Range
from densewalk.data.video.orientation import FILTERS, Orientation
from densewalk.data.video.parts import DecoderState, PartEncoder, Parts, State
from densewalk.data.video.probe import VideoInfo, probe_timeline
from densewalk.data.video.seeking import PacketReader
from densewalk.data.video.streams import open_video, video_stream
from densewalk.data.video.timeline import MAX_JUMP, Timeline

REPAIR = "download or repair it, or set skip_broken: true to leave such stretches out"


def transcode(settings: VideoSettings, target: str | Path, *, threads: int | None = None) -> VideoReceipt:
    """Make the training copy of `settings.source` in one pass; it appears when complete. A pass that was stopped goes on (parts.py).

    Frames are scaled to `settings.short_side` (never up, sides even), turned upright and encoded as H.264 with key frames at
    multiples of `settings.gop`. The copy has a constant rate, the source's (`measure_pace`) or `settings.fps` if that is lower: its
    frame n shows what the source shows n / rate seconds after its first frame, to the nearest source frame. A source of constant
    rate keeps frame n as frame n; one of variable rate has frames repeated and left out, and the receipt says how many.

    Args:
        threads: of the decoder; by default all cores this process may use. The copy is the same for any number.

    Raises:
        UserError: no video, nothing usable in it, or a stretch that does not decode (unless `settings.skip_broken`).
    """
    source = Path(settings.source)
    info, timeline = probe_timeline(source, samples=not settings.skip_broken)
    if settings.usable_seconds and min(start for start, _ in settings.usable_seconds) >= info.duration:
        raise UserError(f"usable_seconds begin after the end of {source}", allowed=f"0 to {info.duration:.1f}")
    if info.jump is not None and not settings.skip_broken:
        raise UserError(f"{source} time stamps jump from {clock(info.jump)}", todo=REPAIR)
    stat = source.stat()
    with ExitStack() as kept, atomic_write(target) as temporary:
        pipeline = FramePipeline(info, timeline, settings, threads, f"transcode {source.name}")
        parts = Parts(Path(target), pipeline.rate, settings.gop, [settings.model_dump(mode="json"), stat.st_size, stat.st_mtime_ns])
        kept.enter_context(parts)
        with PartEncoder(parts, lambda path: Encoder(path, *pipeline.size, pipeline.rate, settings.crf, settings.gop)) as encoder:
            for number, frame in pipeline.numbered(parts.last_state()):
                if encoder.is_at_end(number):
                    encoder.finish_part(pipeline.state())
                encoder.write(number, frame)
                pipeline.inspect(frame)
        parts.join(temporary)
        contents = pipeline.contents()
        if not contents.usable:
            reasons = "; ".join(contents.problems)
            raise UserError(f"nothing in {source} is usable: {reasons}", todo="correct usable_seconds or choose another video")
        copy = CopiedFile(Path(target), *pipeline.size, file_sha256(temporary), temporary.stat().st_size)
    return describe_copy(settings, stat, info, copy, contents)


class CopiedFile(NamedTuple):
    """A training copy: where it lies, its size in pixels, its checksum and its length."""

    path: Path
    width: int
    height: int
    sha256: str
    bytes: int


def describe_copy(
    settings: VideoSettings, stat: os.stat_result, info: VideoInfo, copy: CopiedFile, contents: "VideoContents"
) -> VideoReceipt:
    """Make the receipt of a training copy. stat: of the source, before it was read."""
    return VideoReceipt(
        name=copy.path.stem,
        path=str(copy.path),
        source=settings.source,
        source_stamp=f"{stat.st_size} bytes, {stat.st_mtime_ns}",
        source_sha256=file_sha256(settings.source),
        source_codec=info.codec,
        source_width=info.width,
        source_height=info.height,
        source_fps=info.fps,
        source_frames=info.frames,
        codec="h264",
        width=copy.width,
        height=copy.height,
        gop=settings.gop,
        fps=contents.fps,
        frames=contents.frames,
        duration=contents.frames / contents.fps,
        usable=tuple(contents.usable),
        cuts=tuple(contents.cuts),
        problems=tuple(contents.problems),
        sha256=copy.sha256,
        bytes=copy.bytes,
        settings=settings,
    )


@dataclass(frozen=True)
class VideoContents:
    """Findings about a video, in frames of a constant rate; `problems` are sentences."""

    fps: float
    frames: int
    usable: list[Range]
    cuts: list[int]
    problems: list[str]


class FramePipeline:
    """All frames of a video as the training copy has them, and what is found on the way."""

    def __init__(self, info: VideoInfo, timeline: Timeline, settings: VideoSettings, threads: int | None, label: str) -> None:
        threads = threads or len(os.sched_getaffinity(0))
        # frame rates are broadcast ones such as 30000/1001, or averages for which a millionth does not matter
        source_rate = Fraction(info.fps).limit_denominator(1001)
        self.rate = min(source_rate, Fraction(settings.fps or info.fps).limit_denominator(1001))
        self.size = target_size(info.width, info.height, settings.short_side)
        self.decoder = _Decoder(info, timeline, settings.skip_broken, threads, label)
        self.resampler = _Resampler(self.rate, source_rate)
        self.scale = Scaler(*self.size, info.orientation, threads)
        self.inspection = FrameInspection(settings, float(self.rate))

    def frames(self) -> Iterator[av.VideoFrame]:
        """Yield frame n, which shows the moment n / rate."""
        for _, frame in self.numbered():
            self.inspect(frame)
            yield frame

    def numbered(self, state: State | None = None) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield number and frame, from a state on if there is one; each is to be inspected before the next is asked for."""
        if state is not None:
            self.resampler.count, self.resampler.repeated, self.resampler.left_out = state.resampler
            self.inspection.restore(state.arrays)
        for frame, intact in self.resampler.resample(self.decoder.frames(state.decoder if state else None)):
            if self.resampler.count >= len(self.inspection):
                self.frame, self.intact = frame, intact
                yield self.resampler.count, self.scale(frame)

    def inspect(self, frame: av.VideoFrame) -> None:
        """Look at the frame that was yielded."""
        self.inspection.add(frame, self.intact)

    def state(self) -> State | None:
        """The state before the frame that was yielded last; None where a decoder cannot go on from it."""
        decoder = self.decoder.state_before(self.frame)
        return None if decoder is None else State(decoder, self.resampler.before, self.inspection.arrays())

    def contents(self) -> VideoContents:
        """Return what has been found, after the last frame."""
        usable, idle = self.inspection.usable()
        problems = self.decoder.problems + self.resampler.problems() + idle
        return VideoContents(float(self.rate), len(self.inspection), usable, self.inspection.cuts(), problems)


def target_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Return even width and height, the short side at most `short_side`, in proportion."""
    scale = min(Fraction(1), Fraction(short_side, min(width, height)))
    return int(width * scale) // 2 * 2, int(height * scale) // 2 * 2


class _Decoder:
    """All frames of a file. Damage is an error, or is skipped and written down in `problems`."""

    def __init__(self, info: VideoInfo, timeline: Timeline, skip_broken: bool, threads: int, label: str) -> None:
        self.info, self.timeline, self.skip_broken, self.threads, self.label = info, timeline, skip_broken, threads, label
        self.decoded = 0
        self.problems = list(info.notes)
        self.step = 1 / info.fps
        self.at = -self.step  # seconds from the first frame to the last good one
        self.offset: float | None = None  # of the file's time stamps
        self.broken = self.damaged = False
        self.states: deque[tuple[av.VideoFrame, DecoderState]] = deque(maxlen=2)  # before the frames that were yielded last

    def frames(self, state: DecoderState | None = None) -> Iterator[tuple[float, av.VideoFrame, bool]]:
        """Yield seconds from the first frame, the frame, and whether none is missing before it; from a state on if there is one."""
        stated = self.info.frames + self.info.missing_frames
        if state is not None:
            self.decoded, self.at, self.offset, self.problems = state.seen, state.at, state.offset, [*state.problems]
        progress = Progress(self.label, stated, done=self.decoded)
        for frame in self._frames_of_file() if state is None or state.stamp is None else self._frames_from(state.stamp):
            before = DecoderState(None if frame is None else frame.pts, progress.done, self.at, self.offset, tuple(self.problems))
            if frame is None:
                self._note_damage("does not decode")
            else:
                if progress.done == 0:
                    self.problems += describe_oddities(frame)
                self.decoded += 1
                self._advance(self._stamp(frame, progress.done))
                if self.broken:
                    self.problems[-1] += f" to {clock(self.at)}"
                self.states.append((frame, before))
                yield self.at, frame, not self.broken
                self.broken = False
            progress.advance(f"at {clock(max(self.at, 0))}")
        progress.close()
        if (stated - progress.done) * self.step > 1:
            self._note_damage(f"is cut off: {progress.done} of {stated} frames are there; missing")
        if self.broken:
            self.problems[-1] += " to the end"
        elif (self.info.stated_duration or 0.0) - self.at - self.step > 1:
            self.problems.append(f"the video ends at {clock(self.at)}, though the file states {clock(self.info.stated_duration or 0.0)}")

    def _frames_of_file(self) -> Iterator[av.VideoFrame | None]:
        """All frames; None for what does not decode."""
        with open_video(self.info.path) as container:
            stream = video_stream(container, self.info.path)
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = self.threads
            yield from decode_packets(container.demux(stream))

    def _frames_from(self, stamp: int) -> Iterator[av.VideoFrame | None]:
        """The frames from the one with this stamp on, decoded from the key frame before it."""
        key = max((key for key in self.timeline.keys if key.stamp <= stamp), key=lambda key: key.stamp)
        reader = PacketReader(self.info.path, self.threads)
        found = False
        for frame in decode_packets(reader.packets(key)):
            found = found or (frame is not None and frame.pts == stamp)
            if found:
                yield frame
        reader.close()
        if not found:
            raise UserError(f"{self.info.path} has changed: its frame at {stamp} is gone", todo="remove the folder of its parts")

    def state_before(self, frame: av.VideoFrame) -> "DecoderState | None":
        """The state in which a frame came next; None unless frames are found by their stamps and nothing was damaged before."""
        timeline = self.timeline
        found_by_stamp = timeline.ordered and timeline.closed and timeline.doubt is None and not timeline.restarts
        state = next(state for yielded, state in self.states if yielded is frame)
        known = state.stamp is not None and any(key.stamp <= state.stamp for key in timeline.keys)
        return state if found_by_stamp and known and not self.damaged else None

    def _stamp(self, frame: av.VideoFrame, number: int) -> float | None:
        """Return the file's time of a frame, in seconds, if it states any."""
        if self.timeline.ordered:
            return frame.time
        return float(self.timeline.shown[number] * self.timeline.unit) if number < len(self.timeline.shown) else None

    def _advance(self, stamp: float | None) -> None:
        """Set `at`. A jump of the time stamps is damage; after one, or where they start over, time goes on from the frame before."""
        expected = self.at + self.step
        if stamp is None:
            stamp = expected + (self.offset or 0.0)
        if self.offset is None:
            self.offset = stamp
        elif stamp - self.offset - expected > MAX_JUMP + self.step:
            self._note_damage("time stamps jump")
            self.offset = stamp - expected
        elif stamp - self.offset < self.at:
            self.problems.append(f"time stamps start over at {clock(max(expected, 0.0))}: frames are in the order of the file")
            self.offset = stamp - expected
        self.at = stamp - self.offset

    def _note_damage(self, what: str) -> None:
        where = f"{what} from {clock(max(self.at, 0))}"
        if not self.skip_broken:
            raise UserError(f"{self.info.path} {where}", todo=REPAIR)
        if not self.broken:
            self.problems.append(where)
        self.broken = self.damaged = True


def describe_oddities(frame: av.VideoFrame) -> list[str]:
    """Return a sentence for each thing that makes a video's frames look odd."""
    found = []
    if frame.interlaced_frame:
        found.append("interlaced: moving edges are combed")
    if frame.color_trc in (16, 18):  # SMPTE ST 2084 and HLG of ITU-T H.273
        found.append("high dynamic range: converted without tone mapping, colours look dull")
    return found


def decode_packets(packets: Iterator[av.Packet]) -> Iterator[av.VideoFrame | None]:
    """Yield the frames in order; None for one that does not decode or builds on such a one."""
    lost = False
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
    """Frames at a constant rate: the nearest to n / rate, or the last if the next is far."""

    def __init__(self, rate: Fraction, source_rate: Fraction) -> None:
        self.rate, self.source_rate = rate, source_rate
        self.count = self.repeated = self.left_out = 0
        self.before = (0, 0, 0)  # count, repeated and left out, when the present frame came

    def resample(self, frames: Iterable[tuple[float, av.VideoFrame, bool]]) -> Iterator[tuple[av.VideoFrame, bool]]:
        """Yield each frame, and False where one is missing."""
        half = float(1 / self.source_rate / 2)
        held: tuple[float, av.VideoFrame] | None = None
        for seconds, frame, intact in frames:
            if held is not None:
                yield from self._repeat(held[1], seconds - half, intact)
            held = seconds, frame
        if held is not None:
            yield from self._repeat(held[1], held[0] + half, True)

    def _repeat(self, frame: av.VideoFrame, until: float, intact: bool) -> Iterator[tuple[av.VideoFrame, bool]]:
        first = self.count
        self.before = (first, self.repeated, self.left_out)
        while self.count / self.rate < until:
            yield frame, intact or self.count == first
            self.count += 1
        shown = self.count - first
        self.left_out += shown == 0
        self.repeated += max(0, shown - 1) if intact else 0

    def problems(self) -> list[str]:
        """Return a sentence if the source's rate is not constant."""
        if self.rate < self.source_rate or not (self.repeated or self.left_out):
            return []
        return [f"variable frame rate: for a constant one, {self.repeated} frames are repeated and {self.left_out} left out"]


class Scaler:
    """Frames at one size, upright, in 8-bit 4:2:0 of limited range; repeated ones scaled once."""

    def __init__(self, width: int, height: int, orientation: Orientation, threads: int) -> None:
        self.size = (height, width) if orientation.swaps_sides else (width, height)
        self.turns = FILTERS[orientation]
        self.threads = threads
        self.form: tuple[int, int, str] | None = None
        self.last: av.VideoFrame | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Return the frame at the copy's size."""
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
