"""Gradients averaged over the processes while the backward pass still runs.

    averager = GradientAverager(params)
    for part in parts[:-1]:
        loss_of(part).backward()            # gradients add up, nothing is sent
    with averager:
        loss_of(parts[-1]).backward()       # a bucket is sent as soon as its last gradient is there
    # all gradients are means over the processes

As in PyTorch's DistributedDataParallel (Li et al., https://arxiv.org/abs/2006.15704, section 3.2.3): buckets of 25 MiB in the reverse
order of the parameters, which is about the order in which a backward pass computes gradients.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from densewalk.core import distributed

BUCKET = 25 * 2**20  # bytes


class GradientAverager:
    """Replaces each gradient by its mean over the processes inside a `with` block around the last backward pass of a step.

    With equal shares of the global batch and a loss that is a mean over samples, this is the gradient of the whole batch. A parameter
    without a gradient counts as zero, so that all processes send the same shapes in the same order. In one process it does nothing.

    during_backward: False sends all buckets after the backward pass.
    """

    def __init__(self, params: Iterable[nn.Parameter], bucket_bytes: int = BUCKET, *, during_backward: bool = True) -> None:
        self.buckets: list[_Bucket] = []
        self.sent = 0  # buckets are sent in their order, which is that of all processes
        if distributed.world_size() == 1:
            return
        self.buckets = [_Bucket(part) for part in buckets_of([*params][::-1], bucket_bytes)]
        self.active = False
        for bucket in self.buckets if during_backward else ():
            for p in bucket.params:
                p.register_post_accumulate_grad_hook(lambda p, bucket=bucket: self._ready(bucket, p))  # type: ignore[misc]

    def __enter__(self) -> None:
        self.active, self.sent = True, 0
        for bucket in self.buckets:
            bucket.waiting = {id(p) for p in bucket.params}

    def __exit__(self, kind: Any, *_: object) -> None:
        self.active = False
        if kind is not None:  # the backward pass has failed: the process ends, and with it the others
            return
        for bucket in self.buckets[self.sent :]:  # with parameters that got no gradient
            bucket.send()
        for bucket in self.buckets:
            bucket.receive()

    def _ready(self, bucket: "_Bucket", p: Tensor) -> None:
        if not self.active:
            return
        bucket.waiting.discard(id(p))
        while self.sent < len(self.buckets) and not self.buckets[self.sent].waiting:
            self.buckets[self.sent].send()
            self.sent += 1


class _Bucket:
    """Gradients that are sent in one message."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        self.params, self.waiting = params, set[int]()
        self.flat: Tensor | None = None
        self.message: Any = None

    @torch.no_grad()
    def send(self) -> None:
        """Begin to add up the gradients of all processes."""
        for p in self.params:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        self.flat = torch.cat([p.grad.flatten() for p in self.params])  # type: ignore[union-attr]
        self.message = dist.all_reduce(self.flat, async_op=True)

    @torch.no_grad()
    def receive(self) -> None:
        """Wait for the sum, and make it the mean."""
        assert self.flat is not None
        self.message.wait()
        self.flat /= distributed.world_size()
        for p, part in zip(self.params, self.flat.split([p.numel() for p in self.params]), strict=True):
            p.grad.copy_(part.view_as(p))  # type: ignore[union-attr]
        self.flat = self.message = None


def buckets_of(params: Sequence[nn.Parameter], size: int) -> list[list[nn.Parameter]]:
    """The parameters that need gradients in their order, in groups of one dtype and at most `size` bytes, or a single one."""
    groups: list[list[nn.Parameter]] = []
    filled = 0
    for p in params:
        if not p.requires_grad:
            continue
        if not groups or groups[-1][0].dtype != p.dtype or filled + p.nbytes > size:
            groups.append([])
            filled = 0
        groups[-1].append(p)
        filled += p.nbytes
    return groups
