"""The benchmarks run: nothing here looks at a time."""

import os
import runpy
import subprocess
import sys

import pytest

from densewalk.core.memory import HUGE_PAGES

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
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_benchmark_prints_its_table(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [name, *SMALL[name].split()])
    runpy.run_module(f"benchmarks.{name}", run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) > 3


@pytest.mark.slow
def test_all_of_them_fill_a_page_by_a_process_that_is_replaced_by_one_with_huge_pages():
    environment = {name: value for name, value in os.environ.items() if name != HUGE_PAGES[0]}
    command = [sys.executable, "-m", "benchmarks.all", "--size", "tiny", "--note", "Quiet."]
    page = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    assert "\nQuiet.\n" in page
    assert all(f"\n## {title}\n" in page for title in ("Training steps", "Views", "Scores", "Inner loops", "Growth"))
