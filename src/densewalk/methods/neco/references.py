"""Reference patches that neighbors are sorted against."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Generator, Tensor
from torch.nn import functional as F

from densewalk.core import distributed
from densewalk.methods.neco.alignment import Covered, Learned, select_pairs
from densewalk.methods.neco.settings import NecoSettings


def sample_indices(pool: int, count: int, generator: Generator) -> Int[Tensor, " count"]:
    """`count` of the numbers below `pool` in random order, from the start again where there are fewer."""
    order = torch.randperm(pool, generator=generator, device=generator.device)
    return order.repeat(-(-count // max(1, pool)))[:count]


def over_processes(x: Shaped[Tensor, "..."], dim: int) -> Shaped[Tensor, "..."]:
    """Every process's `x` one after the other along dimension `dim`; of a single process `x` itself, with its graph."""
    if distributed.world_size() == 1:
        return x
    sent = x.to(torch.uint8) if x.dtype == torch.bool else x
    return torch.cat(distributed.gathered(sent).unbind(), dim).to(x.dtype)


def gather_rows(rows: Float[Tensor, "own out"], most: int) -> Float[Tensor, "all out"]:
    """Every process's rows one after the other, up to `most` of each; their numbers may differ."""
    if distributed.world_size() == 1:
        return rows
    counts = distributed.gathered(torch.tensor([len(rows)], device=rows.device))[:, 0].tolist()
    padded = distributed.gathered(F.pad(rows, (0, 0, 0, most - len(rows))))
    return torch.cat([part[:count] for part, count in zip(padded, counts, strict=True)])


def reference_masks(covered: Covered, pairs: Sequence[tuple[int, int]], settings: NecoSettings) -> Bool[Tensor, "pairs batch_patches"]:
    """The patches, image * patches + patch, that the mask allows as references of each pair.

    With `shifted_mask_rows`, the batch's masks are taken from a list by image, then view, as if it were by view, then image.
    """
    batch = len(covered)
    if settings.shifted_mask_rows:
        return torch.stack([covered[:, i].flatten(0, 1)[batch * i : batch * (i + 1)] for i, _ in pairs]).flatten(1)
    return select_pairs(covered, pairs).flatten(1)


def candidates(covered: Covered, pairs: Sequence[tuple[int, int]], settings: NecoSettings) -> list[Int[Tensor, " allowed"]]:
    """For each pair the numbers of the patches that may be references: those in the mask, or all if none is and the pair is not skipped."""
    masks = reference_masks(covered, pairs, settings)
    if not settings.skip_pairs_without_references:
        masks = masks | ~masks.any(dim=1, keepdim=True)
    return [mask.nonzero()[:, 0] for mask in masks]


def even_weights(learned: Learned, *, all_pairs: bool = False) -> Float[Tensor, "pairs batch patches"]:
    """Weights of the mean over pairs of the means over their patches: over pairs with a patch, or `all_pairs`, 0 for those without.

    Patches are those of all processes: the mean of the processes' sums is the mean over the whole batch.
    """
    counts = distributed.all_sum(learned.flatten(1).sum(dim=1))
    pairs = len(learned) if all_pairs else (counts > 0).sum().clamp(min=1)
    return learned * distributed.world_size() / (counts.clamp(min=1) * pairs)[:, None, None]
