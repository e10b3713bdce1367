"""Draw and cut crops of an image or a clip, from an explicit generator.

    generator = torch.Generator().manual_seed(item.seed)
    box = random_resized_crop_box(height, width, (0.25, 1.0), (3 / 4, 4 / 3), generator)
    crop = resized_crop(image, box, 224)

Images are uint8 [..., 3, height, width]. All images of one call share the box, so a clip passed as [frames, 3, height, width] stays
consistent in time. The draws come in the order in which torchvision's transforms make them: from the same seed follow the same crops.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Shaped, UInt8
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from densewalk.core.errors import UserError
from densewalk.data.augmentation.draws import Distortion, draw_distortion, to_rows, uniform

Images = Shaped[Tensor, "*batch 3 height width"]
Box = tuple[int, int, int, int]  # top, left, height, width
# crops that overlap too little by chance are drawn again; an image that defeats this many draws is degenerate
MAX_DRAWS = 1000


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


def central_square(images: Images, size: int) -> Shaped[Tensor, "*batch 3 size size"]:
    """The largest square in the middle, resized."""
    return resized_crop(images, central_box(*images.shape[-2:]), size)


def central_box(height: int, width: int) -> Box:
    """The largest square in the middle."""
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


@dataclass(frozen=True)
class Crop:
    """One view to cut: side in pixels, share of the image's area, global or local."""

    size: int
    scale: tuple[float, float]
    is_global: bool


def multi_crop(
    image: UInt8[Tensor, "3 height width"], crops: Sequence[Crop], min_overlap: float, generator: Generator
) -> tuple[list[UInt8[Tensor, "3 _ _"]], Float64[Tensor, "crops columns"], Float[Tensor, "crops 4"]]:
    """Cut crops of `image`, each overlapping all earlier global ones, and draw how to distort each (Leopart, NeCo).

    Args:
        crops: global ones first.
        min_overlap: smallest intersection with every earlier global crop, as a share of the image; twice that between two global crops.

    Returns:
        The crops; their distortions, as `colors.distort` takes them; their boxes as left, top, right, bottom in pixels of the image.
    """
    cut, distortions, boxes = [], list[Distortion](), torch.zeros(len(crops), 4)
    n_global = sum(crop.is_global for crop in crops)
    for i, crop in enumerate(crops):
        top, left, h, w = box = _overlapping_box(image, crop, boxes[: min(i, n_global)], min_overlap, generator)
        boxes[i] = torch.tensor([left, top, left + w, top + h])
        cut.append(resized_crop(image, box, crop.size))
        distortions.append(draw_distortion(generator))
    return cut, to_rows(distortions), boxes


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
