"""Reference patches that neighbors are sorted against."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Generator, Tensor

from densewalk.core import distributed
from densewalk.methods.neco.alignment import Covered, Learned, select_pairs
from densewalk.methods.neco.settings import NecoSettings


def sample_indices(pool: int, count: int, generator: Generator) -> Int[Tensor, " count"]:
    """`count` of the numbers below `pool` in random order, from the start again where there are fewer."""
    order = torch.randperm(pool, generator=generator, device=generator.device)
    return order.repeat(-(-count // pool))[:count]


def over_processes(x: Shaped[Tensor, "..."], dim: int) -> Shaped[Tensor, "..."]:
    """Every process's `x` one after the other along dimension `dim`; of a single process `x` itself, with its graph."""
    if distributed.world_size() == 1:
        return x
    sent = x.to(torch.uint8) if x.dtype == torch.bool else x
    return torch.cat(distributed.gathered(sent).unbind(), dim).to(x.dtype)


def candidates(covered: Covered, pairs: Sequence[tuple[int, int]], settings: NecoSettings) -> list[Int[Tensor, " allowed"]]:
    """For each pair the numbers, image * patches + patch, of the patches that may be references: those in the mask, or all if none is.

    With `shifted_mask_rows`, the batch's masks are taken from a list by image, then view, as if it were by view, then image.
    """
    batch = len(covered)
    if settings.shifted_mask_rows:
        masks = torch.stack([covered[:, i].flatten(0, 1)[batch * i : batch * (i + 1)] for i, _ in pairs])
    else:
        masks = select_pairs(covered, pairs)
    masks = masks.flatten(1)
    masks = masks | ~masks.any(dim=1, keepdim=True)
    return [mask.nonzero()[:, 0] for mask in masks]


def even_weights(learned: Learned) -> Float[Tensor, "pairs batch patches"]:
    """Weights of the mean over pairs of the means over their patches, leaving out pairs without any."""
    counts = learned.flatten(1).sum(dim=1)
    return learned / (counts.clamp(min=1) * (counts > 0).sum().clamp(min=1))[:, None, None]
