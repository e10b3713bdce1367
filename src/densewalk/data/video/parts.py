"""A training copy in parts, each encoded by itself, so that a transcoding that was stopped goes on after its last whole part.

results/data/.NAME.mp4.parts/000.mp4, 000.npz, 001.mp4, ...     removed when the copy is complete

Stopped or not, the copy consists of the same parts: its bytes are the same. Each part has an encoder of its own, because an encoder's
state cannot be kept. A copy of one part has the bytes that one encoder for all would give it.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np

from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write, read_json, write_json
from densewalk.core.hashing import config_hash
from densewalk.core.progress import log
from densewalk.data.video.encode import ENCODER_THREADS, Encoder

SECONDS = 600.0  # of a part, up to whole groups of pictures


@dataclass(frozen=True)
class DecoderState:
    """What is known of a source before the frame with this stamp. seen: frames before it. at, offset: seconds (see transcode.py)."""

    stamp: int | None
    seen: int
    at: float
    offset: float | None
    problems: tuple[str, ...]


@dataclass(frozen=True)
class State:
    """What is known between two frames of the copy. resampler: its counts before the source's frame that is shown next."""

    decoder: DecoderState
    resampler: tuple[int, int, int]
    arrays: dict[str, np.ndarray]


class Parts:
    """The parts of a copy. One is whole if there is a state behind it.

    Args:
        made_from: everything that decides about the copy; parts of something else are removed.
    """

    def __init__(self, target: Path, rate: Fraction, gop: int, made_from: Any) -> None:
        self.folder = target.with_name(f".{target.name}.parts")
        self.rate, self.length = rate, max(1, round(SECONDS * float(rate) / gop)) * gop  # frames of a part
        key, stamp = config_hash({"made_from": made_from, "part": self.length, "threads": ENCODER_THREADS}), self.folder / "made_from.json"
        if not stamp.is_file() or read_json(stamp) != key:
            self.remove()
            write_json(stamp, key)

    def file(self, number: int) -> Path:
        """The file of a part."""
        return self.folder / f"{number:03d}.mp4"

    def last_state(self) -> State | None:
        """The state behind the last whole part; None at the beginning."""
        files = sorted(self.folder.glob("*.npz"))
        if not files:
            return None
        log.info("%s: goes on after %d parts", self.folder, len(files))
        with np.load(files[-1]) as file:
            content = json.loads(str(file["content"]))
            decoder = DecoderState(**{**content["decoder"], "problems": tuple(content["decoder"]["problems"])})
            return State(decoder, tuple(content["resampler"]), {name: file[name] for name in file.files if name != "content"})

    def keep(self, number: int, state: State) -> None:
        """Write the state behind a part, which is whole."""
        content = json.dumps({"decoder": asdict(state.decoder), "resampler": state.resampler})
        with atomic_write(self.file(number).with_suffix(".npz")) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, content=np.array(content), **state.arrays)

    def join(self, target: Path) -> None:
        """Write all parts as one file; a single one becomes it."""
        files = sorted(self.folder.glob("*.mp4"))
        if len(files) == 1:
            files[0].replace(target)
            return
        with av.open(str(target), "w", format="mp4") as joined:
            stream = None
            for number, path in enumerate(files):
                with av.open(str(path)) as part:
                    source = part.streams.video[0]
                    stream = stream or joined.add_stream_from_template(source)
                    assert source.time_base is not None
                    shift = int(number * self.length / self.rate / source.time_base)
                    for packet in part.demux(source):
                        if packet.pts is not None and packet.dts is not None:
                            packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
                            joined.mux(packet)

    def remove(self) -> None:
        """Remove all of them."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> "Parts":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Nothing is left of a copy that is complete, or of a video that cannot be copied as it is."""
        if kind is None or issubclass(kind, UserError):
            self.remove()


class PartEncoder:
    """Writes the frames of a copy to its parts. open_encoder: for the file of a part."""

    def __init__(self, parts: Parts, open_encoder: Callable[[Path], Encoder]) -> None:
        self.parts, self.open_encoder = parts, open_encoder
        self.encoder: Encoder | None = None
        self.number = 0

    def is_at_end(self, number: int) -> bool:
        """True if frame `number` begins another part than the one that is open."""
        return self.encoder is not None and number % self.parts.length == 0

    def finish_part(self, state: State | None) -> None:
        """Close the part, and keep the state behind it if a transcoding can go on from it."""
        self._close(None)
        if state is not None:
            self.parts.keep(self.number, state)

    def write(self, number: int, frame: av.VideoFrame) -> None:
        """Append frame `number` of the copy."""
        if self.encoder is None:
            self.number = number // self.parts.length
            self.encoder = self.open_encoder(self.parts.file(self.number))
        self.encoder.write(frame)

    def _close(self, kind: type[BaseException] | None) -> None:
        if self.encoder is not None:
            self.encoder.__exit__(kind, None, None)
            self.encoder = None

    def __enter__(self) -> "PartEncoder":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close(kind)
