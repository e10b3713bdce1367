"""A replacement of `mmcv._ext`, so that mmcv-lite is enough where no compiler is.

mmcv's Python code looks up its compiled functions in the module `mmcv._ext`, which mmcv-lite lacks. The two functions that
UPerNet, Mask R-CNN and Cascade Mask R-CNN need, `nms` and `roi_align`, are in every torchvision wheel, for CPU and CUDA, and
give the same numbers to the bit. Any other operator fails with its name when it is called.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NoReturn

import torch
import torchvision
from jaxtyping import Float, Int
from torch import Tensor

NAME = "mmcv._ext"


def install() -> bool:
    """Install the replacement; False where a compiled mmcv, or the replacement, is there already."""
    if importlib.util.find_spec(NAME) is not None:
        return False
    module = Operators(NAME)
    module.__spec__ = ModuleSpec(NAME, loader=None)
    sys.modules[NAME] = module
    return True


def nms(boxes: Float[Tensor, "boxes 4"], scores: Float[Tensor, " boxes"], iou_threshold: float, offset: int = 0) -> Int[Tensor, " kept"]:
    """Indices of the boxes that no better-scored kept box overlaps by more than `iou_threshold`, best first.

    Args:
        boxes: x1, y1, x2, y2. offset: 1 for boxes whose x2 and y2 are the last pixel inside. Compared in float32.
    """
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torchvision.ops.nms(boxes.float(), scores.float(), iou_threshold)


def roi_align_forward(images: Tensor, rois: Tensor, output: Tensor, *_unused: Tensor, **options: Any) -> None:
    """Average-pooled RoIAlign of `rois` (image index, x1, y1, x2, y2), written to `output`; float32 inside, whatever the inputs."""
    scale, size, sampling = _average_pooling(**options)
    output.copy_(torch.ops.torchvision.roi_align(images.float(), rois.float(), scale, *size, *sampling))


def roi_align_backward(grad_output: Tensor, rois: Tensor, _y: Tensor, _x: Tensor, grad_images: Tensor, **options: Any) -> None:
    """The gradient of `roi_align_forward` with respect to the images, written to `grad_images`."""
    scale, size, sampling = _average_pooling(**options)
    gradient = torch.ops.torchvision._roi_align_backward
    grad_images.copy_(gradient(grad_output.float(), rois.float(), scale, *size, *grad_images.shape, *sampling))


def _average_pooling(
    *, aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool
) -> tuple[float, tuple[int, int], tuple[int, bool]]:
    """mmcv's options in the groups that torchvision takes."""
    if pool_mode != 1:
        _missing("roi_align with max pooling")
    return spatial_scale, (aligned_height, aligned_width), (sampling_ratio, aligned)


def _missing(name: str) -> NoReturn:
    raise NotImplementedError(
        f"mmcv operator '{name}' needs a compiled mmcv: replace mmcv-lite by mmcv 2.1.0 built for this torch (docs/environment.md)"
    )


class Operators(ModuleType):
    """A module that has every operator, most of which only say that they are missing."""

    nms = staticmethod(nms)
    roi_align_forward = staticmethod(roi_align_forward)
    roi_align_backward = staticmethod(roi_align_backward)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_args, **_kwargs: _missing(name)
