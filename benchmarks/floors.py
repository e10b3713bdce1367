"""What a computation cannot be faster than on this machine: its matrix products alone, or moving its bytes.

    with Products() as products:
        step()
    products.seconds()                     # of the same products, one by one, each by the fastest way that torch has
    bandwidth()                            # bytes a second, read and written

Products are those that the computation asks for: what it computes twice, such as attention in a backward pass, is counted twice.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from benchmarks.measure import Told
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from densewalk.ops.cpu.linear import HAS_ONEDNN, onednn_product

Shape = tuple[int, int, int, int]  # batch, rows, inner, columns
LEAST_SECONDS = 2e-3  # of a measurement: shorter products are repeated


class Products(TorchDispatchMode):
    """Counts the matrix products of what runs inside, by their shapes; convolutions as the products of their windows."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[tuple[Shape, torch.dtype]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for shape in shapes_of(function.overloadpacket.__name__, args, result):
            if min(shape) > 0:
                self.found[shape, next(x for x in args if isinstance(x, Tensor)).dtype] += 1
        return result

    @property
    def operations(self) -> float:
        """Multiplications and additions."""
        return sum(2.0 * math.prod(shape) * count for (shape, _), count in self.found.items())

    def seconds(self) -> float:
        """CPU seconds of all products, each kind measured alone."""
        return sum(count * product_seconds(shape, dtype) for (shape, dtype), count in self.found.items())


def shapes_of(name: str, args: Any, result: Any) -> list[Shape]:
    """The products of one operation of torch."""
    match name:
        case "mm" | "bmm" | "matmul":
            return [product_shape(args[0], args[1])]
        case "addmm" | "baddbmm":
            return [product_shape(args[1], args[2])]
        case "linear" | "_linear_pointwise":
            return [(1, args[0].numel() // args[0].shape[-1], args[0].shape[-1], args[1].shape[0])]
        case "convolution":
            return [windows(result, args[1])]
        case "convolution_backward":
            return [windows(args[0], args[2])] * sum(args[-1][:2])
        case "_scaled_dot_product_flash_attention_for_cpu":
            return attention(args[0], args[1], times=1)
        case "_scaled_dot_product_flash_attention_for_cpu_backward":
            return attention(args[1], args[2], times=2)
    return []


def product_shape(one: Tensor, other: Tensor) -> Shape:
    """Of [batch, rows, inner] and [batch, inner, columns], both without batch, or a vector."""
    if one.ndim < 2 or other.ndim < 2:
        return (0, 0, 0, 0)
    return (math.prod(one.shape[:-2]), one.shape[-2], one.shape[-1], other.shape[-1])


def windows(result: Tensor, weight: Tensor) -> Shape:
    """A convolution as a product: windows of all places times the weights of all channels."""
    return (1, result.numel() // result.shape[1], weight[0].numel(), weight.shape[0])


def attention(query: Tensor, key: Tensor, times: int) -> list[Shape]:
    """Scores and their mixture; each has two products in the backward pass, without the scores' own that are computed again."""
    images, heads, rows, dim = query.shape
    return [(images * heads, rows, dim, key.shape[2]), (images * heads, rows, key.shape[2], dim)] * times


def product_seconds(shape: Shape, dtype: torch.dtype) -> float:
    """CPU seconds of one product of this shape, by the fastest way."""
    batch, rows, inner, columns = shape
    one, other = torch.randn(batch, rows, inner, dtype=dtype), torch.randn(batch, columns, inner, dtype=dtype)
    ways: list[Callable[[], Tensor]] = [lambda: torch.bmm(one, other.transpose(1, 2))]
    if batch == 1:
        ways = [lambda: F.linear(one[0], other[0])]
        if HAS_ONEDNN and dtype == torch.float32:
            ways.append(lambda: onednn_product(one[0], other[0]))
    with torch.no_grad():
        return min(steady_seconds(way) for way in ways)


def steady_seconds(run: Callable[[], object], repeat: int = 3) -> float:
    """The median CPU seconds of a run, of as many in a row as can be measured."""
    run()
    begun = time.process_time()
    run()
    count = max(1, math.ceil(LEAST_SECONDS / max(1e-7, time.process_time() - begun)))
    taken = []
    for _ in range(repeat):
        begun = time.process_time()
        for _ in range(count):
            run()
        taken.append((time.process_time() - begun) / count)
    return median(taken)


def bandwidth(mebibytes: int = 256) -> float:
    """Bytes a second of a copy of so much, reading and writing counted."""
    source = torch.ones(mebibytes << 18)
    target = torch.zeros_like(source)
    return 2 * source.nbytes / steady_seconds(lambda: target.copy_(source))


def product_rate() -> float:
    """Operations a second of a product of 2,048 rows in the sizes of ViT-S."""
    shape = (1, 2048, 384, 1536)
    return 2 * math.prod(shape) / product_seconds(shape, torch.float32)


def step_floor(products: Products, updated: int) -> Told:
    """Of a training step: its products, and moving the bytes of its update."""
    return Told(lambda: products.seconds() + updated / bandwidth())


def update_bytes(method: Any) -> int:
    """AdamW reads a value, its gradient and two moments, and writes three of them; a teacher's average reads two and writes one."""
    learned = sum(p.numel() for p in method.parameters() if p.requires_grad)
    followed = sum(p.numel() for p in method.parameters() if not p.requires_grad)
    return 4 * (7 * learned + 3 * followed)
