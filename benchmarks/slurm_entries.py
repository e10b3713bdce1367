"""Entries of Slurm's queue and CPU seconds of small evaluations of one backbone, with and without shared entries, in turns.

    python -m benchmarks.slurm_entries [--rounds 3]

Needs what the tests on a real Slurm need (tests/fixtures/cluster.py): root, and Debian's packages of Slurm. Counted is what Slurm's jobs
take on the nodes: of each step and batch script, its own time and that of all processes that it has waited for.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tests.fixtures import cluster
from tests.fixtures.cluster import Cluster
from tests.fixtures.studies import REPOSITORY, TINY, snakemake, write_study

SMALL = {"root": "data/DAVIS", "dataset": "synthetic DAVIS layout", "layout": "davis", "size": 96}
CLUSTERS = {**SMALL, "dataset_size": 48, "clusters": 5, "dataset_clusters": 6, "restarts": 1}
EVALUATIONS = {
    **TINY["evaluations"],
    "clip_propagation": {"protocol": "clip_propagation", "settings": SMALL},
    "video_segmentation": {"protocol": "video_segmentation", "settings": CLUSTERS},
}
RECORDS = [f"results/start/s0/{name}.json" for name in EVALUATIONS]
MINUTES = (0, 1440)
ASKED = ["slurm_partition=gpu", "nodes=1", "mem_mb=16000", "node_mem_mb=500000", "runtime=120"]
SOON = ["--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "10"]


def steps() -> dict[tuple[str, str], float]:
    """CPU seconds of each of Slurm's steps and batch scripts that runs now, by process and its start."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended meanwhile
            if (process / "comm").read_text().strip() == "slurmstepd":
                values = (process / "stat").read_text().rpartition(") ")[2].split()
                found[process.name, values[19]] = sum(map(int, values[11:15])) / os.sysconf("SC_CLK_TCK")
    return found


def measure(folder: Path, minutes: int) -> tuple[int, float]:
    """Entries of the queue and CPU seconds of all evaluations, if an entry may ask for so many minutes."""
    for record in RECORDS:
        (folder / record).unlink(missing_ok=True)
    earlier = steps()
    resources = [*ASKED, f"joint_minutes={minutes}"]
    command = [sys.executable, "-m", "snakemake", "--profile", "slurm", "--directory", str(folder), *SOON]
    with open(folder / "driver.log", "w") as log:
        driver = subprocess.Popen([*command, "--default-resources", *resources, "--", *RECORDS], cwd=REPOSITORY, stdout=log, stderr=log)
        seen: dict[tuple[str, str], float] = {}
        while driver.poll() is None:
            seen |= steps()
            time.sleep(0.05)
    said = (folder / "driver.log").read_text()
    if driver.returncode:
        raise SystemExit(said[-3000:])
    return said.count("has been submitted with SLURM jobid"), sum(seconds for step, seconds in seen.items() if step not in earlier)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print entries of the queue and the median of CPU seconds, for both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args(arguments).rounds
    if reason := cluster.missing():
        raise SystemExit(f"no Slurm cluster can be started here: {reason}")
    with tempfile.TemporaryDirectory() as place:
        runs = {"start": {**TINY["runs"]["start"], "seeds": [0]}}
        folder = write_study(Path(place) / "study", {**TINY, "runs": runs, "evaluations": EVALUATIONS})
        snakemake(folder, "results/start/s0/backbone.safetensors", "data/receipt.json")
        (Path(place) / "cluster").mkdir()
        with Cluster(Path(place) / "cluster"):
            found = [[measure(folder, minutes) for minutes in MINUTES] for _ in range(rounds)]
    print(f"{len(RECORDS)} evaluations of one backbone")
    for minutes, values in zip(MINUTES, zip(*found, strict=True), strict=True):
        entries, seconds = zip(*values, strict=True)
        print(f"joint_minutes={minutes}: {max(entries)} entries, {statistics.median(seconds):.1f} CPU-s")


if __name__ == "__main__":
    main()
