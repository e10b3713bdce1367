"""A file of point tracks of a video, or of a folder of sequences: safetensors, so that reading it runs no code.

tensors      points    float [tracks, columns, 2]    x, y in pixels of the video's frames, the middle of whose first pixel is 0.5, 0.5
             visible   bool [tracks, columns]        false where a point is hidden or outside; then its place is the tracker's guess, or NaN
             first     integer [tracks]              number of the frame, from 0, that a track's column 0 is
             sequence  integer [tracks]              number of a folder's sequence, in the order of the names; not needed for a video
metadata     tracks    JSON, the fields of `TracksHeader`

write_tracks("walk.safetensors", Tracks(TracksHeader(video=..., frames=7200, width=854, height=480, step=6), points, visible, first))
tracks = read_tracks("walk.safetensors")
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Int64
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from densewalk.core.errors import UserError
from densewalk.core.files import atomic_write
from densewalk.core.text.complaints import complaints
from densewalk.data.receipts import Positive, Sha256

REMEDY = "write it by densewalk.data.video.tracks.write_tracks"
KINDS = {"points": "f", "visible": "b", "first": "iu", "sequence": "iu"}  # of the tensors' numbers, as numpy names them


class TracksHeader(BaseModel):
    """Which video the tracks are of."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Literal["densewalk point tracks"] = "densewalk point tracks"
    video: Sha256
    """The video's content as data/contents.py has it: the sha256 of the original file, of a folder that of all names and sizes."""
    frames: Positive
    """Frames of the training copy, by which `first` counts; of a folder, those of all its sequences."""
    width: Positive
    """Pixels that x counts, of which a frame may have another number; they are stretched."""
    height: Positive
    """Pixels that y counts."""
    step: Positive = Field(default=1)
    """Frames from one column to the next."""


@dataclass(frozen=True)
class Tracks:
    """Tracks as the file holds them.

    Raises:
        UserError: shapes that differ, no visible point, or a visible one without a place.
    """

    header: TracksHeader
    points: Float32[np.ndarray, "tracks columns 2"]
    visible: Bool[np.ndarray, "tracks columns"]
    first: Int64[np.ndarray, " tracks"]
    sequence: Int64[np.ndarray, " tracks"] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        if not self.sequence.size:
            object.__setattr__(self, "sequence", np.zeros_like(self.first))
        count = self.visible.shape[:1]
        if self.visible.ndim != 2 or self.points.shape != (*self.visible.shape, 2) or {self.first.shape, self.sequence.shape} != {count}:
            shapes = ", ".join(f"{name} {list(getattr(self, name).shape)}" for name in KINDS)
            raise UserError(
                f"tracks with {shapes}", allowed="points [tracks, columns, 2], visible [tracks, columns], first and sequence [tracks]"
            )
        if not self.visible.any():
            raise UserError(f"no point of the {len(self.first)} tracks is visible in any frame")
        lost = self.visible & ~np.isfinite(self.points).all(axis=2)
        if lost.any():
            track, column = np.argwhere(lost)[0].tolist()
            raise UserError(f"points: track {track} is visible in column {column}, but has no finite place there")
        if (negative := np.flatnonzero(np.minimum(self.first, self.sequence) < 0)).size:
            raise UserError(f"first or sequence of track {negative[0]} is below 0")


def write_tracks(path: str | Path, tracks: Tracks) -> None:
    """Write tracks; the file appears when it is complete, and equal tracks give equal files."""
    tensors = {name: np.ascontiguousarray(getattr(tracks, name)) for name in KINDS}
    with atomic_write(path) as temporary:
        save_file(tensors, temporary, metadata={"tracks": tracks.header.model_dump_json()})


def read_tracks(path: str | Path) -> Tracks:
    """Read a file of tracks.

    Raises:
        UserError: there is none, or it is something else, damaged or without a visible point; the message names the tensor or the key.
    """
    try:
        with safe_open(path, "numpy") as file:
            header = (file.metadata() or {}).get("tracks")
            tensors = {name: file.get_tensor(name) for name in file.keys() if name in KINDS}  # noqa: SIM118  no mapping
    except (OSError, SafetensorError, TypeError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise UserError(f"tracks {path} cannot be read: {reason}", todo=f"correct the path, or {REMEDY}") from error
    if missing := [name for name in KINDS if name not in tensors and name != "sequence"]:
        raise UserError(f"{path} is no file of tracks: it has no tensor {missing[0]}", todo=REMEDY)
    for name, values in tensors.items():
        if values.dtype.kind not in KINDS[name]:
            raise UserError(f"{path}: {name} holds numbers of type {values.dtype}", todo=REMEDY)
    kinds = {"points": np.float32, "visible": np.bool_, "first": np.int64, "sequence": np.int64}
    try:
        return Tracks(_header(header, path), **{name: values.astype(kinds[name]) for name, values in tensors.items()})
    except UserError as error:
        raise error if str(path) in error.found else UserError(f"{path}: {error.found}", todo=error.todo or REMEDY) from error


def _header(text: str | None, path: str | Path) -> TracksHeader:
    """The header as a model."""
    if text is None:
        raise UserError(f"{path} is no file of tracks: its metadata have no key tracks", todo=REMEDY)
    try:
        return TracksHeader.model_validate_json(text)
    except ValidationError as error:
        raise UserError(f"{path} is no file of tracks: metadata, tracks: {'; '.join(complaints(error))}", todo=REMEDY) from error
