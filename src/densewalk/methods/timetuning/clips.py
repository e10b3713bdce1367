"""Clips from videos and folders of frames, and their augmentation."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor
from torch.utils.data import Dataset

from densewalk.core.imagenet import IMAGENET_MEAN, IMAGENET_STD
from densewalk.data.augmentation.crops import central_square, resized_crop
from densewalk.data.augmentation.draws import Distortion, to_rows
from densewalk.data.augmentation.views import distort_clips, draw_clip_view
from densewalk.data.stretches import Video
from densewalk.methods.timetuning.settings import TimeTuningSettings
from densewalk.training.sampler import Item

Clips = Float[Tensor, "batch frames 3 height width"]


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
    box, drawn = draw_clip_view(height, width, settings.scale, generator)
    return resized_crop(clip, box, settings.size), drawn


def make_views(batch: dict[str, Tensor], settings: TimeTuningSettings, device: torch.device) -> Clips:
    """Clips of a batch as drawn, normalized."""
    clips = batch["clip"].to(device, non_blocking=True)
    return distort_clips(clips, batch["distortion"], *statistics(settings))


def normalize_clip(clip: Float[Tensor, "*batch 3 height width"], settings: TimeTuningSettings) -> Float[Tensor, "*batch 3 height width"]:
    """RGB in 0..1, normalized with the settings' standard deviation of red."""
    mean, std = (clip.new_tensor(values) for values in statistics(settings))
    return (clip - mean[:, None, None]) / std[:, None, None]


def statistics(settings: TimeTuningSettings) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation of the channels."""
    assert settings.red_std is not None
    return IMAGENET_MEAN, [settings.red_std, *IMAGENET_STD[1:]]
