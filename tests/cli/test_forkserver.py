"""A job that is forked has what its command has, ends as it does, and leaves nothing. Else the command runs by itself.

The server of these tests imports no torch, and its command runs a program: tests/workflow/test_forkserver.py has real jobs.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from densewalk.cli.forkserver import start
from densewalk.cli.forkserver.protocol import ADDRESS, LATER, OFF, THREADS

SERVER = """
import sys
from densewalk.cli import main as command
from densewalk.cli.forkserver import server
server.import_base = lambda: None
command.main = lambda: exec(open(sys.argv[2]).read(), {"__name__": "__main__"}) or 0
sys.exit(server.main(sys.argv[1:]))
"""
COMMAND = """
import os, sys
from densewalk.cli import main as command
command.main = lambda argv: exec(open(sys.argv[2]).read(), {"__name__": "__main__"}) or 0
from densewalk.__main__ import main
sys.exit(main())
"""
# all that a job can see of how it was started
SELF = """
import json, os, resource, signal, sys, tempfile, threading
print(json.dumps({
    "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(), "umask": os.umask(0), "tmp": tempfile.gettempdir(),
    "environment": {name: value for name, value in os.environ.items() if name != "DENSEWALK_FORK_SERVER"},
    "descriptors": [os.path.exists(f"/proc/self/fd/{n}") for n in range(64)], "out": os.readlink("/proc/self/fd/1"),
    "signals": [str(signal.getsignal(n)) if signal.getsignal(n) in (0, 1) else "Python's" for n in sorted(signal.valid_signals())],
    "blocked": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])], "threads": threading.active_count(),
    "modules": "densewalk.cli.forkserver.job" in sys.modules, "cpu": resource.getrusage(resource.RUSAGE_SELF).ru_utime < 5,
}))
"""


class Jobs:
    """A server, and commands of jobs for it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(start, "SERVER", [sys.executable, "-c", SERVER])
            started = start.start_server([LATER])
        self.server = started.process
        self.environment = {**start.environment_of_jobs(os.environ), ADDRESS: started.address}

    def begin(self, program: str, environment: dict[str, str] | None = None, **options) -> "subprocess.Popen[str]":
        """Start the command of a job that is this program."""
        file = self.folder / f"{secrets.token_hex(4)}.py"
        file.write_text(program)
        command = [sys.executable, "-c", COMMAND, "tables", str(file)]
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen(command, env={**self.environment, **(environment or {})}, text=True, **pipes, **options)

    def run(self, program: str, environment: dict[str, str] | None = None, **options) -> tuple[int, str, str]:
        """Status, output and errors of a job that is this program."""
        process = self.begin(program, environment, **options)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    made = Jobs(tmp_path_factory.mktemp("jobs"))
    yield made
    made.server.kill()
    made.server.wait()


def is_alive(process: int) -> bool:
    """True unless it has ended, or only its parent has not asked yet how."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except OSError:
        return False


def ends(*processes: int) -> bool:
    """True if all end within seconds."""
    deadline = time.monotonic() + 20
    while any(map(is_alive, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2].split()[1])


def test_a_job_has_what_its_command_would_have(jobs, tmp_path):
    def seen(address):
        options = {"cwd": tmp_path, "umask": 0o027, "preexec_fn": lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN)}
        file = jobs.folder / "self.py"
        file.write_text(SELF)
        command = [sys.executable, "-c", COMMAND, "tables", str(file), "ä", "\udcff"]
        with open(tmp_path / "out", "w+") as out:
            environment = {**jobs.environment, ADDRESS: address}
            subprocess.run(command, env=environment, stdout=out, check=True, timeout=60, stdin=subprocess.DEVNULL, **options)
            out.seek(0)
            return json.load(out)

    fresh, forked = seen(OFF), seen(jobs.environment[ADDRESS])
    assert forked.pop("modules")
    assert not fresh.pop("modules")
    assert forked == fresh
    assert forked["umask"] == 0o027


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("import sys; sys.exit(75)", 75),
        ("import sys; sys.exit('a message')", 1),
        ("1 / 0", 1),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.kill(os.getpid(), 15)", -15),
        ("raise KeyboardInterrupt", -2),
        ("import atexit; atexit.register(print, 'end'); print('begin')", 0),
    ],
)
def test_a_command_ends_as_its_job(jobs, program, status):
    found, out, err = jobs.run(program)
    assert found == status, err
    assert out == ("begin\nend\n" if status == 0 else "")
    assert ("ZeroDivisionError" in err) == ("1 / 0" in program)
    assert ("a message" in err) == ("message" in program)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_signals_reach_the_job_once(jobs, number):
    program = f"""
import os, signal, time
seen = []
signal.signal({int(number)}, lambda *_: seen.append(1))
print(os.getpid(), flush=True)
while not seen: time.sleep(0.01)
time.sleep(0.1)
raise SystemExit(40 + len(seen))
"""
    process = jobs.begin(program, start_new_session=True)
    job = int(process.stdout.readline())
    assert os.getpgid(job) == job  # Ctrl-C of a terminal goes to the command alone
    os.killpg(process.pid, number)
    assert process.wait(20) == 41


WAITING = """
import os, subprocess, time
child = subprocess.Popen(["sleep", "100"])
print(os.getpid(), child.pid, flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("victim", ["command", "keeper", "job"])
def test_whatever_is_killed_the_others_end(jobs, victim):
    process = jobs.begin(WAITING)
    job, child = map(int, process.stdout.readline().split())
    keeper = parent(job)
    os.kill({"command": process.pid, "keeper": keeper, "job": job}[victim], signal.SIGKILL)
    assert process.wait(20) == -signal.SIGKILL
    assert ends(job, keeper)
    if victim == "command":
        assert ends(child)
    else:  # as without a server
        os.kill(child, signal.SIGKILL)
    assert jobs.server.poll() is None


def test_a_stopped_command_stops_its_job(jobs):
    process = jobs.begin(WAITING)
    job, child = map(int, process.stdout.readline().split())
    process.send_signal(signal.SIGTSTP)
    deadline = time.monotonic() + 20
    while (state := Path(f"/proc/{job}/stat").read_text().rpartition(") ")[2][0]) != "T":
        assert time.monotonic() < deadline, state
        time.sleep(0.02)
    process.send_signal(signal.SIGCONT)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == -signal.SIGTERM
    assert ends(job)
    os.kill(child, signal.SIGKILL)


def test_a_job_outlives_the_server_and_others_run_by_themselves(tmp_path):
    jobs = Jobs(tmp_path)
    process = jobs.begin("import time; print('begun', flush=True); time.sleep(1); print('done')")
    assert process.stdout.readline() == "begun\n"
    jobs.server.kill()
    jobs.server.wait()
    assert process.stdout.read() == "done\n"
    assert process.wait(20) == 0
    status, out, err = jobs.run("print('alone')")
    assert (status, out) == (0, "alone\n")
    assert "imports what it needs by itself: the fork server does not answer" in err


@pytest.mark.parametrize("how", ["ends", "killed"])
def test_the_server_ends_with_the_driver(tmp_path, how):
    program = f"""
import os, sys, time
from densewalk.cli.forkserver import start
start.SERVER = [sys.executable, "-c", {SERVER!r}]
start.serve_jobs({{"table": 2}})
print(os.environ[{ADDRESS!r}], open(f"/proc/self/task/{{os.getpid()}}/children").read(), flush=True)
sys.stdin.read()
"""
    driver = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    address, server = driver.stdout.readline().split()
    if how == "ends":
        driver.stdin.close()
    else:
        driver.kill()
    driver.wait(20)
    assert ends(int(server))
    assert address not in Path("/proc/net/unix").read_text()
    assert not list(tmp_path.iterdir())


def test_another_environment_or_folder_of_packages_is_refused(jobs, tmp_path):
    program = "import sys; print('densewalk.cli.forkserver.job' in sys.modules)"
    assert jobs.run(program, dict.fromkeys(THREADS, "2"))[1] == "True\n"
    folder = "import tempfile; print(tempfile.gettempdir())"
    assert jobs.run(folder, {"TMPDIR": str(tmp_path)}) == (0, f"{tmp_path}\n", ""), "each job has its own temporary folder"
    for change, reason in (
        ({"MKL_CBWR": "AVX2"}, "variable MKL_CBWR"),
        ({"OMP_NUM_THREADS": "3"}, "do not all say the same number"),
    ):
        status, out, err = jobs.run(program, change)
        assert (status, out) == (0, "False\n")
        assert reason in err
    status, out, err = jobs.run(program, preexec_fn=lambda: os.nice(1))
    assert (out, "the priority" in err) == ("False\n", True)
    assert jobs.run(program, {"WORLD_SIZE": "2"}) == (0, "False\n", "")  # a process that torchrun has started
    assert jobs.run(program, {ADDRESS: OFF}) == (0, "False\n", "")


def test_random_numbers_differ_between_jobs(jobs):
    program = "import random; print(random.random())"
    assert len({jobs.run(program)[1] for _ in range(2)}) == 2


def test_global_generators_are_seeded_again_in_each_job():
    program = """
import os, sys
import numpy as np, torch
from densewalk.cli.forkserver.job import _reset_random_numbers
np.random.seed(0)
torch.manual_seed(0)
for _ in range(2):
    if os.fork() == 0:
        _reset_random_numbers()
        os.write(1, f"{np.random.random()} {torch.rand(1).item()}\\n".encode())
        os._exit(0)
    os.wait()
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, timeout=60, stdout=subprocess.PIPE, text=True)
    one, two = (line.split() for line in done.stdout.splitlines())
    assert one[0] != two[0]
    assert one[1] != two[1]


def test_changed_code_and_threads_are_noticed(tmp_path):
    program = f"""
import os, sys, threading
from pathlib import Path
from densewalk.cli.forkserver import server
server._PACKAGE = Path({str(tmp_path)!r})
(server._PACKAGE / "a.py").write_text("1")
before = server.code_stamp()
(server._PACKAGE / "__pycache__").mkdir()
(server._PACKAGE / "__pycache__" / "a.pyc").write_text("1")
assert server.code_stamp() == before
(server._PACKAGE / "b.py").write_text("1")
assert server.code_stamp() != before
assert server._obstacle() is None
threading.Thread(target=threading.Event().wait, daemon=True).start()
assert "thread" in server._obstacle()
os._exit(0)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_modules_follow_from_the_rules(monkeypatch):
    monkeypatch.setattr(start, "has_gpu", lambda: False)
    assert start.modules_of({"evaluate_davis": 1, "generate": 5}) == []
    modules = start.modules_of({"all": 1, "evaluate_coco": 2, "train_dora": 1, "table": 3})
    first, later = modules[: modules.index(LATER)], modules[modules.index(LATER) + 1 :]
    assert first == ["densewalk.evaluations.coco.evaluate", "densewalk.methods.dora.method"]
    assert later[:2] == ["densewalk.evaluations.mmlab.detection", "torch._dynamo"]
    assert later[2:] == ["densewalk.results.tables", "densewalk.results.gain"]
    monkeypatch.setattr(start, "has_gpu", lambda: True)
    assert not [module for module in start.modules_of({"evaluate_coco": 2, "evaluate_ade20k_linear": 1}) if module != LATER]
