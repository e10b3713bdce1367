"""Deterministic kernels of torch, where they are asked for: one place for our own loop and for the toolboxes' runner."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.utils import deterministic

# torch asks for it before the first product of matrices: https://docs.nvidia.com/cuda/cublas/#results-reproducibility
CUBLAS = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def is_deterministic(asked: bool | None, device: torch.device) -> bool:
    """True where deterministic kernels are used: as asked for, and if nothing is said on a CPU only."""
    return device.type == "cpu" if asked is None else asked


@contextmanager
def deterministic_kernels(asked: bool | None, device: torch.device) -> Iterator[None]:
    """Use deterministic kernels inside the block, or not, whatever was set before; operators that have none say so in a warning.

    On a CPU they cost nothing that can be measured. On a GPU torch replaces bilinear upsampling by gathers and products, which are slower
    and keep many times the memory for the backward pass.

    Args:
        asked: `execution.deterministic`.
    """
    on = is_deterministic(asked, device)
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn, fill = torch.backends.cudnn.deterministic, deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    if on and device.type == "cuda":
        os.environ.setdefault(*CUBLAS)
    torch.use_deterministic_algorithms(on, warn_only=True)
    torch.backends.cudnn.deterministic = on
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it would write every new tensor once more
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.backends.cudnn.deterministic = cudnn
        deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
