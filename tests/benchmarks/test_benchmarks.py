"""The benchmarks run: nothing here looks at a time."""

import os
import subprocess
import sys

import pytest

from tests.fixtures.studies import REPOSITORY

SMALL = {
    "dora": "--arch vit_nano_patch16 --frames 2 --sizes 64 32 --out-dim 64 --locals 2 --frame-size 96 128 --repeat 1",
    "neco": "--arch vit_nano_patch14_reg4 --size 56 --local 28 --rows 49",
    "feeding": "--samples 1 --repeat 1",
    "products": "",
    "knn": "--training 500 --queries 50 --classes 10",
    "incontext": "--memory 2 --queries 1 --classes 5",
    "depth": "--arch vit_micro_patch16 --size 64 64 --repeats 1",
    "correspondence": "--arch vit_nano_patch16 --size 32 --images 3 --pairs 4",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_prints_its_table(name):
    command = [sys.executable, "-m", f"benchmarks.{name}", *SMALL[name].split()]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) > 3
