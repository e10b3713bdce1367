"""Frames with the optical flow to a neighboring frame."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as tv

from densewalk.core.errors import UserError
from densewalk.core.progress import log
from densewalk.data.augmentation.crops import Box, resized_crop
from densewalk.data.augmentation.draws import maybe, uniform
from densewalk.data.sources import Source
from densewalk.data.stretches import Video, videos_of
from densewalk.methods.cis.settings import CisSettings
from densewalk.ops.optical_flow import frame_flow, is_still
from densewalk.training.sampler import Item

DRAWS = 10  # pairs that are drawn for one that moves
TRIED = 256  # pairs of the whole data that are tried before the first step
SECONDS = 5.0  # about the length of a stretch of a video file; a pair lies in one
SIDES = (0.2, 0.8)  # of a random box, as a share of the frame's side


@dataclass(frozen=True)
class Pair:
    """A frame and another one of the same video, whose flow from the one to the other is not still."""

    frame: UInt8[Tensor, "3 height width"]
    flow: Float[Tensor, "2 height width"]


class FlowPairs(Dataset[dict[str, Tensor]]):
    """Every frame once an epoch, with the flow to a frame before or after it.

    A sample is a dict of `image` uint8 [3, height, width]; `flow` [2, height, width], x and y in pixels of the frame divided by
    `flow_scale`; and `box` [4], a random box as shares of the frame: top, left, height, width.

    Raises:
        UserError: none of up to 256 pairs moves.
    """

    def __init__(self, videos: list[Video], settings: CisSettings) -> None:
        self.videos, self.settings = videos, settings
        self.ends = np.cumsum([video.length for video in videos])
        self.moving = self.first_moving()  # taken where nothing drawn moves

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, item: Item) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(item.seed)
        pair = self.draw(item.index, generator)
        s = self.settings
        share = uniform(*s.scale, generator)
        height, width = (max(1, round(side * share)) for side in pair.frame.shape[-2:])
        top, left = (
            int(torch.randint(side - kept + 1, (), generator=generator))
            for side, kept in zip(pair.frame.shape[-2:], (height, width), strict=True)
        )
        sample = self.sample(pair, (top, left, height, width), flip=maybe(0.5, generator))
        return sample | {"box": draw_box(generator)}

    def draw(self, index: int, generator: Generator) -> Pair:
        """A frame with a random neighbor; where nothing moves, another frame of the data."""
        for _ in range(DRAWS):
            video, frame = self.place(index)
            pair = self.read(video, frame, self.neighbor(video, frame, generator))
            if pair is not None:
                return pair
            index = int(torch.randint(len(self), (), generator=generator))
        found = self.read(*self.moving)
        assert found is not None
        return found

    def place(self, index: int) -> tuple[Video, int]:
        """The video and the frame of a number."""
        number = int(np.searchsorted(self.ends, index, side="right"))
        video = self.videos[number]
        return video, video.start + index - int(self.ends[number] - video.length)

    def neighbor(self, video: Video, frame: int, generator: Generator) -> int:
        """A frame up to `frame_distance` before or after, in the video."""
        least, most = video.start, video.start + video.length - 1
        near = range(max(least, frame - self.settings.frame_distance), min(most, frame + self.settings.frame_distance) + 1)
        others = [other for other in near if other != frame]
        return others[int(torch.randint(len(others), (), generator=generator))]

    def read(self, video: Video, frame: int, other: int) -> Pair | None:
        """A pair, its frames no higher than `flow_height`; None if it is still."""
        frames = reduced(video.read([frame, other]), self.settings.flow_height)
        flow = frame_flow(*frames.permute(0, 2, 3, 1).numpy())
        return None if is_still(flow) else Pair(frames[0], torch.from_numpy(flow).permute(2, 0, 1))

    def first_moving(self) -> tuple[Video, int, int]:
        """The first of some evenly spaced pairs that moves, as video and two frames."""
        numbers = np.linspace(0, len(self) - 1, min(TRIED, len(self))).round().astype(int)
        generator = torch.Generator().manual_seed(0)
        for number in numbers[torch.randperm(len(numbers), generator=generator).numpy()].tolist():
            video, frame = self.place(number)
            other = self.neighbor(video, frame, generator)
            if self.read(video, frame, other) is not None:
                return video, frame, other
        found = f"most of the frame stands still in each of {len(numbers)} pairs: the median flow is below 0.3 px"
        todo = "choose a video whose camera moves; if it moves slowly, raise frame_distance"
        raise UserError(found, todo=todo)

    def sample(self, pair: Pair, box: Box, *, flip: bool) -> dict[str, Tensor]:
        """A crop of a pair at the network's size; a flip turns the flow's direction, resizing leaves its length as it is."""
        s = self.settings
        size = (s.height, s.width)
        image = resized_crop(pair.frame, box, size)
        top, left, height, width = box
        flow = resize_flow(pair.flow[:, top : top + height, left : left + width], size) / s.flow_scale
        if flip:
            image, flow = image.flip(-1), flow.flip(-1) * torch.tensor([-1.0, 1.0])[:, None, None]
        return {"image": image, "flow": flow}

    def plain(self, index: int) -> dict[str, Tensor]:
        """A whole frame with the flow to the next one, or of the last to the one before, moving or not: the same at each call."""
        video, frame = self.place(index)
        other = frame + 1 if frame + 1 < video.start + video.length else frame - 1
        frames = reduced(video.read([frame, other]), self.settings.flow_height)
        flow = torch.from_numpy(frame_flow(*frames.permute(0, 2, 3, 1).numpy())).permute(2, 0, 1)
        return self.sample(Pair(frames[0], flow), (0, 0, *frames.shape[-2:]), flip=False)


def reduced(frames: UInt8[Tensor, "frames 3 height width"], most: int) -> UInt8[Tensor, "frames 3 new_height new_width"]:
    """The frames, resized to this height if they are higher."""
    height, width = frames.shape[-2:]
    return frames if height <= most else tv.resize(frames, [most, max(1, round(width * most / height))], antialias=True)


def resize_flow(flow: Float[Tensor, "2 height width"], size: tuple[int, int]) -> Float[Tensor, "2 new_height new_width"]:
    """Flow at another size of its map; its values stay pixels of the frame."""
    return F.interpolate(flow[None], size, mode="bilinear", antialias=True)[0]


def draw_box(generator: Generator) -> Float[Tensor, " 4"]:
    """A random box as shares of the frame: top, left, height, width; sides of 0.2 to 0.8."""
    height, width = uniform(*SIDES, generator), uniform(*SIDES, generator)
    return torch.tensor([uniform(0.0, 1 - height, generator), uniform(0.0, 1 - width, generator), height, width])


def box_masks(boxes: Float[Tensor, "batch 4"], height: int, width: int) -> Float[Tensor, "batch 1 {height} {width}"]:
    """1 where the middle of a pixel lies in the box, else 0."""
    y, x = ((torch.arange(side, device=boxes.device) + 0.5) / side for side in (height, width))
    top, left, tall, wide = boxes[:, :, None].unbind(1)  # [b, 1] each
    rows, columns = (y >= top) & (y < top + tall), (x >= left) & (x < left + wide)
    return (rows[:, :, None] & columns[:, None, :])[:, None].float()


def moving_videos(sources: Sequence[Source]) -> list[Video]:
    """All videos of the sources that have two frames.

    Raises:
        UserError: a folder of images, or a source without two frames in a row.
    """
    found = []
    for source in sources:
        videos = videos_of(source, SECONDS, 2)
        if any(video.still for video in videos):
            raise UserError(
                f"data {source.name} is a folder of images, which have no optical flow",
                allowed="videos, and folders of sequences of frames",
                todo="leave it out",
            )
        long = [video for video in videos if video.length >= 2]
        if not long:
            raise UserError(f"{source.name}: no video has two frames, which optical flow needs", todo="leave it out")
        if short := len(videos) - len(long):
            log.info("%s: %d of %d videos have a single frame and are left out", source.name, short, len(videos))
        found += long
    return found
