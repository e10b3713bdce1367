"""The C library's heap, which on a CPU holds all tensors."""

import ctypes
import sys

WORTH = 256 << 20
"""Free bytes from which on it is worth the time to return them."""


class _Info(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )


def _glibc() -> ctypes.CDLL | None:
    """The C library, where it has what is asked of it: glibc from 2.33 on."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    if library is None or not hasattr(library, "mallinfo2"):
        return None
    library.mallinfo2.restype = _Info
    library.malloc_trim.argtypes = (ctypes.c_size_t,)
    return library


_LIBRARY = _glibc()


def give_back() -> None:
    """Return the heap's free pages to the system, if they are many; one that is needed again is got again, for a microsecond or two.

    A step's tensors are of ever other sizes (stochastic depth), and small things that outlive it lie between them: after some steps
    a third of the heap is holes that the next step's tensors do not fit into.
    https://man7.org/linux/man-pages/man3/malloc_trim.3.html
    """
    if _LIBRARY is not None and _LIBRARY.mallinfo2().fordblks >= WORTH:
        _LIBRARY.malloc_trim(0)
