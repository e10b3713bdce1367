"""Tensors that say they are on a GPU and hold nothing (torch's FakeTensorMode): a mixture of devices is an error as on a real one."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

CUDA = torch.device("cuda", 0)


class Answers(TorchDispatchMode):
    """Answers what depends on values, which there are none of: numbers are those given, else 0; masks choose `chosen` of their places.

    Everything else is left to the mode below.
    """

    def __init__(self, numbers: list[float], chosen: int) -> None:
        super().__init__()
        self.numbers, self.chosen = cycle(numbers), chosen

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One operator."""
        name = function.overloadpacket._qualified_op_name
        if name == "aten::_local_scalar_dense":
            return next(self.numbers) if args[0].dtype == torch.float64 else 0
        if name == "aten::nonzero":
            return torch.empty(self.chosen, args[0].ndim, dtype=torch.int64, device=args[0].device)
        if name == "aten::bincount":
            return torch.empty((kwargs or {}).get("minlength", 0), dtype=torch.int64, device=args[0].device)
        if name == "aten::index":
            args = (args[0], [part for index in args[1] for part in self.places(index)])
        return function(*args, **(kwargs or {}))

    def places(self, index: Tensor | None) -> list[Tensor | None]:
        """An index, a mask as the numbers of its places."""
        if index is None or index.dtype != torch.bool:
            return [index]
        return [torch.empty(self.chosen, dtype=torch.int64, device=index.device) for _ in range(index.ndim)]


@contextmanager
def fake_gpu(numbers: list[float] | None = None, chosen: int = 10) -> Iterator[Answers]:
    """Inside the block new tensors are fake."""
    with FakeTensorMode(allow_non_fake_inputs=True), Answers(numbers or [0.0], chosen) as answers:
        yield answers


def put(module: nn.Module) -> nn.Module:
    """A module made outside, on the GPU; inside the block."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                part._parameters[name] = nn.Parameter(empty(value), requires_grad=value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = empty(value)
    return module


def arrived(batch: Any) -> Any:
    """A collated batch as the loop gives it to a method: pixels on the GPU, the rest on the CPU."""
    return tree_map_only(Tensor, lambda x: empty(x) if x.dtype == torch.uint8 else empty(x, "cpu"), batch)


def empty(x: Tensor, device: Any = CUDA) -> Tensor:
    """As `x`, without its values."""
    return torch.empty(x.shape, dtype=x.dtype, device=device)
