"""Mask of a video's first frame, propagated to all its frames: from pixels to patches, along features, and back to pixels."""

from collections.abc import Callable, Hashable, Iterator, Mapping
from functools import partial
from itertools import chain

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from densewalk.core.imagenet import IMAGENET, IMAGENET_STD, PixelStatistics
from densewalk.core.progress import Progress
from densewalk.data.benchmarks.video_objects import LabelledVideo, Mask
from densewalk.data.images import normalize
from densewalk.evaluations.common.base import Job, require_finite, scratch
from densewalk.evaluations.common.label_propagation_settings import LabelPropagationSettings, Resize, Upsample
from densewalk.models.interface import Network
from densewalk.ops.label_propagation import Rule, follow


class Propagation:
    """The propagation of labels through one video.

    Attributes:
        size: height and width of the network's input. grid: rows and columns of patches. first: features of the first frame.
    """

    def __init__(
        self,
        backbone: Network,
        sequence: LabelledVideo,
        shape: tuple[int, ...],
        settings: LabelPropagationSettings,
        progress: Progress,
        *,
        red_std: float = IMAGENET_STD[0],
        stored: "StoredFrames | None" = None,
    ) -> None:
        self.rules = settings.pixel_rules
        self.shape, self.size = (shape[0], shape[1]), input_size(shape[0], shape[1], settings, backbone.multiple)
        backbone.require_size(*self.size)
        self.grid = (self.size[0] // backbone.stride, self.size[1] // backbone.stride)
        self.rule = Rule(self.grid, settings.radius, settings.top_k, settings.context, settings.temperature, self.rules.circle)
        self.frames = frame_features(backbone, sequence, self.size, progress, red_std=red_std, resize=self.rules.resize, stored=stored)
        self.first = next(self.frames)

    def labels(
        self,
        first: UInt8[np.ndarray, "rows columns"],
        *,
        constant_channel_wins: bool = False,
        later: Mapping[int, UInt8[np.ndarray, "rows columns"]] | None = None,
        objects: int | None = None,
    ) -> Iterator[Mask]:
        """The labels of the second, third, ... frame, given those of the first frame's patches.

        Args:
            later: labels of the patches of objects that enter, by the number of their frame.
            objects: the number of all of them; the highest label of `first` if not given.
        """
        device = self.first.device
        entering = {number: labels_above_background(labels, objects).to(device) for number, labels in (later or {}).items()}
        for soft in follow(chain([self.first], self.frames), one_hot(first, objects).to(device), self.rule, entering):
            yield upsample_labels(
                soft[0].unflatten(1, self.grid),
                self.size,
                self.shape,
                how=self.rules.upsample,
                constant_channel_wins=constant_channel_wins,
            )


def input_size(height: int, width: int, settings: LabelPropagationSettings, patch: int) -> tuple[int, int]:
    """Height and width of the network's input; see `LabelPropagationSettings.multiple`."""
    patches = settings.pixel_rules.short_patches
    if patches is not None:
        return rounded_up_size(height, width, patches * patch, patch)
    long_side = settings.short_side * max(height, width) // min(height, width) // settings.multiple * settings.multiple
    short, long = (max(1, round(side / patch)) * patch for side in (settings.short_side, long_side))
    return (short, long) if height <= width else (long, short)


def rounded_up_size(height: int, width: int, short_side: int, patch: int) -> tuple[int, int]:
    """The shorter side rounded up to whole patches, and the longer one that keeps the aspect ratio, rounded up likewise (DINOv3)."""
    short = -(-short_side // patch) * patch
    long = -(-max(height, width) * short // (min(height, width) * patch)) * patch
    return (short, long) if height <= width else (long, short)


class StoredFrames:
    """Features of the frames of one sequence, for all that prepare its frames alike: each is computed once.

    They lie in files of the job's folder of state that end with this object, so that memory holds what is being read.
    """

    def __init__(self, job: Job) -> None:
        self.job, self.features, self.known = job, dict[Hashable, Tensor](), dict[Hashable, set[int]]()

    def get(self, key: Hashable, number: int, frames: int, compute: Callable[[], Tensor]) -> Tensor:
        """The features [1, patches, dim] of frame `number` of `frames`, on the device that `compute` gives them on."""
        done = self.known.setdefault(key, set())
        if number in done:
            return self.features[key][number][None].to(self.job.device)
        found = compute()
        if key not in self.features:
            self.features[key] = scratch(self.job, (frames, *found.shape[1:]), found.dtype)
        self.features[key][number] = found[0].cpu()
        done.add(number)
        return found


def frame_features(
    backbone: Network,
    sequence: LabelledVideo,
    size: tuple[int, int],
    progress: Progress,
    *,
    red_std: float,
    resize: Resize = "opencv",
    stored: StoredFrames | None = None,
) -> Iterator[Float[Tensor, "1 patches dim"]]:
    """Patch features of each frame after the network's final norm, as they are needed."""
    device = next(backbone.parameters()).device

    def compute(number: int) -> Tensor:
        x = prepare_frame(sequence.image(number), size, backbone.statistics, red_std=red_std, resize=resize)
        patches = backbone.dense(x.to(device)).flatten(2).transpose(1, 2)
        require_finite(patches, [sequence.frames[number]], backbone.source)
        return patches

    for number in range(len(sequence.frames)):
        if stored is None:
            yield compute(number)
        else:
            yield stored.get((sequence.frames[0], size, red_std, resize), number, len(sequence.frames), partial(compute, number))
        progress.advance(sequence.name)


def prepare_frame(
    image: UInt8[np.ndarray, "height width 3"],
    size: tuple[int, int],
    statistics: PixelStatistics = IMAGENET,
    *,
    red_std: float = IMAGENET_STD[0],
    resize: Resize = "opencv",
) -> Float[Tensor, "1 3 rows columns"]:
    """A frame resized and normalized; `red_std`: what red is divided by where the statistics are ImageNet's."""
    if resize == "bicubic":
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        return normalize(F.interpolate(x, size, mode="bicubic", antialias=True), statistics.with_imagenet_std(0, red_std))
    resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    mean, std = (torch.tensor(values) for values in statistics.with_imagenet_std(0, red_std))
    return ((torch.from_numpy(resized).float() / 255 - mean) / std).permute(2, 0, 1)[None]


def reduce_mask(mask: Mask, grid: tuple[int, int], *, keep_small_objects: bool) -> UInt8[np.ndarray, "rows columns"]:
    """The label at the center of every patch.

    Args:
        keep_small_objects: an object that no center meets gets the patch that it covers most, except patches that are
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


def one_hot(labels: UInt8[np.ndarray, "rows columns"], objects: int | None = None) -> Float[Tensor, "1 classes patches"]:
    """Background and the objects up to `objects`, or the highest id, a channel each."""
    return F.one_hot(torch.from_numpy(labels).long().flatten(), -1 if objects is None else objects + 1).T[None].float()


def labels_above_background(labels: UInt8[np.ndarray, "rows columns"], objects: int | None) -> Float[Tensor, "1 classes patches"]:
    """`one_hot` without the background: 0 where there is no object."""
    found = one_hot(labels, objects)
    found[:, 0] = 0
    return found


def upsample_labels(
    soft: Float[Tensor, "classes rows columns"],
    size: tuple[int, int],
    original: tuple[int, int],
    *,
    how: Upsample = "stretched",
    constant_channel_wins: bool = False,
) -> Mask:
    """The label of every pixel of the original frame, from soft labels of patches; see `PixelRules`."""
    if how == "bilinear":
        return F.interpolate(soft[None], size=original, mode="bilinear", align_corners=False)[0].argmax(dim=0).byte().cpu().numpy()
    if how == "nearest":
        channels = F.interpolate(soft[None], size=original, mode="nearest")[0]
        low, high = channels.amin(dim=(1, 2), keepdim=True), channels.amax(dim=(1, 2), keepdim=True)
        return torch.where(high > low, (channels - low) / (high - low), 0).argmax(dim=0).byte().cpu().numpy()
    channels = F.interpolate(soft[None], size=size, mode="bilinear", align_corners=False)[0]
    labels = normalize_channels(channels, constant_channel_wins=constant_channel_wins).argmax(dim=0)
    return resize_labels(labels.byte().cpu().numpy(), original)


def normalize_channels(
    channels: Float[Tensor, "classes height width"], *, constant_channel_wins: bool
) -> Float[Tensor, "classes height width"]:
    """(x - min) / (max - min) for each channel that is positive anywhere, the background's included.

    A constant positive channel stays as it is, unless `constant_channel_wins`: then it is 0 / 0 = NaN, as in the released code.
    """
    low, high = channels.amin(dim=(1, 2), keepdim=True), channels.amax(dim=(1, 2), keepdim=True)
    leave = high <= 0 if constant_channel_wins else high <= low
    return torch.where(leave, channels, (channels - low) / (high - low))


def resize_labels(labels: Mask, size: tuple[int, int]) -> UInt8[np.ndarray, "new_height new_width"]:
    """Nearest neighbor, as Pillow does it."""
    return np.array(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))
