"""One process per device, started by torchrun; in one process all is the identity."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
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
def process_group(device: torch.device, *, patience: timedelta | None = None) -> Iterator[None]:
    """Join the processes that torchrun started inside the block: nccl for tensors on CUDA, gloo for all others.

    patience: how long a process waits for the others before it fails; None: as torch has it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=patience)
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


def summed(x: Tensor) -> Tensor:
    """Sum of `x` over the processes, with gradient; all must call it with the same shape, and go back through it.

    The gradient is that of the sum of all processes' losses: with gradients averaged over processes, that of their mean loss.
    """
    if world_size() == 1:
        return x
    from torch.distributed.nn.functional import all_reduce

    total: Tensor = all_reduce(x.contiguous())
    return total


def gathered_with_gradient(x: Tensor) -> Tensor:
    """The `x` of all processes, [processes, *shape], with the gradient of `summed`; all must call it with one shape."""
    return summed(torch.stack([x if number == rank() else torch.zeros_like(x) for number in range(world_size())]))


def local_part(x: Tensor) -> Tensor:
    """What this process holds of a sharded tensor (training/processes/sharding.py); any other as it is."""
    return x.to_local() if hasattr(x, "to_local") else x


def norms(tensors: list[Tensor]) -> list[Tensor]:
    """The 2-norm of each; all processes must call it with the same ones, which may be sharded."""
    if not any(hasattr(x, "to_local") for x in tensors):
        return list(torch._foreach_norm(tensors))
    return [torch.linalg.vector_norm(x).full_tensor() if hasattr(x, "to_local") else x.norm() for x in tensors]


@torch.no_grad()
def clip_together(params: Iterable[nn.Parameter], most: float) -> None:
    """Scale all gradients by one factor if the norm of all together exceeds `most`; all processes must call it."""
    learned = [p for p in params if p.grad is not None]
    gradients = [p.grad for p in learned if p.grad is not None]
    if not any(hasattr(x, "to_local") for x in gradients):
        nn.utils.clip_grad_norm_(learned, most, foreach=True)
        return
    factor = (most / (torch.stack(norms(gradients)).norm() + 1e-6)).clamp(max=1)
    torch._foreach_mul_([local_part(x) for x in gradients], factor)


def any_process(flag: bool, device: torch.device) -> bool:
    """True in all processes if the flag is set in at least one."""
    return bool(gathered(torch.tensor(float(flag), device=device)).any()) if world_size() > 1 else flag


def all_objects(x: Any) -> list[Any]:
    """The `x` of all processes, in their order; for what is small."""
    if world_size() == 1:
        return [x]
    found: list[Any] = [None] * world_size()
    dist.all_gather_object(found, x)
    return found


def gathered_objects(x: Any) -> list[Any]:
    """The `x` of all processes, in their order, in process 0; nothing in the others."""
    if world_size() == 1:
        return [x]
    found: list[Any] | None = [None] * world_size() if rank() == 0 else None
    dist.gather_object(x, found)
    return found or []


@torch.no_grad()
def all_sum(x: Tensor) -> Tensor:
    """Sum of `x` over the processes; all must call it with the same shape."""
    if world_size() == 1:
        return x
    x = x.detach().clone()
    dist.all_reduce(x)
    return x


@torch.no_grad()
def gathered_rows(x: Tensor) -> list[Tensor]:
    """The `x` [rows, *rest] of all processes, in their order, each with rows of its own number; all must have one `rest`."""
    if world_size() == 1:
        return [x]
    counts = gathered(torch.tensor(len(x), device=x.device)).tolist()
    padded = x.new_zeros(max(counts), *x.shape[1:])
    padded[: len(x)] = x
    return [part[:count] for part, count in zip(gathered(padded), counts, strict=True)]


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
