"""Draw how an image is flipped, colored and blurred: numbers that are drawn where it is read and applied where it is learned from.

    distortion = draw_distortion(Generator().manual_seed(item.seed))
    rows = to_rows([distortion, ...])            # in the sample, next to the crops
    views = distort(crops, rows)                 # colors.py, on the device

A sample's numbers follow from its seed alone, whichever process draws them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Generator, Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # the changes of a color jitter, as `Distortion` names them
NOTHING = -1.0


class Distortion(NamedTuple):
    """Changes of one image, in the order in which they are made; as they stand, the image stays as it is."""

    flip: float = 0.0  # 1: left and right exchanged
    first: float = NOTHING  # the changes of the jitter in their random order
    second: float = NOTHING
    third: float = NOTHING
    fourth: float = NOTHING
    brightness: float = 1.0  # factors
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0  # turns; 0.5 is the opposite color
    gray: float = 0.0
    blur: float = 0.0  # radius in pixels
    solarize: float = 0.0


def to_rows(distortions: Sequence[Distortion]) -> Float64[Tensor, "images columns"]:
    """Distortions as a tensor, so that samples can be collated."""
    return torch.tensor(distortions, dtype=torch.float64).view(-1, len(Distortion._fields))


def uniform(low: float, high: float, generator: Generator) -> float:
    """Draw a number in [low, high)."""
    return torch.empty(1).uniform_(low, high, generator=generator).item()


def maybe(p: float, generator: Generator) -> bool:
    """Draw True with probability `p`."""
    return torch.rand(1, generator=generator).item() < p


def draw_distortion(generator: Generator, *, strength: float = 1.0) -> Distortion:
    """Draw colors and blur as Leopart, NeCo and Time-Tuning do.

    Jitter of brightness, contrast and saturation by 0.8 and hue by 0.2 (times `strength`) with probability 0.8, gray with
    probability 0.2, Gaussian blur of radius U(0.1, 2) with probability 0.5. No flip, no solarization.
    """
    drawn = Distortion()
    if maybe(0.8, generator):
        drawn = draw_jitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength, generator)
    gray = maybe(0.2, generator)
    # one number decides whether to blur and how much; in the released code the radius comes from another generator: like this
    # the crops that follow are the same as there
    draw = torch.rand(1, generator=generator).item()
    return drawn._replace(gray=gray, blur=0.1 + draw / 0.5 * (2.0 - 0.1) if draw < 0.5 else 0.0)


def draw_jitter(brightness: float, contrast: float, saturation: float, hue: float, generator: Generator) -> Distortion:
    """Draw a color jitter: brightness, contrast, saturation and hue in random order.

    Factors are uniform in [max(0, 1 - x), 1 + x] for the first three; the hue moves by U(-hue, hue) turns.
    """
    first, second, third, fourth = torch.randperm(4, generator=generator).tolist()
    b, c, s = (uniform(max(0.0, 1 - x), 1 + x, generator) for x in (brightness, contrast, saturation))
    turn = uniform(-hue, hue, generator)
    return Distortion(0.0, first, second, third, fourth, brightness=b, contrast=c, saturation=s, hue=turn)
