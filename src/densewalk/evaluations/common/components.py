"""Principal components of the patch features of a whole split, for evaluations by clustering."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Integer
from torch import Tensor

from densewalk.core import distributed
from densewalk.data.benchmarks.label_maps import Example
from densewalk.evaluations.common.dense_features import BATCH, DenseFeatures, reduce_masks, require_labelled
from densewalk.evaluations.common.shares import batches_of, in_order, rounds
from densewalk.ops.clustering import PrincipalComponents


def project_features(
    features: DenseFeatures, examples: Sequence[Example], split: str, components: int, mask_size: int, *, extra: int = 0
) -> tuple[Float[Tensor, "images rows columns kept"], Float[Tensor, "images extra rows columns"], Integer[Tensor, "images mask mask"]]:
    """Principal components of every patch, the last `extra` channels of the features as they are, and the reduced masks.

    Two passes, the second of which finds its features in the cache: those of all images together need not fit into memory. The
    processes share the images, and all get everything.
    """
    fitted, rest, masks = PrincipalComponents(), {}, {}
    passed = features.batches(examples, f"{split} 1/2")
    for number in range(rounds(len(batches_of(len(examples), BATCH)))):
        batch = next(passed, [])
        points = {i: maps[: len(maps) - extra].flatten(1).T.cpu() for maps, _, i in batch}
        if number == 0:
            fitted.begin(distributed.all_objects(points[0].double().mean(dim=0) if 0 in points else None)[0])
        for sums in in_order({i: fitted.sums_of(x) for i, x in points.items()}):
            fitted.add_sums(sums)
        for maps, mask, i in batch:
            rest[i] = maps[len(maps) - extra :].cpu().clone()  # a view would keep all features in memory
            masks[i] = reduce_masks(mask[None].cpu(), mask_size)[0]
    all_masks, ignored = in_order(masks), features.settings.ignored
    labelled = ignored is None or any(bool((mask != ignored).any()) for mask in all_masks)
    require_labelled(features.settings, labelled, len(all_masks), split)
    again = features.maps(examples, f"{split} 2/2")
    project = fitted.projection(components)
    projected = {i: project(maps[: len(maps) - extra].permute(1, 2, 0).cpu()) for maps, _, i in again}
    return torch.stack(in_order(projected)), torch.stack(in_order(rest)), torch.stack(all_masks)
