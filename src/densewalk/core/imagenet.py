"""Mean and standard deviation of pixels, by channel, for images in 0..1: ImageNet's, and those of any network."""

from typing import NamedTuple, Self

Channels = tuple[float, float, float]
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class PixelStatistics(NamedTuple):
    """What a network's images are normalized with: (x - mean) / std, for red, green and blue in 0..1."""

    mean: Channels
    std: Channels

    def with_imagenet_std(self, channel: int, value: float) -> Self:
        """The same with another standard deviation of one channel, as released code has it by mistake; only ImageNet's change."""
        if self != IMAGENET:
            return self
        std = list(self.std)
        std[channel] = value
        return self._replace(std=(std[0], std[1], std[2]))


IMAGENET = PixelStatistics(IMAGENET_MEAN, IMAGENET_STD)
