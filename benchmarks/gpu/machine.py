"""The fields that a run's record takes from the driver: memory, energy, name; and the plan's peak for this card."""

import math
from collections.abc import Iterator

import torch
from benchmarks.gpu.report import Finding, Setting, Skipped

from densewalk.study.gpus import GPUS, Gpu
from densewalk.training.cost import Meter, energy_mj, peak_gpu_mib, uuid_of


def this_gpu(device: torch.device) -> Gpu | None:
    """The card as `densewalk plan` knows it, by its name; None if it does not."""
    name = torch.cuda.get_device_name(device).lower().replace(" ", "") if device.type == "cuda" else ""
    return next((gpu for key, gpu in GPUS.items() if key in name), None)


def check(setting: Setting) -> Iterator[Finding]:
    """Energy, peak memory, and the meter that puts both into the records."""
    device = setting.device
    if device.type != "cuda":
        meter = Meter(setting.folder / "cost.json", device)
        yield Finding(
            "CPU: no energy, no memory of a GPU is told", float(energy_mj(device) is None and math.isnan(peak_gpu_mib(device))), 1, 1
        )
        yield Finding("CPU: seconds of the meter", meter.keep().seconds, at_least=0)
        return
    torch.cuda.reset_peak_memory_stats(device)
    held = torch.zeros(256, 2**20, dtype=torch.uint8, device=device)
    yield Finding("MiB that torch has allocated at most, of 256", peak_gpu_mib(device), 300, 256)
    del held
    yield Finding(f"bfloat16 works ({uuid_of(device)})", float(torch.cuda.is_bf16_supported()), at_least=1)
    meter = Meter(setting.folder / "cost.json", device)
    x = torch.randn(8192, 8192, device=device)
    for _ in range(20):
        x = (x @ x).clamp_(-1, 1)
    setting.sync()
    cost = meter.keep()
    yield Finding("GPU-hours of the meter, in seconds", (cost.gpu_hours or math.nan) * 3600, at_least=1e-3)
    if cost.energy_wh is None:
        raise Skipped("NVML tells no energy: a part of a GPU (MIG), or older than Volta")
    yield Finding("joules of 20 products of 8192 x 8192", cost.energy_wh * 3600, at_least=1e-3)
