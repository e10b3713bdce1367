"""The two losses of contextual information separation.

rho(d, w) = sum over pixels and components of w sqrt(d^2 + 1e-6)
a = rho(u - I(x, u (1 - m), m), m)                  the flow inside, told by the flow outside
b = rho(u - I(x, u m, 1 - m), 1 - m)                the flow outside, told by the flow inside
e(w) = rho(u - I(x, 0, everything hidden), w)       told by the image alone
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Flow = Float[Tensor, "batch 2 height width"]
Mask = Float[Tensor, "batch 1 height width"]
PerImage = Float[Tensor, " batch"]
SQUARE = 1e-6


@dataclass(frozen=True)
class Predictions:
    """Flow that the inpainter predicts. inside: from what is outside of the mask; outside: the reverse; image: with all flow hidden."""

    inside: Flow
    outside: Flow
    image: Flow


@dataclass(frozen=True)
class Errors:
    """Sums of each image: a, b, e(m), e(1 - m) and e(1) of the module's docstring."""

    inside: PerImage
    outside: PerImage
    image_inside: PerImage
    image_outside: PerImage
    image: PerImage


def rho(difference: Flow, weight: Mask) -> PerImage:
    """sum over pixels and components of w sqrt(d^2 + 1e-6), of each image."""
    return (weight * (difference.square() + SQUARE).sqrt()).sum(dim=(1, 2, 3))


def errors_of(flow: Flow, mask: Mask, predicted: Predictions) -> Errors:
    """The errors of the three predictions, weighted by the mask or what it leaves."""
    by_image = flow - predicted.image
    return Errors(
        inside=rho(flow - predicted.inside, mask),
        outside=rho(flow - predicted.outside, 1 - mask),
        image_inside=rho(by_image, mask),
        image_outside=rho(by_image, 1 - mask),
        image=rho(by_image, torch.ones_like(mask)),
    )


def inpainter_loss(errors: Errors, pixels: int) -> Float[Tensor, ""]:
    """mean over images of (a + b + e(1)) / pixels."""
    return (errors.inside + errors.outside + errors.image).mean() / pixels


def generator_loss(errors: Errors, epsilon: float) -> Float[Tensor, ""]:
    """mean of 1 - a / (e(m) + epsilon), plus mean of 1 - b / (e(1 - m) + epsilon): the shares of flow that the other side explains."""
    inside = 1 - errors.inside / (errors.image_inside + epsilon)
    outside = 1 - errors.outside / (errors.image_outside + epsilon)
    return inside.mean() + outside.mean()
