"""Memory that a training step keeps for its backward pass, counted on tensors without content, beside `densewalk plan`.

    python -m benchmarks.memory                    # all methods at the papers' share of the batch for one GPU
    python -m benchmarks.memory --small            # all methods on nano networks, in seconds
    python -m benchmarks.memory --methods NeCo

A whole step runs on tensors that say they are on a GPU and hold nothing (torch's FakeTensorMode), so that no GPU and no memory is needed.
Counted are all storages that the backward pass will read, each once. Weights, gradients, moments of the optimizer and frozen networks come
on top, and what is lost between blocks of different sizes, which nothing but a GPU tells. Autocast is that of a GPU, in float16, which is
as large as bfloat16: torch asks a GPU that is not there whether it has the latter. Attention keeps what a GPU's fused kernels keep: its
inputs, the result, and one number a row; without a GPU torch would choose the plain form, whose weights of all pairs are larger.
"""

import argparse
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from benchmarks.gpu.fake import CUDA, arrived, fake_gpu, put
from benchmarks.gpu.trainings import Training, shares, small
from torch import Tensor, nn
from torch.nn import functional as F

from densewalk.ops.soft_sort import loss as sorting
from densewalk.study.gpus import Share, gigabytes

GIB = 2**30
PRECISIONS = ("float32", "bfloat16")


class FusedAttention(torch.autograd.Function):
    """The result of attention, empty, and the tensors that a fused kernel saves."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """[b, heads, n, d] each."""
        result = torch.empty_like(queries)
        ctx.save_for_backward(queries, keys, values, result, queries.new_empty(queries.shape[:-1], dtype=torch.float32))
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        """Not asked for: what a forward pass saves is counted, and empty tensors have no gradients."""
        raise RuntimeError("attention on tensors without content has no backward pass")


def fused_attention(queries: Tensor, keys: Tensor, values: Tensor, **options: Any) -> Tensor:
    """In place of `F.scaled_dot_product_attention`; in float16 under autocast, as there."""
    if torch.is_autocast_enabled("cuda"):
        queries, keys, values = queries.half(), keys.half(), values.half()
    return FusedAttention.apply(queries, keys, values)


class Kept:
    """Bytes of the storages that the backward pass will read, without those of parameters."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = {p.untyped_storage()._cdata for p in module.parameters()}
        self.found: dict[int, int] = {}
        self.alive: list[Tensor] = []  # so that no storage's address is used twice

    def pack(self, x: Tensor) -> Tensor:
        """Note a tensor that is saved."""
        storage = x.untyped_storage()
        if storage._cdata not in self.parameters:
            self.found[storage._cdata] = storage.nbytes()
            self.alive.append(x)
        return x

    @property
    def bytes(self) -> int:
        """Of all storages."""
        return sum(self.found.values())


@contextmanager
def as_on_a_gpu(precision: str) -> Iterator[None]:
    """Autocast and fused attention where no GPU is."""
    with (
        patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        patch.object(F, "scaled_dot_product_attention", fused_attention),
        torch.autocast("cuda", dtype=torch.float16, enabled=precision != "float32"),
    ):
        yield


@contextmanager
def counted(module: nn.Module) -> Iterator[Kept]:
    """Count what is saved inside the block."""
    found = Kept(module)
    with torch.autograd.graph.saved_tensors_hooks(found.pack, lambda x: x):
        yield found


def empty_derivative(grad: Tensor, *others: Any) -> Tensor:
    """Sorting computes its derivative by the way, from values: here an empty one of the same size takes its place."""
    return grad.new_empty(others[2].n, grad.shape[1])


def kept(training: Training, precision: str) -> int:
    """Bytes that one step keeps."""
    batch, method = training.batch(), training.method().train()
    if hasattr(method, "sort_losses"):
        method.sort_losses = partial(method.sort_losses, backend="torch")
    numbers = [number for key, rows in batch.items() if "distortion" in key for number in rows.flatten().tolist()]
    with ExitStack() as stack:
        stack.enter_context(patch.object(sorting, "_compare_backward", empty_derivative))
        stack.enter_context(fake_gpu(numbers))
        put(method)
        views = method.prepare(arrived(batch), CUDA)
        stack.enter_context(as_on_a_gpu(precision))
        found = stack.enter_context(counted(method))
        method.step(views, 0, torch.Generator().manual_seed(0))
    return found.bytes


def main() -> None:
    """Print a row for each method and precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--methods", nargs="+", help="DINO, DoRA, NeCo, Time-Tuning")
    options = parser.parse_args()
    print("method, batch                precision   kept, GiB   plan, GiB   kept / plan   whole plan, GiB")
    for training in small() if options.small else shares():
        if options.methods and training.name not in options.methods:
            continue
        work, arch = training.settings.step_work(training.arch), training.arch
        for precision in PRECISIONS:
            whole = gigabytes(work, precision, Share(), arch)
            planned = (whole - gigabytes(replace(work, kept=0, outside=0), precision, Share(), arch)) * 1e9 / GIB
            found, name = kept(training, precision) / GIB, f"{training.name}, {training.settings.batch_size}"
            columns = f"{found:10.3f} {planned:11.3f} {found / planned:13.2f} {whole * 1e9 / GIB:17.2f}"
            print(f"{name:28} {precision:10} {columns}", flush=True)


if __name__ == "__main__":
    main()
