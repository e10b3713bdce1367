"""Measure what one optimizer step of a training spends, on networks that are thrown away afterwards."""

import platform
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from densewalk.core import distributed
from densewalk.core.machine import usable_workers
from densewalk.training.cost import cpu_seconds
from densewalk.training.execution import Execution
from densewalk.training.loop import one_step, open_loader, ready, split
from densewalk.training.method import Method
from densewalk.training.sampler import StepSampler, pixels_ahead

MOST = 50  # timed steps
SHARE = 0.02  # of the budget: it is measured for that long, if that is fewer than MOST steps


def untimed_steps(workers: int, device: torch.device) -> int:
    """Steps before the clock starts: what is compiled, allocated and tuned, and the batches that loading processes have ready by then."""
    return 3 + 2 * workers if device.type == "cuda" else 1


def timed_steps(device: torch.device) -> int:
    """Least number of steps that are timed."""
    return 20 if device.type == "cuda" else 4


def most_steps(execution: Execution, device: torch.device) -> int:
    """Most steps that `step_seconds` makes."""
    return untimed_steps(execution.workers, device) + MOST


def step_seconds(
    method: Method,
    data: "Dataset[Any]",
    *,
    batch_size: int,
    seed: int,
    execution: Execution,
    device: torch.device,
    parts: int,
    budget: float,
) -> float:
    """What one step spends: on a GPU seconds times GPUs, on a CPU the CPU seconds of all processes, which other jobs hardly change.

    Loading is part of it. On a CPU the batches are loaded in this process: all CPU time counts, whoever spends it.

    Args:
        method: of at least `most_steps`; it is trained, and worth nothing afterwards. budget: in the same unit.
    """
    on_gpu = device.type == "cuda"
    workers = usable_workers(execution.workers) if on_gpu else 0
    _, optimizer, averager = ready(method, execution, device)
    sampler = StepSampler(len(data), batch_size, seed, 0, method.total_steps)  # type: ignore[arg-type]
    begun, untimed, spent = 0.0, untimed_steps(workers, device), 0.0
    for done, batch in enumerate(pixels_ahead(open_loader(data, sampler, workers, device), device), start=1):
        one_step(method, optimizer, split(batch, parts), done - 1, seed, execution, device, averager)
        timed = done - untimed
        if timed < 0:
            continue
        now = clock(device)
        if timed == 0:
            begun = now
            continue
        spent = (now - begun) * (distributed.world_size() if on_gpu else 1)
        more = timed < timed_steps(device) or (timed < MOST and spent < SHARE * budget)
        if not distributed.any_process(more, device):
            break
    each = distributed.gathered(torch.tensor(spent / timed, dtype=torch.float64, device=device))
    return float(each.max() if on_gpu else each.sum())


def clock(device: torch.device) -> float:
    """Seconds of the clock that a device is measured by, when all of its work is done."""
    if device.type != "cuda":
        return cpu_seconds()
    torch.cuda.synchronize(device)
    return time.monotonic()


def machine_name(device: torch.device) -> str:
    """The kind of machine: two of the same name are taken to be equally fast."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
