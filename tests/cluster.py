"""A Slurm cluster of two nodes on the loopback interface, with fake GPUs; as root, without systemd, in a folder of its own.

    python -m tests.cluster start DIR        # then: squeue, sbatch, snakemake --profile slurm ...
    python -m tests.cluster stop DIR

Needs Debian's packages slurmctld, slurmd, slurm-client and munge. One such cluster can run on a machine: the step executor
of Snakemake clears SLURM_CONF, so that srun only finds its configuration in /etc/slurm.
"""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "squeue")
SYSTEM = Path("/etc/slurm")
CONTROLLER, NODES = 16817, {"node1": 16818, "node2": 16819}  # ports
CPUS, GPUS, MEMORY = 64, 8, 1_000_000  # what a node claims to have: as much as the profile's largest job asks for

CONFIGURATION = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/none
MailProg=/bin/true
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=bf_interval=5
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
MinJobAge=3600
KillWait=15
SlurmctldTimeout=10
SlurmdTimeout=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
{nodes}
PartitionName=gpu Nodes=ALL Default=YES MaxTime=3-00:00:00 DefMemPerCPU=500 PriorityTier=10
PartitionName=urgent Nodes=ALL MaxTime=1:00:00 DefMemPerCPU=500 PriorityTier=100
"""
NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} SocketsPerBoard=1 CoresPerSocket={cpus}"
    " ThreadsPerCore=1 RealMemory={memory} Gres=gpu:{gpus}"
)


def missing() -> str:
    """Why no cluster can be started here; empty if one can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed (apt-get install slurmctld slurmd slurm-client munge)"
    if os.geteuid():
        return "the daemons must be started by root"
    there = SYSTEM / "slurm.conf"
    return f"{there} exists: this machine belongs to a cluster" if there.exists() and not there.is_symlink() else ""


class Cluster:
    """Starts its daemons on entering and ends them and all jobs on leaving."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> "Cluster":
        self.configure()
        folder = self.folder
        files = {name: f"--{name}-file={folder}/munge/{name}" for name in ("key", "seed", "pid", "log")}
        run("munged", "--force", *files.values(), f"--socket={folder}/munge/socket", "--num-threads=2")
        self.start_controller()
        for node in NODES:
            run("slurmd", "-N", node, "-f", f"{folder}/slurm.conf")
        wait_for(lambda: {*ask("sinfo", "-h", "-N", "-o", "%T").split()} <= {"idle", "mixed", "allocated"}, "the nodes")
        return self

    def __exit__(self, *_: object) -> None:
        run("scancel", "-u", "root", "--quiet", check=False)
        # a job whose node is gone stays in the queue; all that matters is that its processes are
        wait_for(lambda: not ask("squeue", "-h"), "the jobs' end", seconds=40, needed=False)
        for name in (*(f"{node}.pid" for node in NODES), "slurmctld.pid", "munge/pid"):
            self.end(self.folder / name)
        for name in ("slurm.conf", "gres.conf"):
            if (SYSTEM / name).is_symlink():
                (SYSTEM / name).unlink()

    def configure(self) -> None:
        """Write configuration and key, and make the GPUs: character devices, without which jobs are not told their numbers."""
        for name in ("controller", *NODES, "munge", "gpus"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        for folder in (self.folder, *self.folder.parents[:-1]):
            folder.chmod(folder.stat().st_mode | 0o011)  # munge wants a path that everybody may pass
        (self.folder / "munge").chmod(0o711)
        key = self.folder / "munge" / "key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        for number in range(GPUS):
            device = self.folder / "gpus" / f"gpu{number}"
            if not device.exists():
                run("mknod", str(device), "c", "1", "3")
        host = os.uname().nodename.split(".")[0]
        sizes = {"host": host, "cpus": CPUS, "gpus": GPUS, "memory": MEMORY}
        nodes = "\n".join(NODE.format(name=name, port=port, **sizes) for name, port in NODES.items())
        (self.folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=self.folder, controller=CONTROLLER, nodes=nodes))
        (self.folder / "gres.conf").write_text(f"Name=gpu File={self.folder}/gpus/gpu[0-{GPUS - 1}]\n")
        SYSTEM.mkdir(exist_ok=True)
        for name in ("slurm.conf", "gres.conf"):
            (SYSTEM / name).unlink(missing_ok=True)
            (SYSTEM / name).symlink_to(self.folder / name)

    def start_controller(self) -> None:
        """slurmctld, ready to answer; it finds the jobs of its predecessor again."""
        run("slurmctld", "-f", f"{self.folder}/slurm.conf")
        wait_for(lambda: run("scontrol", "ping", check=False).returncode == 0, "slurmctld")

    def end(self, pid_file: Path) -> None:
        """End the daemon that wrote the file."""
        if not pid_file.exists():
            return
        number = int(pid_file.read_text())
        run("kill", str(number), check=False)
        wait_for(lambda: not Path(f"/proc/{number}").exists(), pid_file.name, seconds=30)

    def end_controller(self) -> None:
        """slurmctld is away; jobs run on."""
        self.end(self.folder / "slurmctld.pid")


def run(*command: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    """A command to its end."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if check and done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return done


def ask(*command: str) -> str:
    """What a command prints; nothing if it fails."""
    return run(*command, check=False).stdout.strip()


def wait_for(happened: Callable[[], object], what: str, *, seconds: float = 60, needed: bool = True) -> None:
    """Return as soon as it has happened.

    Raises:
        TimeoutError: it has not, and was needed.
    """
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            if needed:
                raise TimeoutError(f"waited {seconds:.0f} s for {what}")
            return
        time.sleep(0.05)


if __name__ == "__main__":
    verb, cluster = sys.argv[1], Cluster(Path(sys.argv[2]).resolve())
    cluster.__enter__() if verb == "start" else cluster.__exit__()
