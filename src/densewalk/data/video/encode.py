"""Encode frames as a video."""

from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from densewalk.core.files import atomic_write

RgbFrame = UInt8[np.ndarray, "height width 3"]
# the encoder's threads decide about its bits: a fixed number gives the same training copy on every machine
ENCODER_THREADS = 4


def write_video(path: str | Path, frames: Iterable[RgbFrame], fps: float, *, crf: int = 18, gop: int = 12) -> None:
    """Encode RGB frames of one even size to H.264 (mp4); the file appears when it is complete.

    Args:
        crf: x264's constant rate factor, 0 (lossless) to 51. gop: distance of key frames.

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
    with atomic_write(path) as temporary, Encoder(temporary, width, height, Fraction(fps).limit_denominator(1001), crf, gop) as encoder:
        for array in chain([first], frames):
            if array.shape != first.shape:
                raise ValueError(f"frames of {path} differ in size: {array.shape[:2]} after {first.shape[:2]}")
            encoder.write(reformatter.reformat(av.VideoFrame.from_ndarray(array, format="rgb24"), format="yuv420p"))


class Encoder:
    """H.264 whose single frames are cheap to read.

    Short closed GOPs at fixed places, no B-frames, no CABAC, no deblocking. On 480p street scenes that halves the CPU time of a
    far frame and makes the file 14 % larger (measured with GOP 12, CRF 18).
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
        """Append one frame, yuv420p of the right size; the first one's color space is the file's."""
        if self.count == 0:
            context = self.stream.codec_context
            context.colorspace, context.color_range = frame.colorspace, frame.color_range
            context.color_primaries, context.color_trc = frame.color_primaries, frame.color_trc
        frame.pts, frame.time_base, frame.pict_type = self.count, self.step, PictureType.NONE
        self.container.mux(self.stream.encode(frame))
        self.count += 1

    def __enter__(self) -> "Encoder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.container.mux(self.stream.encode(None))
        self.container.close()
