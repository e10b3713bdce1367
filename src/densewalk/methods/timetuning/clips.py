"""Clips from videos and folders of frames, and their augmentation."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor
from torch.utils.data import Dataset

from densewalk.core.errors import UserError
from densewalk.core.imagenet import IMAGENET_MEAN, IMAGENET_STD
from densewalk.data.augmentation.colors import distort
from densewalk.data.augmentation.crops import central_square, random_resized_crop_box, resized_crop
from densewalk.data.augmentation.draws import Distortion, draw_distortion, maybe, to_rows
from densewalk.data.frame_folders import FrameFolders
from densewalk.data.image_folder import ImageFolder, open_image_folder
from densewalk.data.receipts import SequencesReceipt, VideoReceipt
from densewalk.data.sources import Source
from densewalk.data.video.clips import VideoClips
from densewalk.methods.timetuning.settings import TimeTuningSettings
from densewalk.training.sampler import Item

Clips = Float[Tensor, "batch frames 3 height width"]


@dataclass(frozen=True)
class Video:
    """A stretch of frames that belong together: `read` takes frame numbers, of which `start` to `start + length` are the video's."""

    read: Callable[[Sequence[int]], Tensor]
    start: int
    length: int


def videos_of(source: Source, settings: TimeTuningSettings) -> list[Video]:
    """The videos of a source: a file's segments, a folder's sequences, or each image of a folder.

    Raises:
        UserError: a video file without a segment of `frames` frames.
    """
    receipt = source.receipt
    if isinstance(receipt, VideoReceipt):
        reader = VideoClips(receipt, 1, 1.0)
        parts = segments(receipt, settings.segment_seconds, settings.frames)
        if not parts:
            raise UserError(f"{source.name}: no usable part without a scene cut has {settings.frames} frames", todo="lower frames")
        return [Video(reader.read, start, end - start) for start, end in parts]
    if isinstance(receipt, SequencesReceipt):
        folders = FrameFolders(receipt.path, only=receipt.chosen)
        return [Video(partial(folders.read, i), 0, len(frames)) for i, frames in enumerate(folders.sequences)]
    images = open_image_folder(receipt)
    return [Video(partial(repeat_image, images), i, 1) for i in range(len(images))]


def repeat_image(images: ImageFolder, indices: Sequence[int]) -> Tensor:
    """The first image asked for, as all frames."""
    return images[indices[0]].expand(len(indices), -1, -1, -1)


def segments(receipt: VideoReceipt, seconds: float, least: int) -> list[tuple[int, int]]:
    """Even pieces of the usable parts of a video, as [start, end) frames: about `seconds` long, without a cut, `least` frames or more.

    If a curation chose frames, only the pieces that hold one.
    """
    found = []
    for start, end in receipt.usable:
        edges = [start, *(cut for cut in receipt.cuts if start < cut < end), end]
        for a, b in pairwise(edges):
            count = max(1, round((b - a) / (seconds * receipt.fps)))
            marks = [a + (b - a) * i // count for i in range(count + 1)]
            found += [(x, y) for x, y in pairwise(marks) if y - x >= least]
    kept = receipt.kept
    return found if kept is None else [(x, y) for x, y in found if bisect_left(kept, x) < bisect_left(kept, y)]


def sample_frames(length: int, settings: TimeTuningSettings, generator: Generator) -> list[int]:
    """Draw a clip's frame numbers, 0 to `length` - 1, in order.

    Uniform: distinct ones from the whole video, or with repetitions if it is too short. Dense: a stretch with the distance
    `dense_step`, less if the video is too short for it, and its last frame repeated if it has fewer frames than the clip.
    """
    frames = settings.frames
    if settings.sampling == "uniform":
        if length < frames:
            return sorted(torch.randint(length, (frames,), generator=generator).tolist())
        return sorted(torch.randperm(length, generator=generator)[:frames].tolist())
    step = max(1, min(settings.dense_step, (length - 1) // (frames - 1)))
    start = int(torch.randint(max(1, length - (frames - 1) * step), (1,), generator=generator))
    return [min(start + i * step, length - 1) for i in range(frames)]


class ClipDataset(Dataset[dict[str, Tensor]]):
    """One clip of each video per epoch, before flip and colors.

    A sample is a dict of `clip` [frames, 3, size, size], uint8, and `distortion`, one row for all frames (data/augmentation/draws.py).
    """

    def __init__(self, videos: list[Video], settings: TimeTuningSettings) -> None:
        self.videos, self.settings = videos, settings

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(item.seed)
        clip, distortion = crop_clip(self.read_clip(item.index, generator), self.settings, generator)
        return {"clip": clip, "distortion": to_rows([distortion])[0]}

    def read_clip(self, index: int, generator: Generator) -> UInt8[Tensor, "frames 3 height width"]:
        """Frames of a video, drawn by the generator."""
        video = self.videos[index]
        return video.read([video.start + n for n in sample_frames(video.length, self.settings, generator)])

    def plain(self, index: int) -> UInt8[Tensor, "frames 3 size size"]:
        """The same clip of a video at each call: the middle of its frames, not augmented."""
        return central_square(self.read_clip(index, torch.Generator().manual_seed(0)), self.settings.size)


def crop_clip(
    clip: UInt8[Tensor, "frames 3 height width"], settings: TimeTuningSettings, generator: Generator
) -> tuple[UInt8[Tensor, "frames 3 size size"], Distortion]:
    """Crop, and draw colors, blur and flip, once for the whole clip."""
    height, width = clip.shape[-2:]
    box = random_resized_crop_box(height, width, settings.scale, (3 / 4, 4 / 3), generator)
    drawn = draw_distortion(generator)
    return resized_crop(clip, box, settings.size), drawn._replace(flip=maybe(0.5, generator))


def make_views(batch: dict[str, Tensor], settings: TimeTuningSettings, device: torch.device) -> Clips:
    """Clips of a batch as drawn, normalized."""
    clips = batch["clip"].to(device, non_blocking=True)
    rows = batch["distortion"][:, None].expand(-1, clips.shape[1], -1)
    return distort(clips, rows, *statistics(settings))


def normalize_clip(clip: Float[Tensor, "*batch 3 height width"], settings: TimeTuningSettings) -> Float[Tensor, "*batch 3 height width"]:
    """RGB in 0..1, normalized with the settings' standard deviation of red."""
    mean, std = (clip.new_tensor(values) for values in statistics(settings))
    return (clip - mean[:, None, None]) / std[:, None, None]


def statistics(settings: TimeTuningSettings) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of the channels."""
    assert settings.red_std is not None
    return IMAGENET_MEAN, [settings.red_std, *IMAGENET_STD[1:]]
