"""Clips as frames with a window for each node."""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Generator, Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode

from densewalk.data.augmentation.crops import central_square, random_resized_crop_box, resized_crop
from densewalk.data.augmentation.resize import resized_crops
from densewalk.data.images import normalize
from densewalk.methods.crw.settings import CrwSettings
from densewalk.training.sampler import Item

FRAME_RATIO = (0.7, 1.3)  # of the crop of a frame
WINDOW_RATIO = (3 / 4, 4 / 3)  # of the part of a window that is kept


class WalkClips(Dataset[dict[str, Tensor]]):
    """A sample is a dict of `clip` [frames, 3, size, size], uint8, and `boxes` [frames, nodes, 4]: top, left, height, width."""

    def __init__(self, clips: "Dataset[Tensor]", settings: CrwSettings) -> None:
        self.clips, self.settings = clips, settings

    def __len__(self) -> int:
        return len(self.clips)  # type: ignore[arg-type]

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(item.seed)
        s, frames = self.settings, []
        for frame in self.clips[item.index]:
            height, width = frame.shape[-2:]
            box = random_resized_crop_box(height, width, s.scale, FRAME_RATIO, generator)
            frames.append(resized_crop(frame, box, s.size))
        boxes = torch.stack([draw_windows(s, generator) for _ in frames])
        return {"clip": torch.stack(frames), "boxes": boxes}

    def plain(self, index: int) -> dict[str, Tensor]:
        """The middle of a clip's frames, with whole windows."""
        clip = central_square(self.clips[index], self.settings.size)
        return {"clip": clip, "boxes": windows(self.settings).expand(len(clip), -1, -1)}


def windows(settings: CrwSettings) -> Int[Tensor, "nodes 4"]:
    """The windows of a frame, row by row."""
    places = [i * settings.node_stride for i in range(settings.grid)]
    side = settings.node_size
    return torch.tensor([(top, left, side, side) for top in places for left in places])


def draw_windows(settings: CrwSettings, generator: Generator) -> Int[Tensor, "nodes 4"]:
    """The windows of a frame, each cut by a crop of its own."""
    boxes = windows(settings)
    side = settings.node_size
    inner = [random_resized_crop_box(side, side, settings.node_scale, WINDOW_RATIO, generator) for _ in boxes]
    drawn = torch.tensor(inner)
    return torch.cat([boxes[:, :2] + drawn[:, :2], drawn[:, 2:]], dim=1)


def cut_windows(
    clips: UInt8[Tensor, "batch frames 3 size size"], boxes: Int[Tensor, "batch frames nodes 4"], side: int
) -> Float[Tensor, "batch frames nodes 3 side side"]:
    """The windows of a batch of clips, resized and normalized."""
    cut = resized_crops(clips.flatten(0, 1), boxes.flatten(0, 1), side, InterpolationMode.BILINEAR)
    return normalize(cut.float() / 255).unflatten(0, clips.shape[:2])
