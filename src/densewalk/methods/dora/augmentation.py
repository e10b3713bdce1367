"""Clips with global and local views, as released: colors are drawn for each image, only global views are flipped.

One box of the whole clip is resized to 300 px (for views of 224 px), from which the views are cut.
"""

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode

from densewalk.data.augmentation import maybe, resized_crop
from densewalk.data.images import normalize
from densewalk.methods.dino.augmentation import distort_colors, sample_box
from densewalk.methods.dora.settings import DoraSettings
from densewalk.training.sampler import Item


class DoraViews(Dataset[dict[str, Tensor]]):
    """Views of clips: dict of `global` [views, frames, 3, size, size] and `local` [crops, frames, 3, size, size], normalized."""

    def __init__(self, clips: "Dataset[Tensor]", settings: DoraSettings) -> None:
        self.clips, self.settings = clips, settings

    def __len__(self) -> int:
        return len(self.clips)  # type: ignore[arg-type]

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(item.seed)
        frames = crop_clip(self.clips[item.index], self.settings, generator)
        assert self.settings.global_views is not None
        views = [global_view(frames, self.settings, generator) for _ in range(self.settings.global_views)]
        crops = [local_view(frames, self.settings, generator) for _ in range(self.settings.local_crops)]
        return {"global": torch.stack(views), "local": torch.stack(crops)}


def crop_clip(frames: UInt8[Tensor, "frames 3 height width"], settings: DoraSettings, generator: Generator) -> Tensor:
    """One box of the whole clip, a fifth of the area or more, at the resolution from which the views are cut."""
    box = sample_box(frames, (0.2, 1.0), generator)
    frames = frames.contiguous(memory_format=torch.channels_last)  # three times as fast to resize
    return resized_crop(frames, box, round(settings.global_size * 300 / 224))


def global_view(frames: Tensor, settings: DoraSettings, generator: Generator) -> Float[Tensor, "frames 3 size size"]:
    """Crop and flip shared by all frames, colors of their own."""
    clip = resized_crop(frames, sample_box(frames, settings.global_scale, generator), settings.global_size)
    clip = clip.flip(-1) if maybe(0.5, generator) else clip
    return normalize(torch.stack([distort_colors(frame, generator, blur=0.1) for frame in clip]))


def local_view(frames: Tensor, settings: DoraSettings, generator: Generator) -> Float[Tensor, "frames 3 size size"]:
    """One crop of each frame, everything about it drawn for that frame alone."""
    crops = []
    for frame in frames:
        box = sample_box(frame, settings.local_scale, generator)
        crop = resized_crop(frame, box, settings.local_size, InterpolationMode.BICUBIC)
        crops.append(distort_colors(crop, generator, blur=0.5))
    return normalize(torch.stack(crops))
