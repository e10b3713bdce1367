"""Read clips from a training copy, or any frames from any video.

PyAV reads training copies: it opens them at once and needs less than half of decord's CPU time for frames a second apart
(benchmarks/video.py). Any other file is read by decord, and by PyAV where decord cannot (AV1, for one). Both return the same frames
and the same colors, which the tests pin.
"""

import logging
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import av
import cv2  # noqa: F401  before decord, whose zlib would else take the place of OpenCV's: OpenCV then reads no PNG (returns None)
import decord
import numpy as np
import torch
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from densewalk.core.errors import UserError
from densewalk.data.receipts import VideoReceipt
from densewalk.data.video.probe import (
    average_rate,
    clockwise_turn,
    count_discarded,
    first_frame,
    open_video,
    packet_times,
    time_base,
    video_stream,
)

log = logging.getLogger("densewalk")

Frames = UInt8[np.ndarray, "frames height width 3"]


class ClipReader:
    """Frames of a video by number, exactly those asked for, whatever the codec.

    The file is opened when the first frame is read, once per process: a reader may be copied to worker processes.

    Args:
        gop: of a training copy; None for any other file.
        reader: `auto` is PyAV for a training copy, for AV1 and for a file cut without re-encoding; else decord, with PyAV where
            decord fails. The environment variable DENSEWALK_VIDEO_READER takes the place of `auto`.
    """

    def __init__(self, path: str | Path, *, gop: int | None = None, reader: Literal["auto", "decord", "pyav"] = "auto") -> None:
        self.path, self.gop, self.reader = Path(path), gop, reader
        self._file: _DecordFile | _PyAVFile | None = None
        self._process = 0

    def __len__(self) -> int:
        return len(self._opened())

    def read(self, indices: Sequence[int]) -> UInt8[Tensor, "frames 3 height width"]:
        """Read frames in the order asked for, each decoded once; RGB, channels last in memory."""
        total = len(self)
        wrong = [i for i in indices if not 0 <= i < total]
        if wrong or len(indices) == 0:
            raise IndexError(f"{self.path} has frames 0 to {total - 1}, asked for {wrong or 'none'}")
        wanted, order = np.unique(np.asarray(indices), return_inverse=True)
        try:
            frames = self._opened().read(wanted.tolist())
        except decord.DECORDError as error:
            log.warning("decord fails on %s (%s): PyAV takes over", self.path, _first_line(error))
            self._file = _PyAVFile(self.path, self.gop)
            frames = self._file.read(wanted.tolist())
        if len(wanted) < len(indices) or np.any(np.diff(order) < 0):
            frames = frames[order]
        return torch.from_numpy(frames).permute(0, 3, 1, 2)

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
        with open_video(self.path) as container:
            stream = video_stream(container, self.path)
            if turned := clockwise_turn(first_frame(container, stream, self.path, 0.0)):
                raise UserError(f"{self.path} is stored turned by {turned} degrees", todo="read its training copy instead")
            # decord counts frames that are not to be shown, and complains on stderr about AV1
            prefers_pyav = self.gop is not None or "av1" in stream.codec_context.name or count_discarded(stream) > 0
        if reader == "pyav" or (reader == "auto" and prefers_pyav):
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
        """Read frames of ascending numbers."""
        frames = self.file.get_batch(wanted).asnumpy()
        # else decord's thread goes on decoding without bound (https://github.com/dmlc/decord/issues/208)
        self.file.seek(0)
        return frames


class _PyAVFile:
    def __init__(self, path: Path, gop: int | None) -> None:
        self.path = path
        self.container = av.open(str(path))
        self.stream = video_stream(self.container, path)
        self.stream.codec_context.thread_count = 1
        self.reformatter = VideoReformatter()
        self.times, self.keys = packet_times(path) if gop is None else self._regular_times(gop)
        self.position: int | None = None  # time stamp of the last decoded frame
        self.frames: Iterator[av.VideoFrame] = iter(())

    def _regular_times(self, gop: int) -> tuple[Sequence[int], Sequence[int]]:
        """Time stamps of the frames and key frames of a training copy, without its index."""
        step = 1 / (average_rate(self.stream, self.path) * time_base(self.stream))
        if step.denominator != 1:
            raise UserError(f"{self.path} has no constant frame rate", todo="delete it, so that it is made again")
        end = self.stream.frames * int(step)
        return range(0, end, int(step)), range(0, end, int(step) * gop)

    def __len__(self) -> int:
        return len(self.times)

    def read(self, wanted: list[int]) -> Frames:
        """Read frames of ascending numbers."""
        return np.stack([self.reformatter.reformat(self._frame(number), format="rgb24").to_ndarray() for number in wanted])

    def _frame(self, number: int) -> av.VideoFrame:
        """Decode on from here if no key frame lies between, else from the last one before."""
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
        """Return the frame with this time stamp, or None if the next ones do not lead to it."""
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
    """All clips of a training copy, one for each frame from which it lies in one usable part.

    `[i]` is uint8 [frames, 3, height, width] RGB. A clip may hold a scene cut; the receipt's `cuts` say where they are. Where a
    curation has chosen frames, clips start at those only.

    Args:
        frames: per clip. spacing_seconds: between two frames of a clip, made a whole number of frames (`stride`).

    Raises:
        UserError: the file is missing or another one, or there is no clip.
    """

    def __init__(self, receipt: VideoReceipt, frames: int, spacing_seconds: float) -> None:
        path, self.fps, self.total_frames, self.frames = Path(receipt.path), receipt.fps, receipt.frames, frames
        if not path.is_file():
            raise UserError(f"video {path} does not exist", todo="delete its receipt, so that both are made again")
        if path.stat().st_size != receipt.bytes:
            raise UserError(f"{path} is not the file that its receipt describes", todo="delete both, so that they are made again")
        self.stride = round(spacing_seconds * self.fps)
        if self.stride < 1 and frames > 1:
            raise UserError(f"{path} has a frame every {1 / self.fps:g} s: {spacing_seconds:g} s between frames is less")
        self.reader = ClipReader(path, gop=receipt.gop)
        span = (frames - 1) * self.stride + 1
        seconds, longest = span / self.fps, max((end - start for start, end in receipt.usable), default=0)
        if longest < span:
            raise UserError(
                f"{path}: a clip of {frames} frames, {spacing_seconds:g} s apart, takes {seconds:.1f} s; "
                f"the longest usable part has {longest / self.fps:.1f} s",
                todo="take fewer frames, a smaller spacing or a longer video",
            )
        starts = np.concatenate([np.arange(start, end - span + 1, dtype=np.int32) for start, end in receipt.usable])
        self.starts = starts if receipt.kept is None else starts[np.isin(starts, receipt.kept)]
        if not len(self.starts):
            raise UserError(f"{path}: no frame that the curation keeps begins a clip of {seconds:.1f} s", todo="keep more of them")

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> UInt8[Tensor, "frames 3 height width"]:
        return self.read(self.frame_indices(index))

    def frame_indices(self, index: int) -> list[int]:
        """Return the frames that clip number `index` is made of."""
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        return [int(self.starts[index]) + n * self.stride for n in range(self.frames)]

    def read(self, frame_indices: Sequence[int]) -> UInt8[Tensor, "frames 3 height width"]:
        """Read any frames of the copy, usable or not."""
        return self.reader.read(frame_indices)
