"""Frames to patch features, label maps to patch labels and back: what DAVIS and box tracking share."""

from collections.abc import Iterator

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from densewalk.core.imagenet import IMAGENET_MEAN, IMAGENET_STD
from densewalk.core.progress import Progress
from densewalk.data.benchmarks.video_objects import LabelledVideo, Mask
from densewalk.evaluations.common.base import require_finite
from densewalk.evaluations.common.label_propagation_settings import LabelPropagationSettings
from densewalk.models.backbone import Backbone


def input_size(height: int, width: int, settings: LabelPropagationSettings, patch: int) -> tuple[int, int]:
    """Height and width of the network's input; see `LabelPropagationSettings.multiple`."""
    long_side = settings.short_side * max(height, width) // min(height, width) // settings.multiple * settings.multiple
    short, long = (max(1, round(side / patch)) * patch for side in (settings.short_side, long_side))
    return (short, long) if height <= width else (long, short)


def features(
    backbone: Backbone, sequence: LabelledVideo, size: tuple[int, int], progress: Progress, *, red_std: float = IMAGENET_STD[0]
) -> Iterator[Float[Tensor, "1 patches dim"]]:
    """Patch features of each frame after the network's final norm, as they are needed.

    Raises:
        UserError: a frame cannot be read, or its features are not finite; the message names the file.
    """
    device = next(backbone.parameters()).device
    for number, frame in enumerate(sequence.frames):
        patches = backbone.tokens(to_input(sequence.image(number), size, red_std=red_std).to(device)).patches
        require_finite(patches, [frame], backbone.source)
        yield patches
        progress.advance(sequence.name)


def to_input(
    image: UInt8[np.ndarray, "height width 3"], size: tuple[int, int], *, red_std: float = IMAGENET_STD[0]
) -> Float[Tensor, "1 3 rows columns"]:
    """A frame resized and normalized; `red_std`: the standard deviation that red is divided by."""
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor([red_std, *IMAGENET_STD[1:]])
    return ((torch.from_numpy(resized).float() / 255 - mean) / std).permute(2, 0, 1)[None]


def reduce(mask: Mask, grid: tuple[int, int], *, keep_small_objects: bool) -> UInt8[np.ndarray, "rows columns"]:
    """The label at the centre of every patch.

    Args:
        keep_small_objects: an object that no centre meets gets the patch that it covers most, but for patches that are
            another object's only one. Otherwise it is lost.
    """
    small = resize_labels(mask, grid)
    for number in range(1, int(mask.max()) + 1 if keep_small_objects else 0):
        if not (small == number).any():
            free = (small == 0) | (np.bincount(small.ravel())[small] > 1)
            covered = F.adaptive_avg_pool2d(torch.from_numpy(mask == number)[None].float(), grid)[0].numpy() * free
            if covered.any():
                small[np.unravel_index(covered.argmax(), grid)] = number
    return small


def one_hot(labels: UInt8[np.ndarray, "rows columns"]) -> Float[Tensor, "1 classes patches"]:
    """Background and the objects up to the highest id, a channel each."""
    return F.one_hot(torch.from_numpy(labels).long().flatten()).T[None].float()


def decide(
    soft: Float[Tensor, "classes rows columns"], size: tuple[int, int], original: tuple[int, ...], *, constant_channel_wins: bool = False
) -> Mask:
    """The label of every pixel of the original frame."""
    channels = F.interpolate(soft[None], size=size, mode="bilinear", align_corners=False)[0]
    labels = stretch(channels, constant_channel_wins=constant_channel_wins).argmax(dim=0)
    return resize_labels(labels.byte().cpu().numpy(), (original[0], original[1]))


def stretch(channels: Float[Tensor, "classes height width"], *, constant_channel_wins: bool) -> Float[Tensor, "classes height width"]:
    """(x - min) / (max - min) for each channel that is positive anywhere, the background's included.

    A constant positive channel stays as it is, unless `constant_channel_wins`: then it is 0 / 0 = NaN, as in the released code.
    """
    low, high = channels.amin(dim=(1, 2), keepdim=True), channels.amax(dim=(1, 2), keepdim=True)
    leave = high <= 0 if constant_channel_wins else high <= low
    return torch.where(leave, channels, (channels - low) / (high - low))


def resize_labels(labels: Mask, size: tuple[int, int]) -> UInt8[np.ndarray, "new_height new_width"]:
    """Nearest neighbour, as Pillow does it."""
    return np.array(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
