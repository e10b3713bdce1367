"""Predicted label maps after the refinement that the settings name: the one place where evaluations of label maps refine them.

    labels = refined_labels(settings, scores, example, device)          # [height, width], of scores [labels, height, width]
    masks = labels_of_patches(settings, clusters, examples, 448, device)    # [images, mask, mask], of label maps of patches

The image is read again, and squeezed to the size of the scores. There, without a refinement, the prediction would be the largest score.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional as TF

from densewalk.data.benchmarks import label_maps
from densewalk.data.benchmarks.label_maps import Example
from densewalk.evaluations.common.dense_features import reduce_masks
from densewalk.evaluations.common.label_map_settings import RefinedSettings, ValidationSettings
from densewalk.ops.pamr import pamr


def refined_labels(
    settings: RefinedSettings, scores: Float[Tensor, "labels height width"], example: Example
) -> Int[Tensor, "height width"]:
    """The label of largest refined score of each pixel, on the scores' device."""
    height, width = scores.shape[1:]
    square = label_maps.read_image(example).resize((width, height), Image.Resampling.BILINEAR)
    colors = TF.to_tensor(square).to(scores)
    lengths = {"iterations": settings.refine_iterations, "dilations": settings.refine_dilations}
    return pamr(colors[None], scores[None], **lengths)[0].argmax(0)  # type: ignore[arg-type]


def labels_of_patches(
    settings: ValidationSettings, labels: Int[Tensor, "images rows columns"], examples: Sequence[Example], size: int, device: str
) -> Int[Tensor, "images mask mask"]:
    """Label maps of patches in the masks' size by nearest neighbor; refined, if they are, at the size of the network's input.

    Args:
        size: side of the network's input in pixels.
    """
    if settings.refine is None:
        return reduce_masks(labels, settings.mask_size)
    found = []
    for own, example in zip(labels, examples, strict=True):
        present = own.unique()
        scores = (reduce_masks(own[None].to(device), size) == present.to(device)[:, None, None]).float()
        refined = refined_labels(settings, scores, example)
        found.append(present[reduce_masks(refined[None], settings.mask_size)[0].cpu()])
    return torch.stack(found)
