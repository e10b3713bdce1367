"""Losses of depth maps; pixels without a true value (0) count for nothing."""

import torch
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-3  # meters, inside the logarithms
MEAN_WEIGHT = 0.15
STRIDES = (1, 2, 4, 6)
Maps = Float[Tensor, "batch 1 height width"]


def sig_loss(predicted: Maps, true: Maps, *, variance: bool) -> Float[Tensor, ""]:
    """The scale-invariant loss in logarithms over all pixels of all images together.

        g = log(p + 0.001) - log(t + 0.001)                where t > 0
        loss = sqrt(var(g) + 0.15 mean(g)^2)               var with n - 1; without it while `variance` is False

    Fewer than two pixels with a value have loss 0.
    Source: AdaBins (https://arxiv.org/abs/2011.14141), after Eigen et al. (https://arxiv.org/abs/1406.2283), equation 4.
    """
    valid = true > 0
    g = torch.log(predicted[valid] + EPSILON) - torch.log(true[valid] + EPSILON)
    if len(g) < 2:
        return predicted.sum() * 0.0
    square = MEAN_WEIGHT * g.mean().square()
    return torch.sqrt(g.var() + square if variance else square)


def gradient_loss(predicted: Maps, true: Maps) -> Float[Tensor, ""]:
    """Differences of neighboring pixels of log p - log t at four strides.

        for s in 1, 2, 4, 6:   p, t = every s-th row and column;   m = t > 0;   d = m (log(p + 0.001) - log(t + 0.001))
            loss += (sum |d[y] - d[y + 2]| m[y] m[y + 2] + sum |d[x] - d[x + 2]| m[x] m[x + 2]) / sum m

    Source: DINOv2's gradientloss.py with the axes that were meant, after MegaDepth (https://arxiv.org/abs/1804.00607), equation 5.
    """
    total = predicted.sum() * 0.0
    for stride in STRIDES:
        p, t = (x[:, 0, ::stride, ::stride] for x in (predicted, true))
        m = (t > 0).to(p.dtype)
        d = m * (torch.log(p + EPSILON) - torch.log(t + EPSILON))
        down = ((d[:, :-2] - d[:, 2:]).abs() * m[:, :-2] * m[:, 2:]).sum()
        across = ((d[:, :, :-2] - d[:, :, 2:]).abs() * m[:, :, :-2] * m[:, :, 2:]).sum()
        total = total + (down + across) / m.sum().clamp(min=1)
    return total


def batch_loss(predicted: Maps, true: Maps, group: int, *, variance: bool, gradients: bool) -> Float[Tensor, ""]:
    """Mean over groups of `group` consecutive images of SigLoss, plus half the gradient loss where asked for."""
    losses = []
    for p, t in zip(predicted.split(group), true.split(group), strict=True):
        loss = sig_loss(p, t, variance=variance)
        losses.append(loss + 0.5 * gradient_loss(p, t) if gradients else loss)
    return torch.stack(losses).mean()
