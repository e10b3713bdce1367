"""Clips with global and local views, as released: colors are drawn for each image, only global views are flipped.

One box of the whole clip is resized to 300 px (for views of 224 px), from which the views are cut. A data-loading process draws
everything but cuts that box alone; the views are cut on the device (`make_views`).
"""

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode

from densewalk.data.augmentation.colors import distort
from densewalk.data.augmentation.crops import Box, resized_crop
from densewalk.data.augmentation.draws import Distortion, maybe, to_rows
from densewalk.data.augmentation.resize import resized_crops
from densewalk.data.augmentation.views import draw_colors, sample_box
from densewalk.methods.dora.settings import DoraSettings
from densewalk.training.sampler import Item

Drawn = list[tuple[Box, Distortion]]  # of each frame


class DoraClips(Dataset[dict[str, Tensor]]):
    """Clips, and the views to cut from them.

    A sample is a dict of `clip` [frames, side, side, 3], uint8; `global_boxes` [views, frames, 4] and `local_boxes`
    [crops, frames, 4], top, left, height, width in pixels of the clip; `global_distortions` and `local_distortions`, a row for each
    (data/augmentation/draws.py).
    """

    def __init__(self, clips: "Dataset[Tensor]", settings: DoraSettings) -> None:
        self.clips, self.settings = clips, settings

    def __len__(self) -> int:
        return len(self.clips)  # type: ignore[arg-type]

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(item.seed)
        s = self.settings
        frames = crop_clip(self.clips[item.index], s, generator)
        assert s.global_views is not None
        views = [draw_global_view(frames, s, generator) for _ in range(s.global_views)]
        crops = [draw_local_view(frames, s, generator) for _ in range(s.local_crops)]
        return {"clip": frames.permute(0, 2, 3, 1).contiguous(), **collect("global", views), **collect("local", crops)}


def crop_clip(frames: UInt8[Tensor, "frames 3 height width"], settings: DoraSettings, generator: Generator) -> Tensor:
    """One box of the whole clip, a fifth of the area or more, at the resolution from which the views are cut."""
    box = sample_box(frames, (0.2, 1.0), generator)
    frames = frames.contiguous(memory_format=torch.channels_last)  # three times as fast to resize
    return resized_crop(frames, box, round(settings.global_size * 300 / 224))


def draw_global_view(frames: Tensor, settings: DoraSettings, generator: Generator) -> Drawn:
    """Crop and flip shared by all frames, colors of their own."""
    box, flip = sample_box(frames, settings.global_scale, generator), maybe(0.5, generator)
    return [(box, draw_colors(generator, blur=0.1)._replace(flip=flip)) for _ in frames]


def draw_local_view(frames: Tensor, settings: DoraSettings, generator: Generator) -> Drawn:
    """One crop of each frame, everything about it drawn for that frame alone."""
    return [(sample_box(frame, settings.local_scale, generator), draw_colors(generator, blur=0.5)) for frame in frames]


def collect(kind: str, views: list[Drawn]) -> dict[str, Tensor]:
    """Boxes and distortions as tensors."""
    return {
        f"{kind}_boxes": torch.tensor([[box for box, _ in view] for view in views]),
        f"{kind}_distortions": torch.stack([to_rows([distortion for _, distortion in view]) for view in views]),
    }


def make_views(batch: dict[str, Tensor], settings: DoraSettings, device: torch.device) -> dict[str, Float[Tensor, "b views t 3 _ _"]]:
    """Views of a batch of clips, normalized: `global` [b, views, t, 3, size, size] and `local` [b, crops, t, 3, size, size]."""
    clips = batch["clip"].to(device, non_blocking=True).permute(0, 1, 4, 2, 3)  # channels last in memory
    kinds = (
        ("global", settings.global_size, InterpolationMode.BILINEAR),
        ("local", settings.local_size, InterpolationMode.BICUBIC),
    )
    views = {}
    for kind, size, interpolation in kinds:
        boxes = batch[f"{kind}_boxes"].transpose(1, 2).flatten(0, 1)  # [b t, views, 4]
        crops = resized_crops(clips.flatten(0, 1), boxes, size, interpolation).unflatten(0, clips.shape[:2])
        views[kind] = distort(crops.transpose(1, 2), batch[f"{kind}_distortions"])
    return views
