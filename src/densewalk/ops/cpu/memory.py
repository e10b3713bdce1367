"""The C library's heap, which holds all tensors on a CPU."""

import ctypes
import sys
from typing import Any

import torch

from densewalk.ops.cpu.switch import use_cpu_kernels

MIN_FREE = 256 << 20  # bytes: fewer are not worth the time


class _Info(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )


_LIBRARY: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
HAS_MALLINFO2 = hasattr(_LIBRARY, "mallinfo2")  # in glibc from 2.33 on
if HAS_MALLINFO2:
    _LIBRARY.mallinfo2.restype = _Info
    _LIBRARY.malloc_trim.argtypes = (ctypes.c_size_t,)


def trim_heap(device: torch.device) -> None:
    """Return the pages of the heap's holes to the system on a CPU, if they are many; what is free at its end is of use as it is.

    Stochastic depth changes the sizes of tensors: after some steps a third of the heap is holes that the next ones do not fit into.
    """
    if use_cpu_kernels(device) and HAS_MALLINFO2:
        heap = _LIBRARY.mallinfo2()
        if heap.fordblks - heap.keepcost >= MIN_FREE:
            _LIBRARY.malloc_trim(heap.keepcost)
