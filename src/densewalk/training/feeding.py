"""Bring batches to the device: pixels one batch ahead, while the batch before is learned from.

    for batch in pixels_ahead(loader, device): ...

Pixels travel as uint8, a quarter of float32; methods make views of them on the device (`Method.prepare`).
"""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only


def pixels_ahead(batches: Iterable[Any], device: torch.device) -> Iterator[Any]:
    """Yield the batches in order, their uint8 tensors on the device; what is small is read on the CPU and stays there.

    On a GPU the next batch is asked for, and its copy started on a stream of its own, before the current one is given out.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    waiting: tuple[Any, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = tree_map_only(Tensor, lambda x: x.to(device, non_blocking=True) if x.dtype == torch.uint8 else x, batch)
            started = stream.record_event()
        if waiting is not None:
            yield _received(*waiting)
        waiting = copied, started
    if waiting is not None:
        yield _received(*waiting)


def _received(batch: Any, copied: torch.cuda.Event) -> Any:
    """The batch, for work on the current stream: it waits for the copy, and the memory is not given away before that work is done."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for x in tree_leaves(batch):
        if isinstance(x, Tensor) and x.is_cuda:
            x.record_stream(current)
    return batch
