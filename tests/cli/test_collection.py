"""Python looks for unreachable objects seldom while a command imports, and as usual while a job works."""

import subprocess
import sys

SETTLED = """
import argparse, gc
from densewalk.cli import collection
usual = gc.get_threshold()
collection.collect_as_usual()
assert (gc.get_threshold(), gc.get_freeze_count()) == (usual, 0), "only after collect_seldom"
collection.collect_seldom()
assert gc.get_threshold() == collection.SELDOM
from densewalk.cli.job_commands import with_cpus
from densewalk.training.execution import Execution
before = gc.get_stats()[2]["collections"]
with_cpus(argparse.Namespace(threads=None, execution=Execution()))
assert gc.get_stats()[2]["collections"] == before, "while torch was imported"
assert gc.get_threshold() == usual and gc.get_freeze_count() > 100_000
"""
COMMAND = """
import gc, runpy, sys
sys.argv = ["densewalk", "check", "config.yaml"]
try:
    runpy.run_module("densewalk", run_name="__main__")
except SystemExit as end:
    assert not end.code
from densewalk.cli.collection import SELDOM
assert gc.get_threshold() == SELDOM
assert gc.get_stats()[2]["collections"] == 0
"""


def run(script):
    """The script in a new process."""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_a_job_collects_as_usual_once_it_has_imported_what_it_needs():
    done = run(SETTLED)
    assert done.returncode == 0, done.stderr


def test_a_command_reads_a_study_without_looking_at_all_objects():
    done = run(COMMAND)
    assert done.returncode == 0, done.stderr


def test_the_objects_of_a_command_are_not_taken_apart_at_its_end():
    """A frozen object is found by no collection, not even by the last one."""
    script = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count()))\n"
    done = run(script + "from densewalk.cli.collection import collect_seldom; collect_seldom()")
    assert int(done.stdout) > 0, done.stderr
