"""Free memory between what is in use goes back to the system, when there is much of it."""

from pathlib import Path

import pytest
import torch

from densewalk.ops.cpu import memory, switch

MIB = 2**20


def resident() -> int:
    """Bytes of this process in memory."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * 4096


@pytest.mark.skipif(not memory.HAS_MALLINFO2, reason="the C library is not glibc")
@pytest.mark.parametrize("why_not", [None, "little is free", "switched off", "on a GPU"])
def test_holes_are_given_back(why_not, monkeypatch):
    monkeypatch.setattr(memory, "MIN_FREE", 2**50 if why_not == "little is free" else 32 * MIB)
    monkeypatch.setattr(switch, "_enabled", why_not != "switched off")
    torch.zeros(8 * MIB, dtype=torch.uint8)  # from here on the heap has what is smaller, nothing is mapped by itself
    tensors = [torch.ones(MIB, dtype=torch.uint8) for _ in range(200)]
    del tensors[::2]
    before = resident()
    memory.trim_heap(torch.device("cuda" if why_not == "on a GPU" else "cpu"))
    assert (before - resident() > 64 * MIB) == (why_not is None)
    assert all(tensor.all() for tensor in tensors)
