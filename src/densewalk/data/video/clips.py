"""Read clips from a training copy, or any frames from any video.

PyAV reads training copies: it opens them at once and needs less than half of decord's CPU time for frames a second apart
(benchmarks/video.py). Any other file is read by decord where it returns the frames that sequential decoding returns, and else by PyAV
(`readers.py`). Both return the same frames and the same colors, which the tests pin.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from densewalk.core.errors import UserError
from densewalk.data.receipts import VideoReceipt
from densewalk.data.storage.staging import local_copy
from densewalk.data.video.readers import DECORD_ERRORS, DecordFile, FrameFile, open_copy, open_verified

log = logging.getLogger("densewalk")


class ClipReader:
    """Frames of a video by number, exactly those asked for, whatever the codec.

    The file is opened when the first frame is read, once per process: a reader may be copied to worker processes.

    Args:
        gop: of a training copy; None for any other file.
        reader: `auto` is PyAV for a training copy; else decord where it is exact and PyAV where it is not, as with `decord`.
            The environment variable DENSEWALK_VIDEO_READER takes the place of `auto`.
    """

    def __init__(self, path: str | Path, *, gop: int | None = None, reader: Literal["auto", "decord", "pyav"] = "auto") -> None:
        self.path, self.gop, self.reader = Path(path), gop, reader
        self._file: DecordFile | FrameFile | None = None
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
        except DECORD_ERRORS as error:
            log.warning("decord fails on %s (%s): PyAV takes over", self.path, str(error).strip().splitlines()[-1])
            self._file = self._open("pyav")
            frames = self._file.read(wanted.tolist())
        if len(wanted) < len(indices) or np.any(np.diff(order) < 0):
            frames = frames[order]
        return torch.from_numpy(frames).permute(0, 3, 1, 2)

    def _opened(self) -> "DecordFile | FrameFile":
        if self._file is None or self._process != os.getpid():
            if self._file is not None:
                _INHERITED.append(self._file)
            self._file, self._process = self._choose(), os.getpid()
        return self._file

    def _choose(self) -> "DecordFile | FrameFile":
        reader = os.environ.get("DENSEWALK_VIDEO_READER", "auto") if self.reader == "auto" else self.reader
        if reader not in ("auto", "decord", "pyav"):
            raise UserError(f"DENSEWALK_VIDEO_READER is '{reader}'", allowed="auto, decord, pyav")
        return self._open(reader)

    def _open(self, reader: str) -> "DecordFile | FrameFile":
        if self.gop is None:
            return open_verified(self.path, decord_wanted=reader != "pyav", decord_required=reader == "decord")
        copy = open_copy(self.path, self.gop)
        return DecordFile(self.path) if reader == "decord" else copy

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}


# Files that a forked process has inherited: it must neither use them, the position being shared with its parent, nor close
# them, since the threads that decord would wait for exist in the parent only.
_INHERITED: list[Any] = []


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
        path = local_copy(receipt.path, receipt.sha256)
        self.fps, self.total_frames, self.frames = receipt.fps, receipt.frames, frames
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
