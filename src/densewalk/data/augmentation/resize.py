"""Cut and resize many boxes of many images on the device where they are.

crops = resized_crops(images, boxes, 96, InterpolationMode.BICUBIC)      # uint8 [images, boxes, 3, 96, 96]
"""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode

from densewalk.data.augmentation.crops import resized_crop

AT_ONCE = 64  # images resized together on a GPU: bounds the memory
SUPPORT = {InterpolationMode.BILINEAR: 1.0, InterpolationMode.BICUBIC: 2.0}  # pixels on either side that an output pixel is made of


def resized_crops(
    images: UInt8[Tensor, "images 3 height width"], boxes: Int[Tensor, "images boxes 4"], size: int, interpolation: InterpolationMode
) -> UInt8[Tensor, "images boxes 3 size size"]:
    """Cut each image's own boxes (top, left, height, width) and resize them to a square, with antialias.

    On a CPU by torch's kernel for uint8, box by box: 16 times as fast as `resize_by_products` (benchmarks/feeding.py). Elsewhere,
    where torch has no such kernel, by matrix products, which round at the same places: a level of 256 apart in one pixel of 200.

    `boxes` are read on the CPU and need not be moved.
    """
    if images.device.type != "cpu":
        pairs = zip(images.split(AT_ONCE), boxes.to(images.device, non_blocking=True).split(AT_ONCE), strict=True)
        return torch.cat([resize_by_products(some, own, size, interpolation) for some, own in pairs])
    crops = torch.empty(*boxes.shape[:2], 3, size, size, dtype=torch.uint8)
    for image, own, results in zip(images, boxes.tolist(), crops, strict=True):
        for box, result in zip(own, results, strict=True):
            result.copy_(resized_crop(image, tuple(box), size, interpolation))
    return crops


def resize_by_products(
    images: UInt8[Tensor, "images 3 height width"], boxes: Int[Tensor, "images boxes 4"], size: int, interpolation: InterpolationMode
) -> UInt8[Tensor, "images boxes 3 size size"]:
    """`resized_crops` as two matrix products for each box: along its rows, rounded to 8 bits, then along its columns.

    crop[i, b, c] = round(down[i, b] @ round(images[i, c] @ across[i, b].T))
    """
    height, width = images.shape[-2:]
    top, left, rows, columns = boxes.unbind(-1)
    down = resizing_weights(top, rows, size, height, interpolation)  # [images, boxes, size, height]
    across = resizing_weights(left, columns, size, width, interpolation)  # [images, boxes, size, width]
    with torch.autocast(images.device.type, enabled=False):
        pixels = images.float().flatten(1, 2)  # [images, 3 height, width]
        narrow = _to_level(pixels @ across.flatten(1, 2).transpose(1, 2))  # [images, 3 height, boxes size]
        narrow = narrow.unflatten(1, (3, height)).unflatten(-1, (-1, size)).permute(0, 3, 2, 1, 4)  # [images, boxes, height, 3, size]
        small = _to_level(down @ narrow.flatten(3))  # [images, boxes, size, 3 size]
    return small.unflatten(-1, (3, size)).transpose(2, 3).to(torch.uint8)


def resizing_weights(
    start: Int[Tensor, "*boxes"], length: Int[Tensor, "*boxes"], size: int, full: int, interpolation: InterpolationMode
) -> Float[Tensor, "*boxes size full"]:
    """The share that each of `full` pixels has in each of `size`, into which `length` pixels from `start` on are resized.

        for k in range(size):
            center, stretch = (k + 0.5) * length / size, max(length / size, 1)
            for j in range(length):
                w[k, start + j] = filter((j + 0.5 - center) / stretch) if the pixel j is within support * stretch of the center
            w[k] /= w[k].sum()

    `filter` is the triangle (bilinear) or Keys' cubic with a = -0.5 (bicubic): Pillow's and torch's rule with antialias.
    """
    scale = (length.double() / size)[..., None, None]
    stretch = scale.clamp(min=1)
    reach = SUPPORT[interpolation] * stretch
    center = (torch.arange(size, device=start.device)[:, None] + 0.5) * scale  # [*boxes, size, 1]
    pixel = torch.arange(full, device=start.device) - start[..., None, None]  # [*boxes, 1, full]
    first = (center - reach + 0.5).floor().clamp(min=0)
    end = torch.minimum((center + reach + 0.5).floor(), length[..., None, None].double())
    distance = ((pixel + 0.5 - center) / stretch).abs()
    if interpolation is InterpolationMode.BICUBIC:
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0))
    else:
        weights = (1 - distance).clamp(min=0)
    weights = weights * ((pixel >= first) & (pixel < end))
    return (weights / weights.sum(dim=-1, keepdim=True)).float()


def _to_level(x: Tensor) -> Tensor:
    return x.add_(0.5).floor_().clamp_(0, 255)
