"""A network of the user's own, as evaluations see it: functions that give maps and vectors, and what they promise.

The module's own code runs as it is. A probe of one image compares what it gives with what was promised, before anything else runs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from densewalk.core.errors import UserError
from densewalk.core.imagenet import PixelStatistics
from densewalk.models.architecture import statistics_metadata
from densewalk.models.interface import Network

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class WrappedShape:
    """What the user promises of a network; see `Shape`."""

    name: str
    dim: int
    stride: int
    pooled_dim: int
    multiple: int
    statistics: PixelStatistics
    size: int | None = None
    heads: int = 0
    has_pooled: bool = True

    @property
    def level_dims(self) -> tuple[int, ...]:
        """No levels."""
        return ()

    @property
    def level_strides(self) -> tuple[int, ...]:
        """No levels."""
        return ()

    @property
    def abilities(self) -> frozenset[str]:
        """A map of features, and a vector for each image if there is a function for it."""
        return frozenset({"dense", "pooled"}) if self.has_pooled else frozenset({"dense"})

    @property
    def trainable(self) -> bool:
        """False: the methods train plain vision transformers."""
        return False

    def metadata(self) -> dict[str, str]:
        """The statistics."""
        return statistics_metadata(self.statistics)


class WrappedNetwork(Network):
    """`dense` and `pooled` by the user's functions; the module holds the weights."""

    def __init__(self, module: nn.Module, shape: WrappedShape, dense: Function, pooled: Function | None) -> None:
        super().__init__(shape)
        self.module = module
        self._dense, self._pooled = dense, pooled

    def weights(self) -> dict[str, Tensor]:
        """The module's own state."""
        return {name: value.detach().cpu().contiguous().clone() for name, value in self.module.state_dict().items()}

    def dense(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """The user's map, as float32."""
        return self._dense(images).float()

    def pooled(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch pooled_dim"]:
        """The user's vector, as float32."""
        if self._pooled is None:
            self._lacks("pooled")
        return self._pooled(images).float()

    @torch.no_grad()
    def probe(self) -> None:
        """Compare the maps and vectors of two random images, not square, with what was promised.

        Raises:
            UserError: another shape, another device, not floating point, not finite, or the same for both images.
        """
        rows, columns = 2 * max(1, self.multiple // self.stride), 3 * max(1, self.multiple // self.stride)
        height, width = (self.size, self.size) if self.size else (rows * self.stride, columns * self.stride)
        parameter = next(self.parameters(), torch.zeros(()))
        images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0)).to(parameter.device)
        mode = self.module.training
        self.module.eval()
        try:
            found = {"dense": self._dense(images), **({} if self._pooled is None else {"pooled": self._pooled(images)})}
        except Exception as error:  # the user's code: whatever it raises is said, with its own traceback as the cause
            raise UserError(f"{self.arch.name}: images of {height} x {width} px: {type(error).__name__}: {error}") from error
        finally:
            self.module.train(mode)
        shapes = {"dense": (2, self.dim, height // self.stride, width // self.stride), "pooled": (2, self.pooled_dim)}
        for name, value in found.items():
            self._require(name, value, shapes[name], images)

    def _require(self, name: str, value: object, shape: tuple[int, ...], images: Tensor) -> None:
        """Raise UserError unless `value` is what `name` promises for these images."""
        size = " x ".join(str(side) for side in images.shape[-2:])
        who = f"{self.arch.name}: {name} of 2 images of {size} px"
        if not isinstance(value, Tensor):
            raise UserError(f"{who} is a {type(value).__name__}", allowed=f"a tensor of shape {shape}")
        if tuple(value.shape) != shape:
            hint = f"dim {self.dim} and stride {self.stride}" if name == "dense" else f"pooled_dim {self.pooled_dim}"
            raise UserError(
                f"{who} has shape {tuple(value.shape)}", allowed=f"{shape}, by {hint}", todo="correct these numbers or the function"
            )
        if value.device != images.device:
            raise UserError(f"{who} is on {value.device}", allowed=f"the images' device, {images.device}")
        if not value.is_floating_point():
            raise UserError(f"{who} holds {str(value.dtype).removeprefix('torch.')}", allowed="floating-point numbers")
        if not value.isfinite().all():
            raise UserError(f"{who} holds NaN or infinite numbers", todo="check the weights, and the precision")
        if torch.equal(value[0], value[1]):
            raise UserError(f"{who} is the same for both, although they differ", todo="check that the function uses the images")
