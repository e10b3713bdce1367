"""Tracks from files: which belong to a video, where a clip can begin, and the tracks of a clip."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Generator

from densewalk.core.errors import UserError
from densewalk.data.augmentation.crops import Box
from densewalk.data.contents import contents_of
from densewalk.data.receipts import VideoReceipt
from densewalk.data.sources import Source
from densewalk.data.stretches import Video
from densewalk.data.video.tracks import Tracks, TracksHeader, read_tracks
from densewalk.methods.mosic.settings import MosicSettings


class ClipTracks(NamedTuple):
    """Points of a clip: x, y in pixels, and where they can be seen."""

    points: Float32[np.ndarray, "points frames 2"]
    visible: Bool[np.ndarray, "points frames"]


class GivenTracks:
    """The tracks of a source, by the clip.

    Args:
        lengths: frames of each sequence.

    Raises:
        UserError: a track goes beyond its video, is shorter than a clip, or has no column for each of a clip's frames.
    """

    def __init__(self, path: str, tracks: Tracks, settings: MosicSettings, lengths: Sequence[int]) -> None:
        self.path, self.tracks, self.frames = path, tracks, settings.frames
        step, columns = tracks.header.step, tracks.visible.shape[1]
        if settings.frame_step % step:
            found = f"{path} has a column for every {step} frames, but a clip takes every {settings.frame_step}"
            raise UserError(found, todo=f"set frame_step to a multiple of {step}")
        self.stride = settings.frame_step // step  # columns from a frame of a clip to the next
        self.starts = columns - (settings.frames - 1) * self.stride  # columns that a clip can begin with
        if self.starts < 1:
            found = f"{path}: tracks of {columns} columns are shorter than a clip of {settings.frames} frames, {self.stride} columns apart"
            raise UserError(found, todo="lower frames or frame_step, or give longer tracks")
        self._require_inside(lengths)
        # rows of each sequence: tracks order[edges[s] : edges[s + 1]]
        self.order = np.argsort(tracks.sequence, kind="stable")
        self.edges = np.searchsorted(tracks.sequence[self.order], np.arange(len(lengths) + 1))

    def _require_inside(self, lengths: Sequence[int]) -> None:
        """Every track lies in its video."""
        t, header = self.tracks, self.tracks.header
        if (unknown := np.flatnonzero(t.sequence >= len(lengths))).size:
            raise UserError(f"{self.path}: track {unknown[0]} is of sequence {t.sequence[unknown[0]]}, but there are {len(lengths)}")
        last = t.first + (t.visible.shape[1] - 1) * header.step
        if (beyond := np.flatnonzero(last >= np.asarray(lengths)[t.sequence])).size:
            own = lengths[t.sequence[beyond[0]]]
            raise UserError(f"{self.path}: track {beyond[0]} ends with frame {last[beyond[0]]}, but the video has frames 0 to {own - 1}")

    def beginnings(self, video: Video) -> Int64[np.ndarray, " starts"]:
        """Frames of a video from which a clip with a visible point begins, in order."""
        rows = self.order[self.edges[video.sequence] : self.edges[video.sequence + 1]]
        first, visible, step = self.tracks.first[rows], self.tracks.visible[rows, : self.starts], self.tracks.header.step
        track, column = np.nonzero(visible)
        found = np.unique(first[track] + column * step)
        end = video.start + video.length - (self.frames - 1) * self.stride * step
        return found[(found >= video.start) & (found < end)]

    def clip(self, video: Video, start: int, height: int, width: int) -> ClipTracks:
        """All tracks of a clip that begins with a frame, whose first point is visible; places in pixels of a frame of this size."""
        rows = self.order[self.edges[video.sequence] : self.edges[video.sequence + 1]]
        t, header = self.tracks, self.tracks.header
        column, rest = np.divmod(start - t.first[rows], header.step)
        fits = (rest == 0) & (column >= 0) & (column < self.starts)
        rows, column = rows[fits], column[fits]
        seen = t.visible[rows, column]
        rows, column = rows[seen], column[seen]
        columns = column[:, None] + self.stride * np.arange(self.frames)
        visible = t.visible[rows[:, None], columns]
        points = t.points[rows[:, None], columns] * np.array([width / header.width, height / header.height], dtype=np.float32)
        return ClipTracks(_with_places(points, visible), visible)


def _with_places(points: Float32[np.ndarray, "points frames 2"], visible: Bool[np.ndarray, "points frames"]) -> np.ndarray:
    """The points, hidden ones where the tracker has them: they have features, too, that share the prototypes.

    A hidden point without a finite place is where the track was last.
    """
    known = visible | np.isfinite(points).all(axis=2)  # in the first frame all are visible
    last = np.maximum.accumulate(np.where(known, np.arange(visible.shape[1]), 0), axis=1)
    return np.take_along_axis(points, last[..., None], axis=1)


def given_tracks(settings: MosicSettings, sources: Sequence[Source], lengths: Sequence[Sequence[int]]) -> list[GivenTracks]:
    """The tracks of each source, found by what the files say of which video they are.

    Args:
        lengths: of each source, the frames of its sequences.

    Raises:
        UserError: a file of another video, a video without a file or with two, or see `GivenTracks` and `read_tracks`.
    """
    found: dict[str, tuple[str, Tracks]] = {}
    for path in settings.track_files:
        tracks = read_tracks(path)
        if (other := found.get(tracks.header.video)) is not None:
            raise UserError(f"{other[0]} and {path} are tracks of one video", todo="give one of them")
        found[tracks.header.video] = path, tracks
    result = []
    for source, own in zip(sources, lengths, strict=True):
        (content,) = contents_of(source.receipt)
        if content not in found:
            there = "; ".join(f"{path} is of {tracks.header.video[:12]}" for path, tracks in found.values()) or "there are no track_files"
            raise UserError(f"no tracks of data {source.name}, whose content is {content[:12]}: {there}", todo="track that video itself")
        path, tracks = found.pop(content)
        _require_copy(path, tracks.header, source, sum(own))
        result.append(GivenTracks(path, tracks, settings, own))
    if found:
        names = ", ".join(source.name for source in sources)
        raise UserError(f"{next(iter(found.values()))[0]} has tracks of another video than those of data: {names}", todo="leave it out")
    return result


def _require_copy(path: str, header: TracksHeader, source: Source, frames: int) -> None:
    """Frames are counted as in the copy that is trained on."""
    if header.frames != frames:
        kind = "the training copy of" if isinstance(source.receipt, VideoReceipt) else "the folder"
        raise UserError(f"{path} counts {header.frames} frames, {kind} {source.name} has {frames}", todo="track the training copy")


def crop_tracks(tracks: ClipTracks, box: Box, size: int) -> ClipTracks:
    """Tracks in pixels of a crop that is resized to size x size; what is outside of it is not visible."""
    top, left, height, width = box
    points = (tracks.points - np.array([left, top], np.float32)) * np.array([size / width, size / height], np.float32)
    inside = (points >= 0).all(axis=2) & (points < size).all(axis=2)
    return ClipTracks(points, tracks.visible & inside)


def choose_tracks(tracks: ClipTracks, count: int, generator: Generator) -> ClipTracks:
    """Draw `count` of those whose first point is visible; if there are fewer, each is taken before one is taken again.

    If there is none, they are drawn of all, and all points are invisible.
    """
    seen = tracks.visible[:, 0]
    if not seen.any():
        tracks, seen = ClipTracks(tracks.points, np.zeros_like(tracks.visible)), np.ones_like(seen)
    rows = torch.from_numpy(np.flatnonzero(seen))
    chosen = torch.cat([torch.randperm(len(rows), generator=generator) for _ in range(-(-count // len(rows)))])[:count]
    return ClipTracks(*(values[rows[chosen].numpy()] for values in tracks))
