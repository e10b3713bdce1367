"""What a job costs, over all its attempts and processes: time, GPU-hours, memory, energy. The one door to NVML.

results/state/{run}-s{seed}-{hash}/cost.json      what was spent up to the newest checkpoint
"""

import math
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pynvml as nvml
import torch

from densewalk.core import distributed
from densewalk.core.files import write_json
from densewalk.core.progress import log
from densewalk.training.progress_files import CostRecord, read_progress


@dataclass(frozen=True)
class Cost:
    """None for what the device does not tell, which is never the same as zero.

    seconds: wall time. gpu_hours: of all GPUs. peak_rss_mib: of the largest process. peak_gpu_mib: what torch had allocated at
    once on the fullest GPU. energy_wh: of all GPUs, whoever used them.
    """

    seconds: float
    gpu_hours: float | None
    peak_rss_mib: float
    peak_gpu_mib: float | None
    energy_wh: float | None

    def after(self, before: "Cost") -> "Cost":
        """Of both attempts together; what one of them did not measure is not known of both."""
        return Cost(
            self.seconds + before.seconds,
            _both(sum, self.gpu_hours, before.gpu_hours),
            max(self.peak_rss_mib, before.peak_rss_mib),
            _both(max, self.peak_gpu_mib, before.peak_gpu_mib),
            _both(sum, self.energy_wh, before.energy_wh),
        )

    def record(self) -> dict[str, float | None]:
        """For a result record."""
        digits = {"seconds": 2, "gpu_hours": 4, "peak_rss_mib": 1, "peak_gpu_mib": 1, "energy_wh": 3}
        return {name: None if value is None else round(value, digits[name]) for name, value in asdict(self).items()}


def _both(combine, one: float | None, two: float | None) -> float | None:  # type: ignore[no-untyped-def]
    return None if one is None or two is None else combine([one, two])


class Meter:
    """Measures from its making on, and adds what the attempts before have left in `path`.

    Args:
        device: of this process. Every process of the job has a meter of its own.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path, self.device = path, device
        self.before = Cost(**read_progress(path, CostRecord).model_dump()) if path.exists() else None
        self.begun, self.counter = time.monotonic(), energy_mj(device)

    def total(self) -> Cost:
        """So far; all processes must ask at the same time."""
        on_gpu = self.device.type == "cuda"
        mine = [time.monotonic() - self.begun, peak_rss_mib(), peak_gpu_mib(self.device), self._energy_wh()]
        seconds, rss, gpu, energy = distributed.gathered(torch.tensor(mine, dtype=torch.float64, device=self.device)).unbind(1)
        this = Cost(
            seconds=seconds.max().item(),
            gpu_hours=seconds.sum().item() / 3600 if on_gpu else None,
            peak_rss_mib=rss.max().item(),
            peak_gpu_mib=gpu.max().item() if on_gpu else None,
            energy_wh=None if energy.isnan().any() else energy.sum().item(),
        )
        return this if self.before is None else this.after(self.before)

    def keep(self) -> Cost:
        """Write `total` for the attempts to come; process 0 does."""
        total = self.total()
        if distributed.rank() == 0:
            write_json(self.path, asdict(total))
        return total

    def _energy_wh(self) -> float:
        now = energy_mj(self.device)
        known = self.counter is not None and now is not None and now >= self.counter  # a driver that was reloaded counts from 0
        return (now - self.counter) / 3.6e6 if known else math.nan  # type: ignore[operator]


@contextmanager
def metered(path: Path, device: torch.device) -> Iterator[Meter]:
    """A meter whose measurement is kept however the block ends, be it by a signal."""
    meter = Meter(path, device)
    try:
        yield meter
    finally:
        meter.keep()


def energy_mj(device: torch.device) -> int | None:
    """Energy that a GPU has used since its driver was loaded, in millijoules; None on a CPU and where NVML does not tell.

    GPUs before Volta and parts of a GPU (MIG) do not.
    https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html
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


def peak_rss_mib() -> float:
    """Largest resident set of this process or of one that it has waited for, in MiB."""
    return max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024


def peak_gpu_mib(device: torch.device) -> float:
    """Most memory that torch had allocated on this process's GPU at once, in MiB; NaN without one."""
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else math.nan
