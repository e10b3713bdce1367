"""The benchmarks run: nothing here looks at a time."""

import runpy
import sys

import pytest

SMALL = {
    "dora": "--arch vit_nano_patch16 --frames 2 --sizes 64 32 --out-dim 64 --locals 2 --frame-size 96 128 --repeat 1",
    "neco": "--arch vit_nano_patch14_reg4 --size 56 --local 28 --rows 49",
    "feeding": "--samples 1 --repeat 1 --fps 4",
    "colors": "--repeat 1 --side 32",
    "products": "--runs 1",
    "inner_loops": "--repeat 1 --pixels 40 60 --entries 500 --queries 40",
    "boxes": "--images 2 4 --repeat 1",
    "knn": "--training 500 --queries 50 --classes 10",
    "incontext": "--memory 2 --queries 1 --classes 5",
    "self_supervised": "--small --repeat 1",
    "depth": "--arch vit_micro_patch16 --size 64 64 --repeats 1",
    "correspondence": "--arch vit_nano_patch16 --size 32 --images 3 --pairs 4",
    "all": "--size tiny --note Quiet.",  # the last, because it imports others
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_prints_its_table(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *SMALL[name].split()])
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) > 3
