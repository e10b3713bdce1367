"""What jobs ask of a scheduler."""

import re
import subprocess
import sys

import pytest

from tests.fixtures.studies import REPOSITORY, TINY, write_study

pytestmark = [pytest.mark.workflow]

ENDS = ["MemoryError", "time limit", "oom_kill event"]
SNAKEFILE = f"""
import os
from pathlib import Path

rule all:
    input: "one.done"

rule job:
    output: "{{run}}.done"
    log: "{{run}}.log"
    wildcard_constraints: run="one|two"
    resources: mem_mb=100
    shell: "exec 2> {{log}}; echo {{resources.mem_mb}} >> asked; n=$(wc -l < asked); cat end-$n >&2 && exit 1; touch {{output}}"

include: "{REPOSITORY}/workflow/rules/scheduler.smk"
"""


def test_memory_grows_after_a_lack_of_it_and_never_after_a_time_limit(tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    for number, end in enumerate(ENDS, start=1):
        (tmp_path / f"end-{number}").write_text(end)
    command = [sys.executable, "-m", "snakemake", "--cores", "1", "--retries", "3", "--default-resources", "node_mem_mb=350", "-q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text().split() == ["100", "200", "200", "350"]


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    """Rule -> what the profile's first job of it asks for, with a CPU partition and eight data-loading processes."""
    folder = write_study(tmp_path_factory.mktemp("study"), {**TINY, "execution": {"workers": 8}})
    keys = ["slurm_partition=gpu", "cpu_partition=cpu", "nodes=1", "mem_mb=16000", "node_mem_mb=100000", "runtime=120"]
    changed = [
        "--default-resources",
        *keys,
        "--set-resources",
        "check_images:slurm_partition=io",
        "train_neco:gpu=0",
        "train_neco:gres=gpu:2",
    ]
    command = [sys.executable, "-m", "snakemake", "--profile", "slurm", "--directory", str(folder), "--cores", "64", "-n", "all", *changed]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    jobs = re.findall(r"^rule (\w+):$(.*?)^    resources: (.*?)$", done.stdout, re.MULTILINE | re.DOTALL)
    found = {}
    for rule, before, resources in jobs:
        threads = re.search(r"threads: (\d+)", before)
        found[rule] = {**dict(re.findall(r"(\w+)=([^,]+)", resources)), "threads": threads[1] if threads else "1"}
    return found


@pytest.mark.parametrize(
    ("rule", "partition"),
    [
        ("prepare_video", "cpu"),
        ("generate", "cpu"),
        ("baseline", "cpu"),
        ("train_dora", "gpu"),
        ("evaluate_davis", "gpu"),
        ("train_neco", "gpu"),
        ("check_images", "io"),
    ],
)
def test_jobs_without_a_gpu_go_to_the_partition_for_them(requests, rule, partition):
    assert requests[rule]["slurm_partition"] == partition


@pytest.mark.parametrize(("rule", "megabytes"), [("prepare_video", "16000"), ("generate", "16000"), ("train_dora", "100000")])
def test_no_job_asks_for_more_memory_than_a_node_has(requests, rule, megabytes):
    assert requests[rule]["mem_mb"] == megabytes


@pytest.mark.parametrize(("rule", "cpus"), [("evaluate_davis", 8), ("evaluate_incontext", 8), ("features", 8), ("train_dora", 32)])
def test_each_data_loading_process_has_a_cpu(requests, rule, cpus):
    assert int(requests[rule]["threads"]) == cpus
