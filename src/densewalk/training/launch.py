"""Start a job's processes on this machine's GPUs (torchrun) or on several nodes (srun).

densewalk train ... --gpus 4        # torchrun, four processes
densewalk train ... --nodes 2       # in a Slurm job of two nodes: srun, and torchrun on each of them with a process per GPU
"""

import fcntl
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from densewalk.core.errors import UserError
from densewalk.core.progress import log

FIRST_NODE = "DENSEWALK_FIRST_NODE"  # host:port where the processes of all nodes meet
LOCKS = Path(tempfile.gettempdir()) / f"densewalk-gpus-{os.getuid()}"


def become_processes(gpus: int, nodes: int, threads: int) -> None:
    """Become the launcher of several processes and never return, or return to work itself.

    gpus: one process for each; on several nodes, all that Slurm gives. threads: CPUs of the job on each node.
    """
    if "WORLD_SIZE" in os.environ or max(gpus, nodes) <= 1:
        return
    command = ["-m", "densewalk", *sys.argv[1:]]
    if nodes == 1:
        torchrun([f"--nproc-per-node={gpus}", "--standalone", *command])
    if FIRST_NODE not in os.environ:
        # beside the step that calls; if one task fails, the others are killed
        steps = ["--overlap", "--kill-on-bad-exit=1", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1"]
        srun = ["srun", *steps, f"--cpus-per-task={threads}", sys.executable, *command]
        os.execvpe("srun", srun, srun_environment(dict(os.environ)))
    host, port = os.environ[FIRST_NODE].split(":")
    meet = [f"--nnodes={nodes}", f"--node-rank={os.environ['SLURM_NODEID']}", f"--master-addr={host}", f"--master-port={port}"]
    torchrun([f"--nproc-per-node={max(1, len(visible_gpus()))}", *meet, *command])


def torchrun(arguments: list[str]) -> NoReturn:
    """Start the processes of this node."""
    # torchrun itself forwards SIGTERM, and kills 30 seconds later
    from torch.distributed.run import main

    signal.signal(signal.SIGUSR1, forward_signal)
    main(arguments)
    sys.exit()


def forward_signal(number: int, _frame: object) -> None:
    """Send a signal to this process's children, which have left the group that Slurm signals."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the process has ended meanwhile
            _state, parent, *_ = stat.read_text().rpartition(") ")[2].split()
            if int(parent) == os.getpid():
                os.kill(int(stat.parent.name), number)


def srun_environment(environment: dict[str, str]) -> dict[str, str]:
    """The tasks' environment: the job, not the calling step's size; this node's address."""
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        raise UserError("several nodes need a Slurm job", todo="use --profile slurm, or set nodes to 1")
    kept = {name: value for name, value in environment.items() if not name.startswith(("SLURM_", "SRUN_"))}
    port = 20_000 + int(job) % 10_000  # below the ports that Linux hands out
    return {**kept, "SLURM_JOB_ID": job, FIRST_NODE: f"{socket.gethostname()}:{port}"}


def claim_gpus(count: int, device: str) -> int:
    """Restrict this process and its children to `count` GPUs that no other job of the user has.

    Without it, jobs that Snakemake starts side by side would all use the first one; Slurm's jobs have their own already. The
    claim is a file lock, which ends with the last process that holds it. If too few are free, wait.

    Args:
        device: `execution.device`. With `cpu` nothing is claimed, and `count` is a number of processes.

    Returns:
        Number of processes: `count`, or the number of this machine's GPUs if that is smaller; 0 means one process on the CPU.
    """
    if count < 1 or device == "cpu" or "SLURM_JOB_ID" in os.environ or "WORLD_SIZE" in os.environ:
        return count
    seen = visible_gpus()
    if count > len(seen):
        log.info("%d GPUs are asked for, %d %s here and used", count, len(seen), "is" if len(seen) == 1 else "are")
    count = min(count, len(seen))
    if not count:
        return 0
    LOCKS.mkdir(exist_ok=True)
    while len(claimed := lock_gpus(seen, count)) < count:
        log.info("waiting for %d of the GPUs %s", count, ", ".join(seen))
        time.sleep(1)
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(claimed)
    return count


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def lock_gpus(names: Sequence[str], count: int) -> list[str]:
    """Lock the first `count` of the GPUs that are free; none if they are too few."""
    held: dict[str, int] = {}
    for name in names:
        lock = os.open(LOCKS / name, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        os.set_inheritable(lock, True)
        held[name] = lock
        if len(held) == count:
            return [*held]
    for lock in held.values():
        os.close(lock)
    return []
