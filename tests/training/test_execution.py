"""How jobs are run within what they have."""

import pytest

from densewalk.core.resources import Resources
from densewalk.training.execution import Execution


@pytest.mark.parametrize(
    ("workers", "cpus", "processes", "started"),
    [(8, 8, 1, 8), (8, 1, 1, 1), (8, 32, 4, 8), (8, 16, 4, 4), (8, 2, 4, 1), (2, 8, 1, 2), (0, 8, 1, 0)],
)
def test_no_more_processes_load_data_than_the_job_has_cpus(workers, cpus, processes, started):
    assert Execution(workers=workers).within(cpus, processes).workers == started


@pytest.mark.parametrize(
    ("execution", "gpu", "threads", "cpus"),
    [
        ({"workers": 8}, 1, 4, 8),
        ({"workers": 8}, 4, 16, 32),
        ({"workers": 2}, 1, 4, 4),
        ({"workers": 8}, 0, 1, 1),
        ({"workers": 8, "device": "cpu"}, 4, 32, 1),
    ],
)
def test_a_job_asks_for_a_cpu_for_each_process_that_loads_data(execution, gpu, threads, cpus):
    assert Execution(**execution).cpus_of(Resources(gpu=gpu, threads=threads)) == cpus
