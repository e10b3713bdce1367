"""The loss on masked patches."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def masked_places(masks: Bool[Tensor, "views batch patches"]) -> tuple[Int[Tensor, " masked"], Float[Tensor, " masked"]]:
    """Places of masked patches among those of all views, and the weight of each in the loss.

    Weights are 1 / (views batch masked patches of its view): a view without masks counts as one whose loss is 0.
    """
    counts = masks.sum(dim=-1, keepdim=True).clamp(min=1)
    weights = (1 / (counts * masks.shape[0] * masks.shape[1])).expand(masks.shape)
    return masks.flatten().nonzero()[:, 0], weights[masks]


def patch_loss(
    targets: Float[Tensor, "masked protos"], logits: Float[Tensor, "masked protos"], weights: Float[Tensor, " masked"], temperature: float
) -> Float[Tensor, ""]:
    """Mean over all views of the mean cross-entropy over a view's masked patches, in float32.

    for view in all global views of all images:
        for i in masked(view):
            loss -= sum_o targets[view, i, o] log softmax(logits[view, i] / temperature)[o] / max(1, |masked(view)|) / views
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float() / temperature
        entropies = logits.logsumexp(dim=-1) - (targets.float() * logits).sum(dim=-1)
        return (weights * entropies).sum()
