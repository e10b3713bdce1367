"""A job that Slurm kills for its memory asks for more, and then has enough."""

import os
import subprocess
import sys

import pytest

from tests.fixtures.cluster import PATIENCE
from tests.fixtures.studies import REPOSITORY

pytestmark = [pytest.mark.slurm, pytest.mark.workflow, pytest.mark.slow]

# a gigabyte; Snakemake itself takes some 300 MB of the job's
SNAKEFILE = f"""
import os
from pathlib import Path

rule job:
    output: "done"
    log: "job.log"
    resources: mem_mb=900, gpu=0
    shell:
        "squeue -h -j $SLURM_JOB_ID -o %m >> attempts;"
        " {sys.executable} -c 'x = bytearray(b\\"1\\") * 10**9; import time; time.sleep(12)' 2> {{log}}; touch {{output}}"

include: "{REPOSITORY}/workflow/rules/scheduler.smk"
"""


def test_memory_doubles_after_slurm_has_killed_a_job_for_it(slurm, tmp_path):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    options = ["--executor", "slurm", "--jobs", "2", "--retries", "2", "--slurm-logdir", "logs", "--latency-wait", "10"]
    asks = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1"]
    keys = ["--default-resources", "slurm_partition=gpu", "cpu_partition=urgent", "node_mem_mb=515000", "runtime=5"]
    command = ["timeout", "-k", "10", "-s", "INT", str(PATIENCE), sys.executable, "-m", "snakemake", *options, *asks, *keys]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-3000:] + "".join(log.read_text() for log in (tmp_path / "logs").rglob("*.log"))
    assert (tmp_path / "attempts").read_text().split() == ["900M", "1800M"]
    assert "job was short of memory and now asks for 1800 MB" in done.stderr
