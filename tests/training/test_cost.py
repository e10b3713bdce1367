"""What a job is said to have cost: summed over attempts, measured or empty, never made up."""

import json
import math
import subprocess
import sys
import time

import pytest
import torch

from densewalk.training import cost
from densewalk.training.cost import Cost, Meter, metered

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class FakeNvml:
    """A GPU that counts its energy, or one that does not."""

    class NVMLError(Exception):
        pass

    def __init__(self, supported: bool = True) -> None:
        self.millijoules, self.supported, self.asked = 1_000_000_000, supported, []

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        self.asked.append(uuid)
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, _handle: str) -> int:
        if not self.supported:
            raise self.NVMLError("Not Supported")
        return self.millijoules


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    """In place of the library, and of the two answers of torch that need a GPU; sums over processes happen on the CPU."""
    fake = FakeNvml()
    monkeypatch.setattr(cost, "nvml", fake)
    monkeypatch.setattr(cost, "uuid_of", lambda device: f"GPU-of-{device}")
    monkeypatch.setattr(cost, "peak_gpu_mib", lambda device: 512.0)
    tensor = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *args, device=None, **options: tensor(*args, **options))
    return fake


def test_on_a_cpu_nothing_is_said_of_a_gpu(tmp_path):
    spent = Meter(tmp_path / "cost.json", CPU).keep()
    assert (spent.gpu_hours, spent.peak_gpu_mib, spent.energy_wh) == (None, None, None)
    assert spent.seconds > 0
    assert spent.peak_rss_mib > 10
    assert json.loads((tmp_path / "cost.json").read_text())["gpu_hours"] is None


def test_cpu_time_is_that_of_this_process_and_of_children_that_have_ended(tmp_path):
    meter = Meter(tmp_path / "cost.json", CPU)
    assert meter.total().cpu_seconds < 0.1
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    assert 0.5 <= meter.keep().cpu_seconds < 0.9
    assert 0.5 <= Meter(tmp_path / "cost.json", CPU).total().cpu_seconds < 0.9, "an earlier attempt counts"


def test_energy_is_the_difference_of_the_counter_in_watt_hours(nvml, tmp_path):
    meter = Meter(tmp_path / "cost.json", GPU)
    nvml.millijoules += 7_200_000  # 7.2 kJ = 2 Wh
    spent = meter.total()
    assert spent.energy_wh == pytest.approx(2)
    assert spent.gpu_hours == pytest.approx(spent.seconds / 3600)
    assert spent.peak_gpu_mib == 512
    assert {*nvml.asked} == {"GPU-of-cuda:0"}


def test_attempts_add_up(nvml, tmp_path):
    for joules in (3600, 1800):
        meter = Meter(tmp_path / "cost.json", GPU)
        meter.begun -= 10
        nvml.millijoules += 1000 * joules
        meter.keep()
        meter.keep()  # at every checkpoint: not counted twice
        nvml.millijoules += 10**9  # between two attempts others use the GPU
    spent = Meter(tmp_path / "cost.json", GPU).total()
    assert spent.energy_wh == pytest.approx(1.5)
    assert spent.seconds == pytest.approx(20, abs=5)
    assert spent.gpu_hours == pytest.approx(spent.seconds / 3600)


def test_what_is_interrupted_is_paid_all_the_same(nvml, tmp_path):
    def evaluate():
        with metered(tmp_path / "cost.json", GPU):
            nvml.millijoules += 3_600_000
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate()
    assert Meter(tmp_path / "cost.json", GPU).total().energy_wh == pytest.approx(1)


@pytest.mark.parametrize("goes_on", [True, False])
def test_what_is_made_again_is_not_paid_twice(nvml, tmp_path, goes_on):
    with metered(tmp_path / "cost.json", GPU):
        nvml.millijoules += 3_600_000
    for _ in range(2):
        with metered(tmp_path / "cost.json", GPU, goes_on=goes_on) as meter:
            nvml.millijoules += 7_200_000
        assert meter.total().energy_wh == pytest.approx(1 if goes_on else 2)


@pytest.mark.parametrize("reason", ["not supported", "driver reloaded"])
def test_energy_that_is_not_known_is_empty(nvml, tmp_path, reason):
    nvml.supported = reason != "not supported"
    meter = Meter(tmp_path / "cost.json", GPU)
    if reason == "driver reloaded":
        nvml.millijoules = 5
    assert meter.total().energy_wh is None


def test_an_unmeasured_attempt_makes_the_sum_unknown():
    measured = Cost(seconds=1, gpu_hours=1, peak_rss_mib=5, peak_gpu_mib=7, energy_wh=2, cpu_seconds=3)
    unmeasured = Cost(seconds=2, gpu_hours=None, peak_rss_mib=3, peak_gpu_mib=None, energy_wh=None)
    assert measured.after(unmeasured) == Cost(3, None, 5, None, None)
    assert measured.after(measured) == Cost(2, 2, 5, 7, 4, 6)


def test_several_processes_share_one_bill(nvml, tmp_path, monkeypatch):
    """Times of the slowest and memory of the largest, but every GPU's hours and energy."""
    other = torch.tensor([20.0, 50.0, 900.0, 3.0, 6.0], dtype=torch.float64)
    monkeypatch.setattr(cost.distributed, "gathered", lambda mine: torch.stack([mine, other]))
    meter = Meter(tmp_path / "cost.json", GPU)
    meter.begun -= 10
    meter.begun_cpu -= 30
    nvml.millijoules += 3_600_000
    spent = meter.total()
    assert spent.cpu_seconds == pytest.approx(36, abs=1)
    assert (spent.seconds, spent.peak_gpu_mib, spent.energy_wh) == (20, 900, pytest.approx(4))
    assert spent.gpu_hours == pytest.approx(30 / 3600, rel=0.1)
    other[3] = math.nan
    assert meter.total().energy_wh is None
