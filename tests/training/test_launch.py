"""How a job becomes processes; the real srun and torchrun run in test_slurm.py and test_loop.py."""

import os
import signal
import subprocess
import sys

import pytest

from densewalk.core.errors import UserError
from densewalk.training import launch


@pytest.fixture
def started(monkeypatch):
    """The launcher that this process would become, and its environment."""
    commands = []
    monkeypatch.setattr(sys, "argv", ["densewalk", "train", "--nodes", "2"])
    for name in [n for n in os.environ if n.startswith("SLURM_")] + ["WORLD_SIZE", "CUDA_VISIBLE_DEVICES", launch.FIRST_NODE]:
        monkeypatch.delenv(name, raising=False)

    class Launched(Exception):
        pass

    def note(*command):
        commands.append(command)
        raise Launched

    monkeypatch.setattr(launch, "torchrun", note)
    monkeypatch.setattr(os, "execvpe", note)

    def become(*args):
        with pytest.raises(Launched):
            launch.become_processes(*args)
        return commands[-1]

    return become


def test_one_process_is_this_one(started, monkeypatch):
    launch.become_processes(0, 1, 4)
    launch.become_processes(1, 1, 4)
    monkeypatch.setenv("WORLD_SIZE", "8")
    launch.become_processes(4, 2, 4)


def test_one_node_is_torchrun(started):
    assert started(4, 1, 8) == (["--nproc-per-node=4", "--standalone", "-m", "densewalk", "train", "--nodes", "2"],)


def test_nodes_are_srun_and_then_torchrun_with_the_gpus_of_each(started, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "123456")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setattr(launch.socket, "gethostname", lambda: "first")
    program, command, environment = started(0, 2, 8)
    assert program == command[0] == "srun"
    assert {"--overlap", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=8"} <= {*command}
    assert "SLURM_NTASKS" not in environment, "the size of the step that calls"
    assert environment[launch.FIRST_NODE] == "first:23456"
    monkeypatch.setenv(launch.FIRST_NODE, environment[launch.FIRST_NODE])
    monkeypatch.setenv("SLURM_NODEID", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    (arguments,) = started(0, 2, 8)
    assert arguments[:5] == ["--nproc-per-node=3", "--nnodes=2", "--node-rank=1", "--master-addr=first", "--master-port=23456"]


def test_the_warning_reaches_processes_that_left_the_group():
    listen = "import signal; signal.signal(signal.SIGUSR1, lambda *_: exit(7)); print('ready', flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", listen], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert child.stdout.readline() == "ready\n"
    launch.forward_signal(signal.SIGUSR1, None)
    assert child.wait(30) == 7


def test_nodes_need_slurm(started):
    with pytest.raises(UserError, match="several nodes need a Slurm job; to do: use --profile slurm"):
        launch.become_processes(0, 2, 1)


CLAIM = """
import os, sys
from densewalk.training.launch import claim_gpus
claim_gpus(int(sys.argv[1]), "auto")
print(os.environ["CUDA_VISIBLE_DEVICES"], flush=True)
input()
"""


def test_jobs_side_by_side_take_different_gpus(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
    environment |= {"CUDA_VISIBLE_DEVICES": "0,2,5", "TMPDIR": str(tmp_path)}

    def claim(count):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        return subprocess.Popen([sys.executable, "-c", CLAIM, str(count)], env=environment, text=True, **pipes)

    first = claim(2)
    assert first.stdout.readline().strip() == "0,2"
    second = claim(1)
    assert second.stdout.readline().strip() == "5"
    third = claim(2)  # waits: what the second holds is not enough
    second.communicate("\n")
    first.kill()  # however a job ends, its claim does
    first.wait()
    assert third.stdout.readline().strip() == "0,2"
    third.communicate("\n")


def test_fewer_gpus_than_asked_for_are_all_used(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(launch, "LOCKS", tmp_path / "locks")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with caplog.at_level("INFO", logger="densewalk"):
        assert launch.claim_gpus(2, "auto") == 1
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    assert "2 GPUs are asked for, 1 is here and used" in caplog.text


def test_without_gpus_one_process_computes_unless_the_study_asks_for_the_cpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert launch.claim_gpus(4, "auto") == 0
    assert launch.claim_gpus(2, "cpu") == 2
