"""Samples a second, share of the GPU's peak and peak memory of every method at the papers' share, then fed by a loader."""

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from benchmarks.gpu.machine import this_gpu
from benchmarks.gpu.report import Finding, Setting, seconds_of
from benchmarks.gpu.trainings import STEPS, Training, shares, small
from torch import Tensor
from torch.utils._pytree import tree_map_only
from torch.utils.data import DataLoader

from densewalk.core.machine import usable_workers
from densewalk.study.gpus import USABLE, Share, gigabytes
from densewalk.training import loop
from densewalk.training.execution import Execution
from densewalk.training.optimizer import make_optimizer
from densewalk.training.sampler import StepSampler, pixels_ahead
from densewalk.training.signals import leave_signals_to_parent

BFLOAT16 = Execution(precision="bfloat16")
MEASURED = 8  # steps, after one that warms up


def check(setting: Setting) -> Iterator[Finding]:
    """The whole step as the loop makes it, views included."""
    for training in small() if setting.small else shares():
        yield from steps(fitting(training, setting), setting)


def fitting(training: Training, setting: Setting) -> Training:
    """The training with its batch halved until the plan says that it fits into this GPU."""
    s = training.settings
    while s.batch_size > 1 and setting.device.type == "cuda" and planned(training) > room(setting.device):
        s = s.model_copy(update={"batch_size": s.batch_size // 2})
        training = replace(training, settings=s)
    return training


def room(device: torch.device) -> float:
    """Gigabytes that the plan fills of this GPU."""
    return USABLE * torch.cuda.get_device_properties(device).total_memory / 1e9


def planned(training: Training) -> float:
    """Gigabytes by the plan, with what CUDA takes for itself."""
    return gigabytes(training.settings.step_work(training.arch), "bfloat16", Share(), training.arch)


def steps(training: Training, setting: Setting) -> Iterator[Finding]:
    """One training."""
    device, size = setting.device, training.settings.batch_size
    method = training.method().to(device).train()
    optimizer = make_optimizer(method)
    title = f"{training.name}, batch {size}"
    count = 1 if setting.small else MEASURED
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)

    def run(batches: Iterator[Any]) -> Iterator[Tensor]:
        for step, batch in enumerate(batches):
            yield loop.one_step(method, optimizer, [batch], step, 0, BFLOAT16, device)[0]

    held = tree_map_only(Tensor, lambda x: x.to(device) if x.dtype == torch.uint8 else x, training.batch())
    seconds = seconds_of(setting, run(held for _ in range(count + 1)))
    yield Finding(f"{title}, data on the GPU: {training.settings.SAMPLES} a second", size / seconds, at_least=0)
    if (gpu := this_gpu(device)) is not None:
        share = training.settings.step_work(training.arch).flops / seconds / (gpu.bfloat16 * 1e12)
        yield Finding(f"{title}: share of the peak in bfloat16", share, at_least=0.05, slow=True)
    if device.type == "cuda":
        gib = torch.cuda.max_memory_allocated(device) / 2**30
        yield Finding(f"{title}: GiB at most (plan: bound)", gib, at_most=1.15 * planned(training) * 1e9 / 2**30, slow=True)
    del held
    workers = 0 if setting.small else usable_workers(min(8, os.cpu_count() or 1))
    loader = DataLoader(
        training.data,
        batch_sampler=StepSampler(len(training.data), size, 0, 0, STEPS),  # type: ignore[arg-type]
        num_workers=workers,
        pin_memory=device.type == "cuda",
        worker_init_fn=leave_signals_to_parent,
    )
    seconds = seconds_of(setting, run(islice(pixels_ahead(loader, device), count + 1)))
    yield Finding(f"{title}, fed by {workers} processes: {training.settings.SAMPLES} a second", size / seconds, at_least=0)
    last = next(islice(run(iter([training.batch()])), 1))
    yield Finding(f"{title}: loss is finite in the end", last.item())
