"""A network of the user's own, as evaluations see it: functions that give maps and vectors, and what they promise.

The module's own code runs as it is. A probe of one image compares what it gives with what was promised, before anything else runs.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from densewalk.core.errors import UserError
from densewalk.core.imagenet import IMAGENET_MEAN, IMAGENET_STD, Channels, PixelStatistics
from densewalk.models.architecture import statistics_metadata
from densewalk.models.interface import Network
from densewalk.models.layouts.content import require_same_keys

Function = Callable[[Tensor], Tensor]
PROBED = 16  # numbers of a map that are kept


@dataclass(frozen=True)
class WrappedShape:
    """What the user promises of a network; see `Shape`.

    source: sha256 of the file whose function built it, if one did (own_network.py). seed: torch's, when it was built.
    """

    name: str
    dim: int
    stride: int
    pooled_dim: int
    multiple: int
    statistics: PixelStatistics
    size: int | None = None
    heads: int = 0
    has_pooled: bool = True
    source: str | None = None
    seed: int = 0

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
        """The statistics, and by which code the network is built again."""
        built = {} if self.source is None else {"source": self.source, "seed": str(self.seed)}
        return {**built, **statistics_metadata(self.statistics)}


class WrappedNetwork(Network):
    """`dense` and `pooled` by the user's functions; the module holds the weights.

    Attributes:
        probed: some numbers of the map of the probe's first image, by which a changed network is noticed.
    """

    arch: WrappedShape

    def __init__(self, module: nn.Module, shape: WrappedShape, dense: Function, pooled: Function | None) -> None:
        super().__init__(shape)
        self.module = module
        self.probed = torch.zeros(0)
        self._dense, self._pooled = dense, pooled

    def weights(self) -> dict[str, Tensor]:
        """The module's own state, in its own precision."""
        state: Mapping[str, object] = self.module.state_dict()
        if other := [name for name, value in state.items() if not isinstance(value, Tensor)]:
            raise UserError(f"{self.arch.name}: {other[0]} in its state is no tensor", todo="keep tensors alone in the module's state_dict")
        return {name: value.detach().cpu().contiguous().clone() for name, value in state.items() if isinstance(value, Tensor)}

    def take_weights(self, weights: Mapping[str, Tensor], source: str) -> None:
        """Take over a whole state dict; UserError with what is missing, left over or misshapen."""
        require_same_keys(self.module.state_dict(), weights, source=source)
        self.module.load_state_dict(weights)

    def metadata(self) -> dict[str, str]:
        """The shape's, and for a network that is built again, some of its features."""
        return self.arch.metadata() | ({} if self.arch.source is None else {"probe": json.dumps(self.probed.tolist())})

    def dense(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch dim rows columns"]:
        """The user's map, as float32."""
        return _usable(self._dense(images))

    def pooled(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch pooled_dim"]:
        """The user's vector, as float32."""
        if self._pooled is None:
            self._lacks("pooled")
        return _usable(self._pooled(images))

    @torch.no_grad()
    def probe(self) -> None:
        """Compare the maps and vectors of two random images, not square, with what was promised.

        Raises:
            UserError: another shape, another device, not floating point, not finite, or the same for both images.
        """
        unit = math.lcm(self.multiple, self.stride)
        height, width = (self.size, self.size) if self.size else (2 * unit, 3 * unit)
        parameter = next(self.parameters(), torch.zeros(()))
        images = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0)).to(parameter.device)
        mode = self.module.training
        try:
            self.module.eval()
        except RecursionError as error:
            raise UserError(f"{self.arch.name}: the module contains itself", todo="keep such a reference out of its modules") from error
        try:
            found = {"dense": self._dense(images), **({} if self._pooled is None else {"pooled": self._pooled(images)})}
        except Exception as error:  # the user's code: whatever it raises is said, with its own traceback as the cause
            raise UserError(f"{self.arch.name}: images of {height} x {width} px: {type(error).__name__}: {error}") from error
        finally:
            self.module.train(mode)
        shapes = {"dense": (2, self.dim, height // self.stride, width // self.stride), "pooled": (2, self.pooled_dim)}
        for name, value in found.items():
            self._require(name, value, shapes[name], images)
        values = found["dense"][0].float().flatten().cpu()
        self.probed = values[torch.linspace(0, len(values) - 1, PROBED).long()].clone()

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


def _usable(values: Tensor) -> Tensor:
    """float32, also for heads that are trained on it where the user's function worked in inference mode."""
    values = values.float()
    return values.clone() if values.is_inference() and not torch.is_inference_mode_enabled() else values


def wrap(
    module: nn.Module,
    *,
    dense: Any,
    stride: Any,
    dim: Any,
    pooled: Any = None,
    pooled_dim: Any = None,
    multiple: Any = None,
    size: Any = None,
    mean: Any = IMAGENET_MEAN,
    std: Any = IMAGENET_STD,
    name: str | None = None,
) -> WrappedNetwork:
    """The network by the user's functions, after a probe; see `densewalk.wrap`. What the user gives is checked here."""
    name = name or type(module).__name__
    numbers = {"stride": stride, "dim": dim, "pooled_dim": pooled_dim, "multiple": multiple, "size": size}
    for key, value in numbers.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise UserError(f"{name}: {key} is {value!r}", allowed="a whole number above 0")
    for key, function in {"dense": dense, "pooled": pooled}.items():
        if function is not None and not callable(function):
            raise UserError(f"{name}: {key} is a {type(function).__name__}", allowed="a function of images")
    shape = WrappedShape(
        name=name,
        dim=dim,
        stride=stride,
        pooled_dim=pooled_dim or dim,
        multiple=multiple or stride,
        statistics=PixelStatistics(_channels(name, "mean", mean), _channels(name, "std", std)),
        size=size,
        has_pooled=pooled is not None,
    )
    network = WrappedNetwork(module, shape, dense, pooled)
    network.probe()
    return network


def _channels(name: str, key: str, values: Any) -> Channels:
    """Three numbers for red, green and blue."""
    try:
        red, green, blue = (float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {key} is {values!r}", allowed="three numbers, for red, green and blue") from error
    if not all(map(math.isfinite, (red, green, blue))) or (key == "std" and min(red, green, blue) <= 0):
        raise UserError(f"{name}: {key} is {values!r}", allowed="finite numbers" + ("" if key == "mean" else " above 0"))
    return red, green, blue
