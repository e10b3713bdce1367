"""On the node: jobs of an entry run one after the other, and none is lost by the end of another."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from densewalk.cli.forkserver.protocol import ADDRESS, OFF, THREADS
from densewalk.cli.joint import node, step
from densewalk.cli.joint.plan import JointPlan, Member, Progress, read_progress, write_plan, write_progress


def member(name: str, command: str, inputs: Sequence[str] = ()) -> Member:
    return Member(
        rule="evaluate_davis",
        command=command,
        threads=3,
        inputs=[*inputs],
        outputs=[f"results/{name}.json"],
        folders=["results", "logs"],
        markers=[f"incomplete-{name}"],
    )


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """A function that plans an entry of these jobs: its folder."""
    monkeypatch.setenv(ADDRESS, OFF)
    (tmp_path / "entry").mkdir()

    def plan(*members: Member) -> Path:
        for name in "abc":
            (tmp_path / f"incomplete-{name}").touch()
        write_plan(tmp_path / "entry", JointPlan(folder=str(tmp_path), latency=2.0, members=[*members]))
        return tmp_path / "entry"

    return plan


def start_and_wait(entry, file):
    """The node's process, when a job of it has made a file."""
    process = start(entry)
    while not file.exists():
        time.sleep(0.05)
    return process


def start(entry: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-P", "-m", "densewalk.cli.joint.node", str(entry)], stdout=subprocess.DEVNULL)


def made(entry: Path) -> list[str]:
    return sorted(path.stem for path in (entry.parent / "results").glob("*.json"))


def test_a_failure_of_one_loses_no_other(planned, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results/b.json").write_text("outdated")
    os.utime(tmp_path / "results/b.json", (1, 1))
    entry = planned(
        member("a", f"echo ${THREADS[0]} $TMPDIR > results/a.json"),
        member("b", "exit 2 2> logs/b.log"),
        member("c", "kill -9 $$"),
        member("d", "touch results/d.json"),
    )
    assert start(entry).wait(60) == node.FAILED
    found = [read_progress(entry, number) for number in range(4)]
    assert [progress.status for progress in found] == [0, 2, 137, 0]
    assert made(entry) == ["a", "d"], "of a job that failed, nothing is left that looks like its output"
    assert (tmp_path / "results/a.json").read_text().split()[0] == "3"
    assert sorted(path.name for path in tmp_path.glob("incomplete-*")) == ["incomplete-b", "incomplete-c"]


def test_an_entry_that_is_queued_again_goes_on(planned, tmp_path):
    entry = planned(*(member(name, f"echo again > results/{name}.json") for name in "abcd"))
    write_progress(entry, 0, Progress(status=0, over=True))
    write_progress(entry, 1, Progress(status=2, over=True))
    write_progress(entry, 2, Progress())  # it was killed while it ran
    write_progress(entry, 3, Progress(begun=False, over=True))
    assert start(entry).wait(60) == node.FAILED
    assert made(entry) == ["c", "d"]
    assert read_progress(entry, 2) == read_progress(entry, 3) == Progress(status=0, over=True)


def test_what_was_made_meanwhile_is_not_made_again(planned, tmp_path):
    entry = planned(member("a", "exit 1"))
    (tmp_path / "results").mkdir()
    (tmp_path / "results/a.json").write_text("by another")
    later = time.time() + 10
    os.utime(tmp_path / "results/a.json", (later, later))
    assert start(entry).wait(60) == 0
    assert (tmp_path / "results/a.json").read_text() == "by another"


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_after_a_signal_no_further_job_is_begun(planned, tmp_path, number):
    entry = planned(member("a", "touch begun; sleep 1; touch results/a.json"), member("b", "touch results/b.json"))
    process = start_and_wait(entry, tmp_path / "begun")
    process.send_signal(number)
    assert process.wait(60) == node.LEFT
    assert made(entry) == ["a"], "what has begun may come to its end"
    assert read_progress(entry, 1) == Progress(begun=False, over=True)


def test_what_a_signal_has_ended_has_not_failed(planned, tmp_path):
    entry = planned(member("a", "touch begun; sleep 2; exit 143"))
    process = start_and_wait(entry, tmp_path / "begun")
    process.terminate()
    assert process.wait(60) == node.LEFT
    assert read_progress(entry, 0) == Progress(status=None, over=True)


def test_what_a_signal_has_ended_after_its_output_is_made(planned, tmp_path):
    entry = planned(member("a", "sleep 0.1; touch results/a.json; touch begun; sleep 2; exit 143"))
    process = start_and_wait(entry, tmp_path / "begun")
    process.terminate()
    assert process.wait(60) == 0
    assert read_progress(entry, 0) == Progress(status=0, over=True)


def ignores_warning(process: int) -> bool:
    ignored = next(line for line in Path(f"/proc/{process}/status").read_text().splitlines() if line.startswith("SigIgn:"))
    return bool(int(ignored.split()[1], 16) >> (signal.SIGUSR1 - 1) & 1)


def test_jobs_and_fork_server_work_on_after_the_warning(planned, tmp_path, monkeypatch):
    """Slurm signals every process of a step: one that does not expect it would end."""
    servers = []

    def serve(_rules):
        servers.append(subprocess.Popen(["sleep", "30"]))

    monkeypatch.setattr(node, "serve_jobs", serve)
    monkeypatch.chdir(tmp_path)
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)}
    try:
        assert node.main([str(planned(member("a", "grep SigIgn /proc/$$/status > results/a.json; kill -USR1 $$")))]) == 0
        assert ignores_warning(servers[0].pid)
    finally:
        servers[0].kill()
        servers[0].wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    assert (tmp_path / "results/a.json").exists()


def test_files_of_other_nodes_are_waited_for(planned, tmp_path):
    entry = planned(member("a", "cat backbone > results/a.json", inputs=["backbone"]))
    process = start(entry)
    time.sleep(1)
    (tmp_path / "backbone").write_text("seen")
    assert process.wait(60) == 0
    assert (tmp_path / "results/a.json").read_text() == "seen"


def test_a_plan_that_cannot_be_read_is_one_line(tmp_path, capsys):
    (tmp_path / "plan.json").write_text("{")
    assert node.main([str(tmp_path)]) == node.LEFT
    said = capsys.readouterr().out
    assert "error: " in said
    assert said.count("\n") == 1


def test_a_step_is_not_of_the_size_of_the_step_that_calls_it():
    own = {"PATH": "/bin", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "4", "SRUN_CPUS_PER_TASK": "4", "SBATCH_MEM": "1"}
    assert step.step_environment(own) == {"PATH": "/bin", "SLURM_JOB_ID": "7"}
