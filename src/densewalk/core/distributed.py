"""One process per device, started by torchrun; in one process all is the identity."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from densewalk.core.errors import UserError


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started (nccl on CUDA, gloo elsewhere) inside the block."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def local_device(name: str) -> torch.device:
    """The device called `name`; `auto`: this process's GPU if there is one, else the CPU. UserError without a GPU for `cuda`."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available():
        raise UserError("execution.device is cuda, and there is no GPU that torch can use here", todo="set it to auto or cpu")
    return torch.device(name, int(os.environ.get("LOCAL_RANK", "0"))) if name == "cuda" else torch.device(name)


@torch.no_grad()
def all_mean(x: Tensor) -> Tensor:
    """Mean of `x` over the processes, without gradient; all must call it with the same shape."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x / world_size()


@torch.no_grad()
def gathered(x: Tensor) -> Tensor:
    """The `x` of all processes, [processes, *shape]; all must call it with one shape."""
    if world_size() == 1:
        return x[None]
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.stack(parts)


def gathered_objects(x: Any) -> list[Any]:
    """What each process gives, of any kind, in process 0; nothing in the others. It goes from CPU to CPU, whatever the GPUs do."""
    if world_size() == 1:
        return [x]
    group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
    parts = [None] * world_size() if rank() == 0 else None
    dist.gather_object(x, parts, group=group)  # type: ignore[arg-type]
    return parts or []


def any_process(flag: bool, device: torch.device) -> bool:
    """True in all processes if the flag is set in at least one."""
    return bool(gathered(torch.tensor(float(flag), device=device)).any()) if world_size() > 1 else flag


@torch.no_grad()
def average_gradients(params: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the processes, in one message.

    With equal shares of the global batch and a loss that is a mean over samples, this is the gradient of the whole batch.
    A parameter without a gradient counts as zero, so that all processes send the same shapes.
    """
    if world_size() == 1:
        return
    params = [p for p in params if p.requires_grad]
    for p in params:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    flat = torch.cat([p.grad.flatten() for p in params])  # type: ignore[union-attr]
    dist.all_reduce(flat)
    flat /= world_size()
    for p, part in zip(params, flat.split([p.numel() for p in params]), strict=True):
        p.grad.copy_(part.view_as(p))  # type: ignore[union-attr]
