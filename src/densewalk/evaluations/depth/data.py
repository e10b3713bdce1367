"""Images and depth maps as the probe takes them: random crops, whole images, and the mean depth of the training images.

Depth maps are [1, height, width] in meters, 0 where there is no value.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from densewalk.core.errors import UserError
from densewalk.core.progress import track
from densewalk.data.augmentation.draws import maybe, uniform
from densewalk.data.benchmarks.depth import DepthImage, list_depth, read_depth, require_other_scenes
from densewalk.data.image_files import read_image
from densewalk.evaluations.depth.settings import SIZES, DepthSettings
from densewalk.training.sampler import Item

ROTATION = 2.5  # degrees
FLOOR_IMAGES = 2000  # training images that the floors are the mean of, evenly spaced in their list
Pair = tuple[Tensor, Tensor]  # image [3, height, width], depth [1, height, width]


def list_splits(settings: DepthSettings) -> tuple[list[DepthImage], list[DepthImage]]:
    """Training and scored images; a scene in both is refused, as is an image that is smaller than a training crop."""
    assert settings.train_list is not None
    assert settings.val_list is not None
    trained = "nyu" if settings.layout == "sunrgbd" else settings.layout
    training, _ = list_depth(settings.root, trained, settings.train_list)
    scored, _ = list_depth(settings.root, settings.layout, settings.val_list)
    require_other_scenes(training, scored, (settings.train_list, settings.val_list))
    for example in training if settings.augment == "none" else ():
        if example.size != training[0].size:
            sizes = f"{example} is {_by(example.size)}, but {training[0]} is {_by(training[0].size)}"
            raise UserError(sizes, todo="augment none takes whole images of one size: choose another `augment`")
    for example in training if settings.augment != "none" else ():
        assert settings.crop is not None
        left = cut_size(settings, example.size)
        if left[0] < settings.crop[0] or left[1] < settings.crop[1]:
            found = f"{example} is {_by(example.size)}, of which {_by(left)} are used: smaller than crop {_by(settings.crop)}"
            raise UserError(found, todo="choose a smaller `crop`")
    return training, scored


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def read_pair(settings: DepthSettings, example: DepthImage) -> Pair:
    """An image, 0 to 255, and its depth."""
    image = torch.from_numpy(np.array(read_image(example.image))).permute(2, 0, 1).float()
    return used(settings, image), true_depth(settings, example)


def true_depth(settings: DepthSettings, example: DepthImage) -> Float[Tensor, "1 height width"]:
    """The depth of an image."""
    return used(settings, torch.from_numpy(read_depth(example))[None])


def used(settings: DepthSettings, image: Float[Tensor, "c height width"]) -> Float[Tensor, "c new_height new_width"]:
    """The image; KITTI's cut to 352 x 1216, below and in the middle, where it is larger."""
    if settings.layout != "kitti":
        return image
    height, width = SIZES["kitti"]
    top, left = max(0, image.shape[1] - height), max(0, (image.shape[2] - width) // 2)
    return image[:, top:, left : left + width]


def cut_size(settings: DepthSettings, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of what training crops are drawn from."""
    if settings.layout == "kitti":
        return min(size[0], SIZES["kitti"][0]), min(size[1], SIZES["kitti"][1])
    top, bottom, left, right = border(*size)
    return bottom - top, right - left


def border(height: int, width: int) -> tuple[int, int, int, int]:
    """NYU's rows 45 to 472 and columns 43 to 608 of 480 x 640, inside of the white frame; at other sizes the same shares."""
    return 45 * height // 480, 472 * height // 480, 43 * width // 640, 608 * width // 640


def scored_image(settings: DepthSettings, example: DepthImage) -> Pair:
    """Image in 0..1 and its depth; SUN RGB-D's image is squeezed to 480 x 640, its depth keeps its size."""
    image, depth = read_pair(settings, example)
    if example.layout == "sunrgbd":
        image = tv.resize(image, list(SIZES["sunrgbd"]), InterpolationMode.BILINEAR, antialias=False)
    return image / 255, depth


class WholeImages(Dataset[tuple[Tensor, Tensor]]):
    """Image in 0..1 and depth of each example."""

    def __init__(self, settings: DepthSettings, examples: Sequence[DepthImage]) -> None:
        self.settings, self.examples = settings, examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return scored_image(self.settings, self.examples[i])


class TrainingCrops(Dataset[tuple[Tensor, Tensor, int]]):
    """A random crop: image in 0..1, depth, number; with `augment: none` number and depth of the whole image. Equal items are equal."""

    def __init__(self, settings: DepthSettings, examples: Sequence[DepthImage]) -> None:
        self.settings, self.examples = settings, examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, item: Item) -> tuple[Tensor, Tensor, int]:
        example = self.examples[item.index]
        if self.settings.augment == "none":
            return torch.empty(0), true_depth(self.settings, example), item.index
        pair = read_pair(self.settings, example)
        image, depth = random_crop(self.settings, *pair, torch.Generator().manual_seed(item.seed))
        return image / 255, depth, item.index


def random_crop(
    settings: DepthSettings, image: Float[Tensor, "3 height width"], depth: Float[Tensor, "1 height width"], generator: Generator
) -> Pair:
    """Border cut off, turned by up to 2.5 degrees half of the time, mirrored half of the time, cropped, colors changed."""
    assert settings.crop is not None
    if settings.layout != "kitti":
        top, bottom, left, right = border(*image.shape[-2:])
        image, depth = image[:, top:bottom, left:right], depth[:, top:bottom, left:right]
    if maybe(0.5, generator):
        angle = uniform(-ROTATION, ROTATION, generator)
        image = tv.rotate(image, angle, InterpolationMode.BILINEAR)
        depth = tv.rotate(depth, angle, InterpolationMode.NEAREST)
    if maybe(0.5, generator):
        image, depth = image.flip(-1), depth.flip(-1)
    height, width = settings.crop
    row = int(torch.randint(0, image.shape[1] - height + 1, (1,), generator=generator))
    column = int(torch.randint(0, image.shape[2] - width + 1, (1,), generator=generator))
    window = slice(row, row + height), slice(column, column + width)
    return change_colors(settings, image[:, *window], generator), depth[:, *window]


def change_colors(settings: DepthSettings, image: Float[Tensor, "3 height width"], generator: Generator) -> Float[Tensor, "3 height width"]:
    """Half of the time: brightness; for DINOv2 gamma before it, of values up to 255 as released, and each channel after it."""
    if not maybe(0.5, generator):
        return image
    reach = 0.1 if settings.layout == "kitti" else 0.25
    if settings.augment == "dinov3":
        return (image * uniform(1 - reach, 1 + reach, generator)).clamp(0, 255)
    image = image ** uniform(0.9, 1.1, generator) * uniform(1 - reach, 1 + reach, generator)
    channels = torch.empty(3, 1, 1).uniform_(0.9, 1.1, generator=generator)
    return (image * channels).clamp(0, 255)


class MeanDepth:
    """The floors: mean depth of the training images, at each pixel position and as one number.

    Maps of other sizes are resized to that of the first (nearest pixel). A position without any value gets the one number.
    """

    def __init__(self, settings: DepthSettings, examples: Sequence[DepthImage]) -> None:
        count = min(len(examples), FLOOR_IMAGES)
        chosen = [examples[i * len(examples) // count] for i in range(count)]
        total, known = None, None
        for example in track(chosen, "mean depth"):
            depth = true_depth(settings, example)[None].double()
            if total is None or known is None:
                total, known = torch.zeros_like(depth), torch.zeros_like(depth)
            depth = F.interpolate(depth, total.shape[-2:], mode="nearest")
            total += depth
            known += depth > 0
        assert total is not None
        assert known is not None
        if not known.any():
            raise UserError(f"no depth map of the {len(chosen)} training images in {settings.root} has a value", todo="correct the list")
        self.constant = float(total.sum() / known.sum())
        self.map = torch.where(known > 0, total / known.clamp(min=1), self.constant).float()

    def at(self, size: tuple[int, int]) -> dict[str, Float[Tensor, "height width"]]:
        """What each floor predicts for an image of this size."""
        position = F.interpolate(self.map, size, mode="bilinear")[0, 0]
        return {"constant": torch.full(size, self.constant), "position": position}
