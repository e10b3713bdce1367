"""Augment an image or a clip by crops, colors and blur drawn from an explicit generator.

    generator = torch.Generator().manual_seed(item.seed)
    box = random_resized_crop_box(height, width, (0.25, 1.0), (3 / 4, 4 / 3), generator)
    view = distort(resized_crop(image, box, 224), generator)

Images are [..., 3, height, width], uint8 or float in 0..1; what comes out has the type of what goes in. All images of one call
share the parameters, so a clip passed as [frames, 3, height, width] stays consistent in time. The draws come in the order in
which torchvision's transforms make them: from the same seed follow the same crops.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Shaped
from torch import Generator, Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from densewalk.core.errors import UserError

Images = Shaped[Tensor, "*batch 3 height width"]
Box = tuple[int, int, int, int]  # top, left, height, width
# crops that overlap too little by chance are drawn again; an image that defeats this many draws is degenerate
MAX_DRAWS = 1000


def uniform(low: float, high: float, generator: Generator) -> float:
    """Draw a number in [low, high)."""
    return torch.empty(1).uniform_(low, high, generator=generator).item()


def maybe(p: float, generator: Generator) -> bool:
    """Draw True with probability `p`."""
    return torch.rand(1, generator=generator).item() < p


def random_resized_crop_box(height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float], generator: Generator) -> Box:
    """Draw a crop whose share of the area and aspect ratio are random.

    The share is uniform in `scale`, width / height log-uniform in `ratio`. Ten draws are tried; if none fits into the image, the
    largest central crop within `ratio` is taken (Szegedy et al., https://arxiv.org/abs/1409.4842, section 6).

    Returns:
        top, left, height, width in pixels.
    """
    for _ in range(10):
        area = height * width * uniform(*scale, generator)
        aspect = math.exp(uniform(math.log(ratio[0]), math.log(ratio[1]), generator))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(torch.randint(0, height - h + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - w + 1, (1,), generator=generator))
            return top, left, h, w
    w = min(width, max(1, round(height * ratio[1])))
    h = min(height, max(1, round(width / ratio[0])))
    return (height - h) // 2, (width - w) // 2, h, w


def resized_crop(
    image: Images,
    box: Box,
    size: int | tuple[int, int],
    interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    antialias: bool = True,
) -> Shaped[Tensor, "*batch 3 new_height new_width"]:
    """Cut out `box` and resize it to `size` (a side, or height and width)."""
    sides = [size, size] if isinstance(size, int) else list(size)
    return tv.resized_crop(image, *box, sides, interpolation, antialias)


def distort(image: Images, generator: Generator, *, strength: float = 1.0) -> Images:
    """Change colors and blur as Leopart, NeCo and Time-Tuning do.

    Jitter of brightness, contrast and saturation by 0.8 and hue by 0.2 (times `strength`) with probability 0.8, gray with
    probability 0.2, Gaussian blur of radius U(0.1, 2) with probability 0.5. No flip, no solarization.
    """
    if maybe(0.8, generator):
        image = color_jitter(image, 0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength, generator)
    if maybe(0.2, generator):
        image = grayscale(image)
    # one number decides whether to blur and how much; in the released code the radius comes from another generator: like this
    # the crops that follow are the same as there
    draw = torch.rand(1, generator=generator).item()
    return gaussian_blur(image, 0.1 + draw / 0.5 * (2.0 - 0.1)) if draw < 0.5 else image


def color_jitter(image: Images, brightness: float, contrast: float, saturation: float, hue: float, generator: Generator) -> Images:
    """Change brightness, contrast, saturation and hue in random order.

    Factors are uniform in [max(0, 1 - x), 1 + x] for the first three; the hue moves by U(-hue, hue) turns (0.5 is the
    opposite color). After each change the values are clipped.
    """
    order = torch.randperm(4, generator=generator).tolist()
    factors = [uniform(max(0.0, 1 - x), 1 + x, generator) for x in (brightness, contrast, saturation)]
    changes: list[Callable[[Tensor], Tensor]] = [
        partial(tv.adjust_brightness, brightness_factor=factors[0]),
        partial(tv.adjust_contrast, contrast_factor=factors[1]),
        partial(tv.adjust_saturation, saturation_factor=factors[2]),
        partial(adjust_hue, turn=uniform(-hue, hue, generator)),
    ]
    x = _to_float(image)
    for i in order:
        x = changes[i](x)
    return _to_type(x, image)


def adjust_hue(image: Float[Tensor, "*batch 3 height width"], turn: float) -> Float[Tensor, "*batch 3 height width"]:
    """Turn the hue of HSV by `turn` turns: as torchvision does, in a third of its time.

    With V the largest and C the range of the three channels and h the hue in sixths of a turn,

        channel n (5, 3, 1 for red, green, blue) = V - C clip(2 - |k - 2|, 0, 1),  k = (n + h + 6 turn) mod 6
    """
    red, green, blue = image.unbind(-3)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = 1 / chroma.clamp(min=1e-12)
    hue = torch.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4)
    hue = torch.where(value == red, (green - blue) * scale, hue)
    turned = torch.empty_like(image)
    for channel, n in enumerate((5, 3, 1)):
        k = hue + (n + 6 * turn)
        k -= torch.floor(k / 6).mul_(6)
        share = k.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)
        torch.addcmul(value, chroma, share, value=-1, out=turned.select(-3, channel))
    return turned


def grayscale(image: Images) -> Images:
    """Put the luma (0.299, 0.587, 0.114) into all three channels."""
    return tv.rgb_to_grayscale(image, num_output_channels=3)


def gaussian_blur(image: Images, radius: float) -> Images:
    """Convolve with a Gaussian of deviation `radius`, cut off at three of them, edges repeated."""
    reach = math.ceil(3 * radius)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / radius) ** 2)
    weights = (kernel / kernel.sum()).tolist()
    x = _to_float(image)
    x = _convolve(x.reshape(-1, *x.shape[-2:]), weights, (0, 0, reach, reach), dim=1)
    x = _convolve(x, weights, (reach, reach, 0, 0), dim=2)
    return _to_type(x.view(image.shape), image)


def _convolve(x: Tensor, weights: list[float], padding: tuple[int, int, int, int], dim: int) -> Tensor:
    """Sum shifted copies along `dim`: a fifth of the time of conv2d with one channel."""
    length = x.shape[dim]
    x = F.pad(x, padding, mode="replicate")
    result = torch.zeros_like(x.narrow(dim, 0, length))
    for i, weight in enumerate(weights):
        result.add_(x.narrow(dim, i, length), alpha=weight)
    return result


def _to_float(image: Tensor) -> Tensor:
    return image if image.is_floating_point() else image.float() / 255


def _to_type(x: Tensor, like: Tensor) -> Tensor:
    return x if like.is_floating_point() else (x * 255).round_().clamp_(0, 255).to(like.dtype)


@dataclass(frozen=True)
class Crop:
    """One view to cut: side in pixels, share of the image's area, global or local."""

    size: int
    scale: tuple[float, float]
    is_global: bool


def multi_crop(
    image: Images, crops: Sequence[Crop], min_overlap: float, generator: Generator
) -> tuple[list[Tensor], Float[Tensor, "views 4"]]:
    """Cut distorted views of `image`, each overlapping all earlier global ones (Leopart, NeCo).

    Args:
        crops: global ones first.
        min_overlap: smallest intersection with every earlier global crop, as a share of the image; twice that between two global crops.

    Returns:
        The views, and their boxes as left, top, right, bottom in pixels of the image.
    """
    views, boxes = [], torch.zeros(len(crops), 4)
    n_global = sum(crop.is_global for crop in crops)
    for i, crop in enumerate(crops):
        top, left, h, w = box = _overlapping_box(image, crop, boxes[: min(i, n_global)], min_overlap, generator)
        boxes[i] = torch.tensor([left, top, left + w, top + h])
        views.append(distort(resized_crop(image, box, crop.size), generator))
    return views, boxes


def _overlapping_box(image: Tensor, crop: Crop, earlier: Tensor, min_overlap: float, generator: Generator) -> Box:
    height, width = image.shape[-2:]
    least = int(height * width * min_overlap) * (2 if crop.is_global else 1)
    for _ in range(MAX_DRAWS):
        top, left, h, w = random_resized_crop_box(height, width, crop.scale, (3 / 4, 4 / 3), generator)
        own = torch.tensor([left, top, left + w, top + h])
        sides = (torch.minimum(own[2:], earlier[:, 2:]) - torch.maximum(own[:2], earlier[:, :2])).clamp(min=0)
        if bool((sides.prod(dim=1) > least).all()):
            return top, left, h, w
    raise UserError(
        f"an image of {width}x{height} px: no crop of a share {crop.scale} overlaps the global crops by {least} px",
        todo="remove images that are thin strips",
    )


def intersections(
    boxes: Float[Tensor, "views 4"], sizes: Sequence[int], n_global: int
) -> tuple[Float[Tensor, "n_global views 4"], Float[Tensor, "views n_global 4"]]:
    """Intersect each global crop with each crop, in the pixels of either.

        for i in range(n_global):
            for v in range(views):
                shared = intersection(boxes[i], boxes[v])                     # in the image
                in_global[i, v] = (shared - origin(i)) / side(i) * sizes[i]   # in crop i
                in_view[v, i] = (shared - origin(v)) / side(v) * sizes[v]     # in crop v

    Args:
        boxes: left, top, right, bottom in pixels of the image, global crops first.
        sizes: side of each view in pixels.

    Returns:
        `in_global` and `in_view` (the released code's `gc` and `all`), both as left, top, right, bottom.
    """
    corner = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    far_corner = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    origin, side = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
    size = torch.tensor(sizes, dtype=boxes.dtype)[:, None, None]
    shared = torch.cat([(point - origin) / side * size for point in (corner, far_corner)], dim=-1)
    return shared[:n_global], shared[:, :n_global]
