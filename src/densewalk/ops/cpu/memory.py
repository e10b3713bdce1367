"""The C library's heap, which holds all tensors on a CPU."""

import ctypes
import sys

import torch

from densewalk.ops.cpu.switch import use_cpu_kernels

MIN_FREE = 256 << 20  # bytes: fewer are not worth the time


class _Info(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )


def _glibc() -> ctypes.CDLL | None:
    """glibc from 2.33 on, or None."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallinfo2"):
        return None
    library.mallinfo2.restype = _Info
    library.malloc_trim.argtypes = (ctypes.c_size_t,)
    return library


_LIBRARY = _glibc()


def trim_heap(device: torch.device) -> None:
    """Return the heap's free pages to the system if `device` is a CPU and they are many.

    Stochastic depth changes the sizes of a step's tensors. After some steps a third of the heap is holes that the next step's
    tensors do not fit into. https://man7.org/linux/man-pages/man3/malloc_trim.3.html
    """
    if use_cpu_kernels(device) and _LIBRARY is not None and _LIBRARY.mallinfo2().fordblks >= MIN_FREE:
        _LIBRARY.malloc_trim(0)
