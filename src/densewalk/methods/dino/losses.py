"""Losses of DINO."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Targets = Float[Tensor, "targets batch protos"]
Logits = Float[Tensor, "views batch protos"]


def cross_entropies(targets: Targets, logits: Logits, temperature: float) -> Float[Tensor, "targets views batch"]:
    """Cross-entropy of every target distribution with every view's prediction, in float32.

    for q, v, b:  result[q, v, b] = - sum_o targets[q, b, o] log softmax(logits[v, b] / temperature)[o]
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits.float() / temperature
        return logits.logsumexp(dim=-1) - torch.einsum("qbo,vbo->qvb", targets.float(), logits)


def dino_loss(targets: Targets, logits: Logits, temperature: float) -> Float[Tensor, ""]:
    """Mean cross-entropy over all pairs of different views; the first views are those the targets were made from."""
    entropies = cross_entropies(targets, logits, temperature).mean(dim=-1)
    same = torch.eye(*entropies.shape, dtype=torch.bool, device=entropies.device)
    return entropies[~same].mean()


def mean_koleo(groups: Float[Tensor, "groups batch dim"]) -> Float[Tensor, ""]:
    """Mean of `koleo` over groups of features."""
    return torch.stack([koleo(group) for group in groups]).mean()


def koleo(features: Float[Tensor, "batch dim"]) -> Float[Tensor, ""]:
    """Spread the features over the sphere: - mean_i log(|x_i - x_nn(i)| + 1e-8), x normalized, nn the nearest other feature.

    Raises:
        ValueError: there is no other feature.
    """
    if len(features) < 2:
        raise ValueError("KoLeo needs at least two images per process")
    with torch.autocast(features.device.type, enabled=False):
        x = F.normalize(features.float(), dim=-1)
        with torch.no_grad():
            nearest = (x @ x.T).fill_diagonal_(-torch.inf).argmax(dim=1)
        return -((x - x[nearest]).norm(dim=-1) + 1e-8).log().mean()


def teacher_entropies(targets: Float[Tensor, "*batch protos"]) -> dict[str, Tensor]:
    """Entropy in nats of the targets (low: sure) and of their mean (low: collapsed onto few prototypes); both at most ln protos."""
    mean = targets.flatten(0, -2).mean(dim=0)
    return {"teacher_entropy": torch.special.entr(targets).sum(dim=-1).mean(), "teacher_mean_entropy": torch.special.entr(mean).sum()}
