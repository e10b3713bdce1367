"""Principal components of the patch features of a whole split, for evaluations by clustering."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from densewalk.data.benchmarks.label_maps import Example
from densewalk.evaluations.common.dense_features import DenseFeatures, reduce_masks, require_labelled
from densewalk.ops.clustering import PrincipalComponents


def project_features(
    features: DenseFeatures, examples: Sequence[Example], split: str, components: int, mask_size: int, *, extra: int = 0
) -> tuple[Float[Tensor, "images rows columns kept"], Float[Tensor, "images extra rows columns"], Integer[Tensor, "images mask mask"]]:
    """Principal components of every patch, the last `extra` channels of the features as they are, and the reduced masks.

    Two passes, the second of which finds its features in the cache: those of all images together need not fit into memory.
    """
    fitted, rest, masks = PrincipalComponents(), [], []
    for maps, mask, _ in features.maps(examples, f"{split} 1/2"):
        kept = len(maps) - extra
        fitted.add(maps[:kept].flatten(1).T.cpu())
        rest.append(maps[kept:].cpu().clone())  # a view would keep all features in memory
        masks.append(reduce_masks(mask[None].cpu(), mask_size)[0])
    ignored = features.settings.ignored
    require_labelled(features.settings, ignored is None or any(bool((mask != ignored).any()) for mask in masks), len(masks), split)
    again = features.maps(examples, f"{split} 2/2")
    project = fitted.projection(components)
    points = [project(maps[: len(maps) - extra].permute(1, 2, 0).cpu()) for maps, _, _ in again]
    return torch.stack(points), torch.stack(rest), torch.stack(masks)
