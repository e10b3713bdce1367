"""Free memory between what is in use goes back to the system, when there is much of it."""

from pathlib import Path

import pytest
import torch

from densewalk.ops.cpu import memory as allocator

MIB = 2**20


def resident() -> int:
    """Bytes of this process in memory."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * 4096


@pytest.mark.skipif(allocator._LIBRARY is None, reason="the C library is not glibc")
@pytest.mark.parametrize("much", [True, False])
def test_holes_are_given_back(much, monkeypatch):
    monkeypatch.setattr(allocator, "WORTH", 32 * MIB if much else 2**50)
    torch.zeros(8 * MIB, dtype=torch.uint8)  # from here on the heap has what is smaller, nothing is mapped by itself
    tensors = [torch.ones(MIB, dtype=torch.uint8) for _ in range(200)]
    del tensors[::2]
    before = resident()
    allocator.give_back()
    assert (before - resident() > 64 * MIB) == much
    assert all(tensor.all() for tensor in tensors)
