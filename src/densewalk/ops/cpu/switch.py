"""One switch for all kernels here: faster on a CPU, equal up to rounding, off on a GPU.

set_cpu_kernels(False)      # torch's own everywhere, for instance to compare with it
"""

import torch

_enabled = True


def set_cpu_kernels(enabled: bool) -> None:
    """Switch all CPU kernels of this process on or off."""
    global _enabled
    _enabled = enabled


def use_cpu_kernels(device: torch.device) -> bool:
    """True on a CPU while the switch is on; torch.compile traces torch's own operators instead."""
    return _enabled and device.type == "cpu" and not torch.compiler.is_compiling()
