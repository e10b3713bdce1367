"""Time, GPU-hours, CPU seconds, memory and energy of a job, over all its attempts and processes.

results/state/{run}-s{seed}-{hash}/cost.json      the cost up to the newest checkpoint
"""

import math
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pynvml as nvml
import torch

from densewalk.core import distributed
from densewalk.core.errors import Interrupted, UserError
from densewalk.core.files import write_json
from densewalk.core.progress import log
from densewalk.training.progress_files import CostSoFar, read_or_none


@dataclass(frozen=True)
class Cost:
    """The cost of a job; None, which is not zero, for what the device does not report."""

    seconds: float  # wall time
    gpu_hours: float | None  # of all GPUs
    peak_rss_mib: float  # of the largest process
    peak_gpu_mib: float | None  # most memory that torch had allocated on one GPU
    energy_wh: float | None  # of all GPUs, including other users' jobs on them
    cpu_seconds: float | None = None  # of all processes and threads; of data-loading processes as soon as they have ended

    def after(self, before: "Cost") -> "Cost":
        """The cost of both attempts; what one of them did not measure is unknown for both."""

        def both(combine: Callable[[Any], Any], name: str) -> Any:
            values = getattr(self, name), getattr(before, name)
            return None if None in values else combine(values)

        sums = {name: both(sum, name) for name in ("seconds", "gpu_hours", "energy_wh", "cpu_seconds")}
        return Cost(**sums, **{name: both(max, name) for name in ("peak_rss_mib", "peak_gpu_mib")})

    def record(self) -> dict[str, float | None]:
        """Rounded, for a result record."""
        digits = {"seconds": 2, "gpu_hours": 4, "peak_rss_mib": 1, "peak_gpu_mib": 1, "energy_wh": 3, "cpu_seconds": 2}
        return {name: None if value is None else round(value, digits[name]) for name, value in asdict(self).items()}


class Meter:
    """Measures one process from now on, and adds the cost of earlier attempts in `path`.

    What is made again after it was finished is not paid twice: it has the old cost if it goes on from what was saved, and a new one if it
    starts from the beginning.

    Args:
        goes_on: there is something saved.
    """

    def __init__(self, path: Path, device: torch.device, *, goes_on: bool = True) -> None:
        self.path, self.device = path, device
        before = cost_before(path)
        if before is not None and before.finished and not goes_on:
            before = None
        self.finished = before is not None and before.finished
        self.before = None if before is None else Cost(**before.model_dump(exclude={"finished"}))
        self.begun, self.begun_cpu, self.counter = time.monotonic(), cpu_seconds(), energy_mj(device)

    def total(self) -> Cost:
        """The cost so far; all processes must call it at the same time."""
        on_gpu = self.device.type == "cuda"
        cpu = cpu_seconds() - self.begun_cpu
        mine = [time.monotonic() - self.begun, peak_rss_mib(), peak_gpu_mib(self.device), self._energy_wh(), cpu]
        seconds, rss, gpu, energy, cpus = distributed.gathered(torch.tensor(mine, dtype=torch.float64, device=self.device)).unbind(1)
        this = Cost(
            seconds=seconds.max().item(),
            gpu_hours=seconds.sum().item() / 3600 if on_gpu else None,
            peak_rss_mib=rss.max().item(),
            peak_gpu_mib=gpu.max().item() if on_gpu else None,
            energy_wh=None if energy.isnan().any() else energy.sum().item(),
            cpu_seconds=cpus.sum().item(),
        )
        if self.before is None:
            return this
        return self.before if self.finished else this.after(self.before)

    def keep(self, *, finished: bool = False) -> Cost:
        """Write `total` for later attempts; process 0 does. finished: the job leaves its output."""
        total = self.total()
        if distributed.rank() == 0:
            write_json(self.path, asdict(total) | {"finished": finished or self.finished})
        return total

    def try_keep(self, *, finished: bool = False) -> None:
        """`keep`, but a cost that cannot be written does not hide how the job has ended."""
        try:
            self.keep(finished=finished)
        except (OSError, UserError) as error:
            log.warning("the cost of this attempt is not kept: %s", error)

    def _energy_wh(self) -> float:
        now = energy_mj(self.device)
        known = self.counter is not None and now is not None and now >= self.counter  # a driver that was reloaded counts from 0
        return (now - self.counter) / 3.6e6 if known else math.nan  # type: ignore[operator]


@contextmanager
def metered(path: Path, device: torch.device, *, goes_on: bool = True) -> Iterator[Meter]:
    """A meter whose measurement is kept even if the block fails or a signal ends it; without an error, the job is finished.

    Of several processes, one that fails alone cannot add up what the others have cost.
    """
    meter = Meter(path, device, goes_on=goes_on)
    try:
        yield meter
    except BaseException as error:
        if distributed.world_size() == 1 or isinstance(error, Interrupted):  # a signal ends all of them
            meter.try_keep()
        raise
    meter.try_keep(finished=True)


def cost_before(path: Path) -> CostSoFar | None:
    """The cost of earlier attempts; of a damaged record, that it is unknown, with a warning."""
    if not path.exists():
        return None
    if (found := read_or_none(path, CostSoFar)) is not None:
        return found
    log.warning("%s is damaged: time and memory are those from now on, GPU-hours and energy are unknown", path)
    return CostSoFar(seconds=0.0, gpu_hours=None, peak_rss_mib=0.0, peak_gpu_mib=None, energy_wh=None)


def energy_mj(device: torch.device) -> int | None:
    """Energy in millijoules that a GPU has used since its driver was loaded, if NVML knows.

    It does not for GPUs before Volta and parts of a GPU (MIG): https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html
    """
    if device.type != "cuda":
        return None
    try:
        nvml.nvmlInit()
        return int(nvml.nvmlDeviceGetTotalEnergyConsumption(nvml.nvmlDeviceGetHandleByUUID(uuid_of(device))))
    except nvml.NVMLError as error:
        log.info("%s does not tell its energy: %s", device, error)
        return None


def uuid_of(device: torch.device) -> str:
    """NVML's name of the GPU: numbers depend on CUDA_VISIBLE_DEVICES."""
    return f"GPU-{torch.cuda.get_device_properties(device).uuid}"


def cpu_seconds() -> float:
    """CPU time of this process with all its threads, and of its children that have ended, in seconds."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak_rss_mib() -> float:
    """Largest resident set of this process, or of a child that has ended, in MiB."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def peak_gpu_mib(device: torch.device) -> float:
    """Most memory that torch had allocated on this process's GPU, in MiB; NaN on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else math.nan
