"""What is in a video or in a folder of frames: length, usable parts, cuts, sharpness, and a contact sheet.

Blank and frozen parts and cuts are those that the training copy's receipt will state; of a long video they are
found on key frames, hence to within some seconds. Nothing is kept of a frame but its sharpness, apart from those on the sheet.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float

from densewalk.core.errors import UserError
from densewalk.core.progress import clock, track
from densewalk.data.frame_folders import FrameFolders
from densewalk.data.images import read_rgb
from densewalk.data.settings import VideoSettings
from densewalk.data.video.encode import RgbFrame
from densewalk.data.video.inspection import FrameInspection
from densewalk.data.video.probe import VideoInfo
from densewalk.data.video.survey import SAMPLES, Survey
from densewalk.data.video.transcode import Scaler, target_size
from densewalk.methods.dora.settings import DoraSettings
from densewalk.visualization.overlays import contact_sheet
from densewalk.visualization.panels import Panel

SHOWN, COLUMNS = 24, 6  # frames on the sheet
BLURRED = 0.25  # of the median sharpness: what is less counts as blurred
DARK = 24  # the brightest gray level (of 95 % of the pixels) in a row or column of a black bar


@dataclass
class Findings:
    """Findings about a video; `usable` are [start, end) and `cuts` moments in seconds."""

    info: VideoInfo
    looked: str
    tried: int
    decoded: int
    intervals: tuple[float, ...] | None
    usable: list[tuple[float, float]]
    cuts: list[float]
    problems: list[str]
    sharpness: float
    blurred: float
    bars: tuple[int, ...]
    warnings: Sequence[str] = ()

    @property
    def usable_seconds(self) -> float:
        """All usable parts together."""
        return sum(end - start for start, end in self.usable)

    @property
    def longest(self) -> float:
        """The longest usable part."""
        return max((end - start for start, end in self.usable), default=0.0)

    def report(self) -> str:
        """Describe the video in a few lines."""
        info, minutes = self.info, self.usable_seconds / 60
        turned = f", stored turned by {info.rotation} degrees" if info.rotation else ""
        clips, with_cut = count_clips(self, clip_seconds(DoraSettings(epochs=1, warmup_epochs=0)))
        moments = ", ".join([*map(clock, self.cuts[:8]), *(["..."] if len(self.cuts) > 8 else [])])
        lines = [
            f"{info.path}: {info.codec}, {info.width}x{info.height}, {info.pixel_format}, {info.fps:.3g} fps, {clock(info.duration)}"
            f"{turned}, {_bytes(Path(info.path)) / 2**20:.1f} MiB",
            f"looked at   {self.looked}; {self.decoded} of {self.tried} decode",
            f"frame rate  {self._rate()}",
            f"usable      {minutes:.1f} of {info.duration / 60:.1f} minutes, the longest part {self.longest / 60:.1f}",
            f"cuts        {len(self.cuts)}{f' ({moments})' if moments else ''}",
            f"blurred     {100 * self.blurred:.1f} % (variance of the Laplacian below {BLURRED:g} of the median, {self.sharpness:.3g})",
            f"clips       {clips:,} of 8 frames, 1 s apart (DoRA); {100 * with_cut:.1f} % have a cut in them",
        ]
        return "\n".join(lines + [f"found       {p}" for p in self.problems] + [f"warning     {w}" for w in self.warnings])

    def _rate(self) -> str:
        if self.intervals is None:
            return "one frame"
        least, middle, most = self.intervals
        if most - least <= 0.5 * middle:
            return "constant"
        return f"variable: {1000 * least:.0f} to {1000 * most:.0f} ms between frames, mostly {1000 * middle:.0f}"


def examine_video(path: str | Path, sheet: str | Path, *, whole: bool | None = None) -> Findings:
    """Look at a video and draw the sheet.

    Args:
        whole: look at every frame; by default of a short video only (`Survey`).

    Raises:
        UserError: not a video, cut off, encrypted, or nothing in it decodes.
    """
    survey = Survey(VideoSettings(source=str(path), skip_broken=True), whole=whole)
    statistics = _FrameStatistics(survey.info.duration)
    for seconds, frame in survey:
        statistics.add(seconds, frame)
    if not statistics.times:
        raise UserError(f"{path} has no frame that decodes", todo="check it with a player")
    last = max(survey.info.duration, survey.step)
    usable = [(start, min(end, last)) for start, end in survey.usable]
    values = np.array(statistics.sharpness)
    inside = values[[_is_inside(t, usable) for t in statistics.times]]
    median = float(np.median(inside)) if inside.size else 0.0
    key_frames = f"{survey.tried} key frames, one every {survey.step:.1f} s (--all-frames for all)"
    looked = f"all {survey.tried} frames" if survey.whole else key_frames
    findings = Findings(
        info=survey.info,
        looked=f"{looked}, sharpness of {len(values)}",
        tried=survey.tried,
        decoded=survey.decoded,
        intervals=survey.intervals,
        usable=usable,
        cuts=survey.cuts,
        problems=survey.problems,
        sharpness=median,
        blurred=float((inside < BLURRED * median).mean()) if inside.size else 0.0,
        bars=statistics.bars(),
    )
    findings.warnings = find_warnings(findings)
    _draw_sheet(sheet, findings, statistics)
    return findings


def examine_frames(folder: str | Path, sheet: str | Path, fps: float) -> Findings:
    """Look at a folder of numbered frames and draw the sheet. All of it is trained on: blank and frozen parts are only reported.

    Args:
        fps: frames a second, which no file says.

    Raises:
        UserError: no images, folders of frames in it, names without an order, frames of several sizes, or one that cannot be read.
    """
    frames = FrameFolders(folder)
    if frames.names != [""]:
        example = f"images: {{name: {{source: {folder}, layout: sequences, fps: {fps:g}}}}}"
        raise UserError(f"{folder} holds folders of frames: {', '.join(frames.names[:3])} ...", todo=f"give one, or write {example}")
    paths = frames.sequences[0]
    step = max(1, len(paths) // SAMPLES)
    height, width = read_rgb(paths[0]).shape[1:]
    info = VideoInfo(str(folder), f"folder of {len(paths)} frames", width, height, fps, len(paths), len(paths) / fps, "RGB", 0)
    scale = Scaler(*target_size(width, height, VideoSettings(source=".").short_side), info.orientation, 1)
    statistics, inspection = _FrameStatistics(info.duration), FrameInspection(VideoSettings(source="."), fps / step)
    for path, number in zip(paths[::step], track(range(0, len(paths), step), "look at frames"), strict=True):
        frame = read_rgb(path).permute(1, 2, 0).numpy()
        if frame.shape[:2] != (height, width):
            raise UserError(
                f"{path} is {frame.shape[1]}x{frame.shape[0]}, but {paths[0]} is {width}x{height}", todo="make them of one size"
            )
        statistics.add(number / fps, frame)
        inspection.add(scale(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")), intact=True)
    sharpness_of = np.array(statistics.sharpness)
    median = float(np.median(sharpness_of))
    findings = Findings(
        info=info,
        looked=f"all {len(paths)} frames" if step == 1 else f"one of every {step} frames; cuts were not looked for",
        tried=len(paths[::step]),
        decoded=len(paths[::step]),
        intervals=(1 / fps, 1 / fps, 1 / fps) if len(paths) > 1 else None,
        usable=[(0.0, info.duration)],
        cuts=[cut / fps for cut in inspection.cuts()] if step == 1 else [],
        problems=[f"{part} (of a folder nothing is left out)" for part in inspection.usable()[1]],
        sharpness=median,
        blurred=float((sharpness_of < BLURRED * median).mean()),
        bars=statistics.bars(),
    )
    findings.warnings = find_warnings(findings)
    _draw_sheet(sheet, findings, statistics)
    return findings


def _bytes(path: Path) -> int:
    """Size of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in path.iterdir()) if path.is_dir() else path.stat().st_size


class _FrameStatistics:
    """Sharpness of every frame that passes; some frames evenly apart, and their borders."""

    def __init__(self, duration: float) -> None:
        self.moments = [(i + 0.5) * duration / SHOWN for i in range(SHOWN)]
        self.times: list[float] = []
        self.sharpness: list[float] = []
        self.rows = self.columns = np.zeros(1)
        self.shown: list[tuple[int, RgbFrame]] = []

    def add(self, seconds: float, frame: RgbFrame) -> None:
        """Take the next frame."""
        gray = frame @ np.array([0.299, 0.587, 0.114], np.float32)
        self.times.append(seconds)
        self.sharpness.append(sharpness(gray))
        if self.moments and seconds >= self.moments[0]:
            self.moments = [m for m in self.moments if m > seconds]
            self.shown.append((len(self.times) - 1, frame))
            # a bar is dark in all frames
            self.rows = np.maximum(self.rows, np.percentile(gray, 95, axis=1))
            self.columns = np.maximum(self.columns, np.percentile(gray, 95, axis=0))

    def bars(self) -> tuple[int, ...]:
        """Measure black bars: top, bottom, left, right; less than a fiftieth of a side is none."""
        found = []
        for profile in (self.rows, self.rows[::-1], self.columns, self.columns[::-1]):
            bright = np.flatnonzero(profile > DARK)
            first = int(bright[0]) if bright.size else 0
            found.append(first if first >= len(profile) / 50 else 0)
        return tuple(found)


def sharpness(gray: Float[np.ndarray, "height width"]) -> float:
    """Variance of the Laplacian (Pech-Pacheco et al., ICPR 2000).

    for y, x inside the border:  L[y, x] = g[y - 1, x] + g[y + 1, x] + g[y, x - 1] + g[y, x + 1] - 4 g[y, x]
    """
    return float((gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:] - 4 * gray[1:-1, 1:-1]).var())


def _is_inside(seconds: float, parts: Sequence[tuple[float, float]]) -> bool:
    return any(start <= seconds < end for start, end in parts)


def _draw_sheet(path: str | Path, findings: Findings, statistics: _FrameStatistics) -> None:
    panels = []
    for i, frame in statistics.shown:
        title = clock(statistics.times[i])
        if not _is_inside(statistics.times[i], findings.usable):
            panels.append(Panel(frame, f"{title}  not usable", "red"))
        elif statistics.sharpness[i] < BLURRED * findings.sharpness:
            panels.append(Panel(frame, f"{title}  blurred", "darkorange"))
        else:
            panels.append(Panel(frame, title))
    if not panels:
        raise too_short(findings)
    contact_sheet(path, panels, COLUMNS, f"{Path(findings.info.path).name}: red is not usable (blank, frozen or broken), orange is blurred")


def too_short(findings: Findings) -> UserError:
    """What is said of a video without a clip."""
    return UserError(f"{findings.info.path}: no usable part has two frames", todo="choose another video")


def find_warnings(findings: Findings) -> list[str]:
    """Return a sentence for all that would make a training fail or learn less."""
    info, settings = findings.info, DoraSettings(epochs=1, warmup_epochs=0)
    span = clip_seconds(settings)
    clips, with_cut = count_clips(findings, span)
    top, bottom, left, right = findings.bars
    conditions = {
        "nothing is usable: blank, frozen or broken throughout": not findings.usable,
        f"too short for a clip of {settings.frames} frames, {settings.spacing_seconds:g} s apart ({span:g} s): take fewer frames or a "
        "smaller spacing": not clips,
        f"{clips:,} clips are fewer than a batch of {settings.batch_size}: lower batch_size": 0 < clips < settings.batch_size,
        f"{100 * with_cut:.0f} % of the clips have a cut in them, across which nothing can be tracked: give usable_seconds without "
        "cuts": with_cut > 0.1,
        f"{info.fps:.3g} frames a second: neighboring frames differ much, and no spacing below {1 / info.fps:.2g} s is possible": (
            info.fps < 10
        ),
        "portrait: crops of the usual shapes see little of it at a time": info.height > info.width,
        f"black bars of {top}, {bottom}, {left} and {right} px (top, bottom, left, right) are learned from like anything else: cut them "
        "off with a crop filter of ffmpeg": any(findings.bars),
        f"{100 * findings.blurred:.0f} % of the frames are blurred compared with the others: steady parts can be chosen with "
        "usable_seconds": findings.blurred > 0.2,
        f"{findings.tried - findings.decoded} frames do not decode: skip_broken leaves them out": findings.decoded < findings.tried,
    }
    return [sentence for sentence, holds in conditions.items() if holds]


def count_clips(findings: Findings, span: float) -> tuple[int, float]:
    """Count the clips of `span` seconds, and the share of them that has a cut inside.

    for each usable part and start frame t with t + span < end:  a cut c counts if t < c <= t + span
    """
    clips = with_cut = 0
    for start, end in findings.usable:
        starts = np.arange(max(0, round((end - start - span) * findings.info.fps))) / findings.info.fps + start
        clips += len(starts)
        hit = np.zeros(len(starts), bool)
        for cut in findings.cuts:
            hit |= (starts < cut) & (cut <= starts + span)
        with_cut += int(hit.sum())
    return clips, with_cut / clips if clips else 0.0


def clip_seconds(settings: DoraSettings) -> float:
    """Seconds from a clip's first frame to its last."""
    return (settings.frames - 1) * settings.spacing_seconds
