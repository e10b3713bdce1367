"""When the frames of a video are shown, by the time stamps of its packets. Nothing is decoded.

Sequential decoding is the truth: frame n of a video is the n-th frame that decoding from the beginning returns. A timeline says
when it is shown, and whether frames can be found by their time stamps at all (`doubt`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream
from jaxtyping import Int

from densewalk.core.errors import UserError
from densewalk.data.video.streams import open_video, video_stream

# a jump of the time stamps by more seconds than this is damage, not a variable frame rate
MAX_JUMP = 10.0
# rates that cameras, films and screens have
WHOLE_RATES = [*map(Fraction, (5, 10, 12, 15, 20, 24, 25, 30, 48, 50, 60, 90, 100, 120, 144, 240))]
USUAL_RATES = [*WHOLE_RATES, Fraction(25, 2), *(Fraction(1000 * n, 1001) for n in (24, 30, 48, 60, 120, 240))]
VP8 = ("vp8", "libvpx")


@dataclass(frozen=True)
class Key:
    """A key frame's packet: its stamps of showing and of decoding."""

    stamp: int
    dts: int | None


@dataclass(frozen=True)
class Timeline:
    """The moments at which frames are shown.

    unit: seconds of one unit of the stamps. shown: the frames' stamps in the order of showing. They ascend, but for the places where
    the file's stamps start over (`restarts` times). keys: in ascending order. ordered: False where packets do not say the order of
    showing, as in H.264 with B-frames in AVI: the n-th decoded frame is then shown at the n-th stamp. closed: no frame before a key
    frame needs what comes after it. doubt: why frames cannot be found by their stamps; None if they can.
    """

    unit: Fraction
    shown: Sequence[int]
    keys: Sequence[Key]
    restarts: int = 0
    ordered: bool = True
    closed: bool = True
    discards: int = 0
    doubt: str | None = None

    def starting_at(self, stamp: int | None) -> "Timeline":
        """Leave out what comes before the first frame that decodes: an open GOP's, or the rest of one that was cut."""
        if stamp is None or not self.ordered or self.restarts or stamp not in self.shown:
            return self
        return replace(self, shown=self.shown[self.shown.index(stamp) :])

    def is_even(self) -> bool:
        """Whether all frames are equally far from each other, up to the rounding of stamps."""
        return len(self.shown) > 1 and bool(np.ptp(np.diff(self.shown)) <= 1)

    def seconds(self, stamp: int) -> float:
        """Seconds from the first frame to a stamp."""
        return float((stamp - self.shown[0]) * self.unit)


@dataclass(frozen=True)
class Pace:
    """Frames a second, and seconds from the first frame to the end of the last, without jumps; seconds before the first jump."""

    rate: Fraction
    duration: float
    jump: float | None = None


def scan_packets(path: str | Path) -> Timeline:
    """Read the time stamps of all packets."""
    stamps: list[tuple[int, bool]] = []
    decoding: list[tuple[int, int]] = []
    keys: list[tuple[int, Key]] = []
    discards, missing = 0, 0
    with open_video(path) as container:
        stream = video_stream(container, path)
        hides_frames = stream.codec_context.name in VP8
        for packet in container.demux(stream):
            if not packet.size or (hides_frames and not _is_shown_vp8(packet)):
                continue
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is None:
                missing += 1
                continue
            if packet.is_keyframe:
                keys.append((len(stamps), Key(stamp, packet.dts)))
            discards += packet.is_discard
            stamps.append((stamp, not packet.is_discard))
            if packet.dts is not None:
                decoding.append((len(stamps) - 1, packet.dts))
        unit, reorders = time_base(stream), bool(stream.codec_context.has_b_frames)
    return _arrange(unit, reorders, stamps, decoding, keys, discards, missing)


def _arrange(
    unit: Fraction,
    reorders: bool,
    stamps: list[tuple[int, bool]],
    decoding: list[tuple[int, int]],
    keys: list[tuple[int, Key]],
    discards: int,
    missing: int,
) -> Timeline:
    """Sort what the packets say, part by part where the stamps start over."""
    values = np.array([stamp for stamp, _ in stamps], np.int64)
    visible = np.array([is_shown for _, is_shown in stamps], bool)
    back = [place for (_, before), (place, now) in pairwise(decoding) if now < before]
    edges = [0, *back, len(values)]
    parts = [np.sort(values[a:b][visible[a:b]]) for a, b in pairwise(edges)]
    shown = np.concatenate(parts) if parts else values
    if missing and len(shown):  # before the first stamp, as negative ones are lost in Matroska
        step = int(np.median(np.diff(shown))) if len(shown) > 1 else 1
        shown = np.concatenate([shown[0] - step * np.arange(missing, 0, -1), shown])
    restarts = len(edges) - 2
    # stamps in the order of decoding, though the codec reorders
    ordered = not missing and not (reorders and len(values) > 1 and bool(np.all(np.diff(values) > 0)))
    doubt = None
    if missing:
        doubt = f"{missing} of its frames have no time stamp"
    elif restarts:
        doubt = "its time stamps start over"
    elif not ordered:
        doubt = "its time stamps do not say in which order frames are shown"
    elif len(np.unique(shown)) < len(shown):
        doubt = "several of its frames have one time stamp"
    before = np.maximum.accumulate(np.concatenate([[np.iinfo(np.int64).min], values]))
    after = np.minimum.accumulate(np.concatenate([values, [np.iinfo(np.int64).max]])[::-1])[::-1]
    closed = all(before[place] < key.stamp <= after[place] for place, key in keys)
    return Timeline(
        unit=unit,
        shown=shown.tolist(),
        keys=sorted((key for _, key in keys), key=lambda key: key.stamp),
        restarts=restarts,
        ordered=ordered,
        closed=closed,
        discards=discards,
        doubt=doubt,
    )


def read_index(stream: VideoStream) -> Timeline | None:
    """Return the timeline that an MP4 or MOV file's index states, by times of decoding; None if there is no whole index.

    It has the same number of frames, and the same times between them, as the packets have, but no key frames. Nothing is read from
    the disk.
    """
    if not stream.container.format.name.startswith("mov") or not stream.frames or not len(stream.index_entries):
        return None
    shown = sorted(entry.timestamp for entry in stream.index_entries if not entry.is_discard)
    return Timeline(time_base(stream), shown, (), discards=len(stream.index_entries) - len(shown))


def begins_with(path: str | Path, stamp: int | None) -> bool:
    """Whether no frame that is to be shown comes before this stamp among the first packets."""
    with open_video(path) as container:
        packets = islice(container.demux(video_stream(container, path)), 64)
        return stamp is not None and all(p.pts is None or p.pts >= stamp or p.is_discard for p in packets)


def _is_shown_vp8(packet: av.Packet) -> bool:
    """Read the bit show_frame of a VP8 frame's header (RFC 6386, 9.1): a reference frame may be stored and never shown."""
    return bool(memoryview(packet)[0] >> 4 & 1)


def time_base(stream: VideoStream) -> Fraction:
    """Return the seconds of one unit of the stream's time stamps."""
    return stream.time_base or Fraction(1, av.time_base)


def stated_rates(stream: VideoStream) -> list[Fraction]:
    """Return the frame rates that the file states or FFmpeg guesses."""
    return [rate for rate in (stream.average_rate, stream.guessed_rate, stream.base_rate) if rate]


def measure_pace(timeline: Timeline, stated: Iterable[Fraction], path: str | Path) -> Pace:
    """Find the frame rate and the duration from the stamps.

    A rate is constant if every stamp is a whole number of steps from the first, up to the rounding of stamps: the stated rate, a usual
    one, or the measured one, whichever fits first. Missing frames do not change it. Stamps that stay within half a step of their
    place have the measured rate, so that each frame keeps its place. All others have the measured rate or, within 5 %, a usual whole one.

    Raises:
        UserError: the file has one frame and states no rate, or all its stamps are equal.
    """
    stated = list(stated)
    steps = np.diff(np.array(timeline.shown, np.int64))
    positive = steps[steps > 0]
    if len(positive) == 0:
        if not stated or len(timeline.shown) != 1:
            raise UserError(f"{path} states no frame rate, and its time stamps say none", todo="re-encode it with ffmpeg")
        return Pace(stated[0], float(1 / stated[0]))
    usual = float(np.median(positive))
    is_jump = np.greater(steps, MAX_JUMP / float(timeline.unit) + 2 * usual)
    whole = (steps >= 0) & ~is_jump
    before = steps[: int(np.argmax(is_jump))].sum() if is_jump.any() else 0
    rate = _fit_rate(steps[whole], timeline.unit, stated)
    duration = float(int(steps[whole].sum()) * timeline.unit + (int((~whole).sum()) + 1) / rate)
    return Pace(rate, duration, float(int(before) * timeline.unit) if is_jump.any() else None)


def _fit_rate(steps: Int[np.ndarray, " steps"], unit: Fraction, stated: list[Fraction]) -> Fraction:
    """Return the rate that fits best the times between neighboring frames."""
    # where the time is twice the usual one, a frame is missing; less than that is jitter
    usual = np.median(steps[steps > 0])
    usual = steps[(steps > 0) & (steps <= 1.75 * usual)].mean()
    places = np.cumsum(np.where(steps > 1.75 * usual, np.round(steps / usual), np.sign(steps)).astype(np.int64))
    stamps = np.cumsum(steps)
    step = stamps[-1] / places[-1]
    measured = (1 / (Fraction(int(stamps[-1]), int(places[-1])) * unit)).limit_denominator(1001)
    for rate in [*stated, *USUAL_RATES, measured]:
        expected = 1 / float(rate * unit)
        # both ends of a step are rounded to whole units
        if abs(expected / step - 1) < 0.01 and np.abs(stamps - places * expected).max() <= 1.01:
            return rate
    if np.abs(stamps - places * step).max() < 0.45 * step:
        return measured
    nearest = min(WHOLE_RATES, key=lambda rate: abs(rate / measured - 1))
    return nearest if abs(nearest / measured - 1) < 0.05 else measured
