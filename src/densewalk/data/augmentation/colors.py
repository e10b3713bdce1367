"""Flip, color and blur images as drawn, each image by numbers of its own, on the device where they are.

    views = distort(crops, rows)      # uint8 [..., 3, height, width], rows [..., 12] of draws.py; normalized float

Images are changed together, but each is what it would be alone: nothing here looks across a batch.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Float64, UInt8
from torch import Tensor
from torch.nn import functional as F

from densewalk.core.imagenet import IMAGENET_MEAN, IMAGENET_STD
from densewalk.data.augmentation.draws import BRIGHTNESS, CONTRAST, HUE, NOTHING, SATURATION, Distortion
from densewalk.ops.cpu.switch import use_cpu_kernels

Images = Float[Tensor, "images channels height width"]  # three, or one of gray images
Values = Float64[Tensor, "images 1 1 1"]  # one for each image
GRAY = (0.2989, 0.587, 0.114)  # torchvision's luma
SOLARIZE_FROM = 128 / 255
IN_CACHE = 1 << 20  # numbers of images that are changed together on a CPU, some of each thread
AT_ONCE = 256  # images changed together on a GPU: bounds the memory


def distort(
    images: UInt8[Tensor, "*batch 3 height width"],
    rows: Float64[Tensor, "*batch columns"],
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Float[Tensor, "*batch 3 height width"]:
    """Change each image as its row says and normalize it: (x - mean) / std, x in 0..1.

    `rows` are read on the CPU and need not be moved.
    """
    if use_cpu_kernels(images.device):
        from densewalk.data.augmentation.colors_kernel import finish_normalized  # late: numba is slow to load

        statistics = np.array(mean, np.float32), np.array(std, np.float32)
        return _by_compiled_loops(images, rows, torch.float32, partial(finish_normalized, *statistics))

    center, scale = (torch.tensor(values)[:, None, None].to(images.device, non_blocking=True) for values in (mean, std))

    def change(x: Tensor, drawn: Sequence[Distortion], result: Tensor) -> None:
        torch.div(_change(x, drawn) - center, scale, out=result)

    return _in_parts(images, rows, torch.float32, change)


def distort_levels(
    images: UInt8[Tensor, "*batch 3 height width"], rows: Float64[Tensor, "*batch columns"]
) -> UInt8[Tensor, "*batch 3 height width"]:
    """Change each image as its row says, rounded to 256 levels after jitter, gray and blur as on 8-bit images."""
    if use_cpu_kernels(images.device):
        from densewalk.data.augmentation.colors_kernel import finish_levels

        return _by_compiled_loops(images, rows, torch.uint8, finish_levels)

    def change(x: Tensor, drawn: Sequence[Distortion], result: Tensor) -> None:
        result.copy_(_change(x, drawn, eight_bit=True).mul(255).round_())

    return _in_parts(images, rows, torch.uint8, change)


def _by_compiled_loops(
    images: UInt8[Tensor, "*batch 3 height width"], rows: Float64[Tensor, "*batch columns"], dtype: torch.dtype, finish: Callable[..., None]
) -> Float[Tensor, "*batch 3 height width"] | UInt8[Tensor, "*batch 3 height width"]:
    """Change images by colors_kernel.py: a quarter of the time of what is below, equal to the last bit (benchmarks/colors.py)."""
    flat, drawn = images.flatten(0, -4), rows.flatten(0, -2)
    result, (height, width) = torch.empty(flat.shape, dtype=dtype), flat.shape[-2:]
    count = max(torch.get_num_threads(), IN_CACHE // max(1, 4 * height * width))
    work = torch.empty(min(count, len(flat)), 4, height, width)
    weights = _weights_of_images(drawn)
    for begin in range(0, len(flat), count):
        part = slice(begin, begin + count)
        _change_some(flat[part], drawn[part], weights[part], result[part], work, finish)
    return result.view(images.shape)


def _change_some(
    images: Tensor, rows: Tensor, weights: Float[Tensor, "images taps"], result: Tensor, work: Tensor, finish: Callable[..., None]
) -> None:
    """Change images in all threads; `work` is memory for their channels and lumas. The means are torch's: loops add up in another order."""
    from densewalk.data.augmentation.colors_kernel import start  # late: numba is slow to load
    from densewalk.ops.cpu.compiled import over_rows

    means = torch.zeros(len(images))
    source, drawn, x, target = (part.numpy() for part in (images, rows, work, result))
    over_rows(lambda some: start(source[some], drawn[some], x[some]), len(source))
    for i in np.flatnonzero((drawn[:, 1:5] == CONTRAST).any(axis=1)).tolist():
        means[i] = _mean(work[i, 3:])
    over_rows(lambda some: finish(x[some], drawn[some], means[some].numpy(), weights[some].numpy(), target[some]), len(source))


def _weights_of_images(rows: Float64[Tensor, "images columns"]) -> Float[Tensor, "images taps"]:
    """The weights of each image's blur, of radius r in the first 2 ceil(3 r) + 1 columns."""
    radii = rows[:, Distortion._fields.index("blur")]
    reaches = torch.ceil(3 * radii).int()
    weights = torch.zeros(len(rows), 2 * max([0, *reaches.tolist()]) + 1)
    for reach in reaches[reaches > 0].unique().tolist():
        same = reaches == reach
        weights[same, : 2 * reach + 1] = _blur_weights(radii[same].view(-1, 1, 1, 1), reach).flatten(1)
    return weights


def at_once(device: torch.device) -> int:
    """How many images are changed together: on a CPU one, which stays in its cache."""
    return 1 if device.type == "cpu" else AT_ONCE


def _in_parts(
    images: Tensor, rows: Tensor, dtype: torch.dtype, change: Callable[[Tensor, Sequence[Distortion], Tensor], None]
) -> Float[Tensor, "*batch 3 height width"] | UInt8[Tensor, "*batch 3 height width"]:
    """Change so many images together as suit the device."""
    flat = images.flatten(0, -4)
    drawn = [Distortion(*row) for row in rows.flatten(0, -2).tolist()]
    count = at_once(images.device)
    result = torch.empty(flat.shape, dtype=dtype, device=images.device)
    for begin in range(0, len(flat), count):
        part = slice(begin, begin + count)
        change(flat[part].contiguous() / 255, drawn[part], result[part])
    return result.view(images.shape)


def _change(x: Images, drawn: Sequence[Distortion], *, eight_bit: bool = False) -> Float[Tensor, "images _ height width"]:
    """All changes in their order, of which `x` may take some in place; one channel if all images are gray."""
    jitter: dict[int, tuple[Callable[..., Tensor], list[float]]] = {
        BRIGHTNESS: (adjust_brightness, [d.brightness for d in drawn]),
        CONTRAST: (adjust_contrast, [d.contrast for d in drawn]),
        SATURATION: (adjust_saturation, [d.saturation for d in drawn]),
        HUE: (adjust_hue, [d.hue for d in drawn]),
    }
    x = _where([d.flip for d in drawn], partial(torch.flip, dims=(-1,)), x)
    for place in zip(*(d[1:5] for d in drawn), strict=True):
        for number, (change, values) in jitter.items():
            x = _where([chosen == number for chosen in place], change, x, values)
    if eight_bit and any(d.first != NOTHING and (d.gray or d.blur) for d in drawn):  # who needs nothing more is rounded at the end
        x = x.mul(255).round_().div_(255)
    x = _where([d.gray for d in drawn], partial(grayscale, eight_bit=eight_bit), x)
    radii = [d.blur for d in drawn]
    x = _where(radii, partial(gaussian_blur, reach=math.ceil(3 * max(radii))), x, radii)
    return _where([d.solarize for d in drawn], solarize, x)


def _where(
    chosen: Sequence[float | bool], change: Callable[..., Tensor], x: Images, *values: Sequence[float]
) -> Float[Tensor, "images _ height width"]:
    """Change some images of a batch, each by values of its own."""
    numbers = [i for i, yes in enumerate(chosen) if yes]
    if not numbers:
        return x
    columns = [torch.tensor([own[i] for i in numbers], dtype=torch.float64).view(-1, 1, 1, 1) for own in values]
    columns = [column.to(x.device, non_blocking=True) for column in columns]
    if len(numbers) == len(x):
        return change(x, *columns)
    index = torch.tensor(numbers).to(x.device, non_blocking=True)
    return x.index_copy_(0, index, change(x[index], *columns).expand(-1, x.shape[1], -1, -1))


# -- changes of images in 0..1, each by its own value --------------------------------------------------------------------


def adjust_brightness(x: Images, factor: Values) -> Images:
    """Clip f x to 0..1."""
    return (x * factor.to(x.dtype)).clamp_(0, 1)


def adjust_contrast(x: Images, factor: Values) -> Images:
    """Clip f x + (1 - f) mean(luma(x)) to 0..1."""
    gray = luma(x)
    gray.copy_(_mean(gray))  # one number, as a plane: `_blend` is four times as fast
    return _blend(x, gray, factor)


def adjust_saturation(x: Images, factor: Values) -> Images:
    """Clip f x + (1 - f) luma(x) to 0..1."""
    return _blend(x, luma(x), factor)


def _mean(gray: Float[Tensor, "*images 1 height width"]) -> Float[Tensor, "*images 1 1 1"]:
    return gray.mean(dim=(-3, -2, -1), keepdim=True)


def _blend(x: Tensor, other: Tensor, factor: Values) -> Tensor:
    return (x * factor.to(x.dtype)).addcmul_(other, (1 - factor).to(x.dtype)).clamp_(0, 1)


def adjust_hue(x: Images, turn: Values) -> Images:
    """Turn the hue of HSV by `turn` turns: as torchvision does, in a third of its time.

    With V the largest and C the range of the three channels and h the hue in sixths of a turn,

        channel n (5, 3, 1 for red, green, blue) = V - C clip(2 - |k - 2|, 0, 1),  k = (n + h + 6 turn) mod 6
    """
    red, green, blue = x.unbind(-3)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = 1 / chroma.clamp(min=1e-12)
    hue = torch.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4)
    hue = torch.where(value == red, (green - blue) * scale, hue)
    turned = torch.empty_like(x)
    for channel, n in enumerate((5, 3, 1)):
        k = hue + (n + 6 * turn[..., 0]).to(x.dtype)
        k -= torch.floor(k / 6).mul_(6)
        share = k.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)
        torch.addcmul(value, chroma, share, value=-1, out=turned.select(-3, channel))
    return turned


def luma(x: Float[Tensor, "*batch 3 height width"]) -> Float[Tensor, "*batch 1 height width"]:
    """Brightness as the eye sees it."""
    red, green, blue = x.split(1, dim=-3)
    return red.mul(GRAY[0]).add_(green, alpha=GRAY[1]).add_(blue, alpha=GRAY[2])


def grayscale(x: Images, *, eight_bit: bool = False) -> Float[Tensor, "images 1 height width"]:
    """The luma, which is put into all three channels later; of 8-bit images it is rounded down to a level, as torchvision does."""
    return luma((x * 255).round_()).floor_().div_(255) if eight_bit else luma(x)


def gaussian_blur(x: Images, radius: Values, *, reach: int) -> Images:
    """Convolve with a Gaussian of deviation `radius`, cut off at three of them, edges repeated.

    Args:
        reach: three times the largest radius, rounded up; given, because a GPU would have to be waited for to read it from `radius`.
    """
    weights = _blur_weights(radius, reach).to(x.dtype).unbind(1)  # [images, 1, 1, 1] each
    x = _convolve(x, weights, (0, 0, reach, reach), dim=-2)
    return _convolve(x, weights, (reach, reach, 0, 0), dim=-1)


def _blur_weights(radius: Values, reach: int) -> Float[Tensor, "images taps 1 1 1"]:
    offsets = torch.arange(-reach, reach + 1, device=radius.device).view(1, -1, 1, 1, 1)
    kernel = torch.exp(-0.5 * (offsets / radius[:, None].float()) ** 2) * (offsets.abs() <= torch.ceil(3 * radius[:, None]))
    return kernel / kernel.sum(dim=1, keepdim=True)


def _convolve(x: Tensor, weights: Sequence[Tensor], padding: tuple[int, int, int, int], dim: int) -> Tensor:
    """Sum shifted copies along `dim`: a fifth of the time of conv2d with one channel."""
    length = x.shape[dim]
    x = F.pad(x, padding, mode="replicate")
    result = torch.zeros_like(x.narrow(dim, 0, length))
    for i, weight in enumerate(weights):
        result.addcmul_(x.narrow(dim, i, length), weight)
    return result


def solarize(x: Images) -> Images:
    """Invert what is bright."""
    return torch.where(x >= SOLARIZE_FROM, 1 - x, x)
