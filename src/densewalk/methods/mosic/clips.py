"""Clips with the tracks of their points."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from densewalk.core.errors import UserError
from densewalk.core.progress import log
from densewalk.data.augmentation.crops import central_box, central_square, resized_crop
from densewalk.data.augmentation.draws import to_rows
from densewalk.data.augmentation.views import distort_clips, draw_clip_view
from densewalk.data.receipts import VideoReceipt
from densewalk.data.sources import Source
from densewalk.data.stretches import Video, videos_of
from densewalk.methods.mosic.settings import MosicSettings
from densewalk.methods.mosic.tracks import ClipTracks, GivenTracks, choose_tracks, crop_tracks, given_tracks
from densewalk.ops.optical_flow import grid_points, track_points
from densewalk.training.sampler import Item

DRAWS = 10  # crops that are drawn for one with a track before the whole frame is taken
Clips = Float[Tensor, "batch frames 3 size size"]


@dataclass(frozen=True)
class Tracked:
    """A video, the frames from which its clips begin, and its tracks if they come from a file."""

    video: Video
    starts: np.ndarray
    tracks: GivenTracks | None = None


class TrackDataset(Dataset[dict[str, Tensor]]):
    """One clip of each video per epoch, before flip and colors.

    A sample is a dict of `clip` [frames, 3, size, size], uint8; `distortion`, one row for all frames (data/augmentation/draws.py);
    `points` [points, frames, 2], x, y in pixels of the flipped clip; and `visible` [points, frames].
    """

    def __init__(self, videos: list[Tracked], settings: MosicSettings) -> None:
        self.videos, self.settings = videos, settings

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(item.seed)
        one, s = self.videos[item.index], self.settings
        start = int(one.starts[int(torch.randint(len(one.starts), (), generator=generator))])
        frames = self.read_clip(one, start)
        height, width = frames.shape[-2:]
        box, drawn = draw_clip_view(height, width, s.scale, generator)
        if one.tracks is None:
            clip = resized_crop(frames, box, s.size)
            tracks = self.follow(clip, still=one.video.still)
        else:
            whole = one.tracks.clip(one.video, start, height, width)
            for _ in range(DRAWS):
                if crop_tracks(whole, box, s.size).visible[:, 0].any():
                    break
                box, drawn = draw_clip_view(height, width, s.scale, generator)
            else:
                box = (0, 0, height, width)
            clip = resized_crop(frames, box, s.size)
            tracks = choose_tracks(crop_tracks(whole, box, s.size), s.grid**2, generator)
        points = np.where([drawn.flip, 0], s.size - tracks.points, tracks.points)
        return sample_of(clip, ClipTracks(points, tracks.visible)) | {"distortion": to_rows([drawn])[0]}

    def read_clip(self, one: Tracked, start: int) -> UInt8[Tensor, "frames 3 height width"]:
        """The frames of a clip."""
        s = self.settings
        return one.video.read([start + n * s.frame_step for n in range(s.frames)])

    def follow(self, clip: UInt8[Tensor, "frames 3 size size"], *, still: bool) -> ClipTracks:
        """Points of a grid on the first frame, followed through the clip; those of an image stay where they are."""
        grid = grid_points(self.settings.grid, self.settings.size)
        if still:
            rows = np.repeat(grid[:, None].astype(np.float32), len(clip), axis=1)
            return ClipTracks(rows, np.ones(rows.shape[:2], dtype=bool))
        return ClipTracks(*track_points(list(clip.permute(0, 2, 3, 1).numpy()), grid))

    def plain(self, index: int) -> dict[str, Tensor]:
        """The same clip of a video at each call, not augmented: the middle of the frames from its first possible beginning on."""
        one, s = self.videos[index], self.settings
        frames = self.read_clip(one, int(one.starts[0]))
        height, width = frames.shape[-2:]
        clip = central_square(frames, s.size)
        if one.tracks is None:
            return sample_of(clip, self.follow(clip, still=one.video.still))
        whole = one.tracks.clip(one.video, int(one.starts[0]), height, width)
        tracks = crop_tracks(whole, central_box(height, width), s.size)
        return sample_of(clip, choose_tracks(tracks, s.grid**2, torch.Generator().manual_seed(0)))


def sample_of(clip: Tensor, tracks: ClipTracks) -> dict[str, Tensor]:
    """A clip and its tracks as tensors."""
    return {"clip": clip, "points": torch.from_numpy(tracks.points.astype(np.float32)), "visible": torch.from_numpy(tracks.visible)}


def tracked_videos(settings: MosicSettings, sources: Sequence[Source]) -> list[Tracked]:
    """All videos of the sources that a clip fits in; with tracks from files, of those only where a clip has a visible point.

    Raises:
        UserError: no clip fits into a source, none has a visible point, or see `given_tracks`.
    """
    span = settings.span
    opened = [videos_of(source, piece_seconds(settings, source), span) for source in sources]
    tracks: list[GivenTracks] | list[None] = [None] * len(sources)
    if settings.tracker == "files":
        tracks = given_tracks(settings, sources, [lengths_of(*pair) for pair in zip(sources, opened, strict=True)])
    found = []
    for source, videos, own in zip(sources, opened, tracks, strict=True):
        long = [video for video in videos if video.still or video.length >= span]
        if not long:
            longest = max(video.length for video in videos)
            needed = f"{source.name}: a clip of {settings.frames} frames, every {settings.frame_step}, takes {span} frames"
            raise UserError(f"{needed}; the longest video has {longest}", todo="lower frames or frame_step")
        if short := len(videos) - len(long):
            log.info("%s: %d of %d videos are shorter than a clip of %d frames and left out", source.name, short, len(videos), span)
        found += [Tracked(video, starts, own) for video in long if len(starts := beginnings(video, span, own))]
        if not any(one.tracks is own for one in found):
            assert own is not None
            raise UserError(f"{own.path}: no clip of {source.name} begins with a visible point", todo="lower frames or frame_step")
    return found


def beginnings(video: Video, span: int, tracks: GivenTracks | None) -> np.ndarray:
    """Frames from which a clip of a video can begin."""
    if tracks is not None:
        return tracks.beginnings(video)
    return video.start + np.arange(1 if video.still else video.length - span + 1)


def lengths_of(source: Source, videos: Sequence[Video]) -> list[int]:
    """Frames of a video file, or of each sequence of a folder.

    Raises:
        UserError: a folder of images.
    """
    if isinstance(source.receipt, VideoReceipt):
        return [source.receipt.frames]
    if videos[0].still:
        raise UserError(f"data {source.name} is a folder of images, which have no tracks", todo="set tracker to flow, or leave it out")
    return [video.length for video in videos]


def piece_seconds(settings: MosicSettings, source: Source) -> float:
    """Length of the pieces of a video file: the even ones nearest to it hold a whole clip."""
    rate = source.receipt.fps if isinstance(source.receipt, VideoReceipt) else 1.0
    return max(settings.segment_seconds, 1.5 * settings.span / rate)


def make_views(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Clips of a batch as drawn, normalized, and their tracks."""
    clips = distort_clips(batch["clip"].to(device, non_blocking=True), batch["distortion"])
    return {"clip": clips, **{name: batch[name].to(device, non_blocking=True) for name in ("points", "visible")}}
