"""Lack of memory, from the kernel's kill to the next attempt's request."""

import os
import signal
import time

import pytest

from densewalk.core.memory import KILLED, MemoryOfJobs, kills, tells_of_it, watched


def job_that_ends(tmp_path, end, *, kernel_kills):
    """What the log says of a job that counts kills in a file, and ends like this."""
    counter, log = tmp_path / "kills", tmp_path / "job.log"
    counter.write_text("3")
    job = os.fork()
    if job == 0:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), 2)
        with watched(lambda: int(counter.read_text())) as ends_for_another_reason:
            if os.fork() == 0:  # a data-loading process that survives it
                time.sleep(2)
                os._exit(0)
            if kernel_kills:
                counter.write_text("4")
            end(ends_for_another_reason)
        os._exit(0)
    os.waitpid(job, 0)
    deadline = time.monotonic() + (5 if kernel_kills else 0.3)
    while not tells_of_it(log) and time.monotonic() < deadline:
        time.sleep(0.02)
    return log.read_text()


def killed(_explained):
    os.kill(os.getpid(), signal.SIGKILL)


def stopped(explained):
    explained()
    os._exit(75)


def failed(_explained):
    os._exit(1)


@pytest.mark.parametrize("end", [killed, failed])
def test_a_job_that_the_kernel_kills_for_memory_leaves_a_line_in_its_log(tmp_path, end):
    assert KILLED in job_that_ends(tmp_path, end, kernel_kills=True)


def test_a_job_that_is_killed_otherwise_leaves_none(tmp_path):
    assert KILLED not in job_that_ends(tmp_path, killed, kernel_kills=False)


def test_a_job_that_stops_for_another_reason_leaves_none_while_others_are_killed(tmp_path):
    assert KILLED not in job_that_ends(tmp_path, stopped, kernel_kills=True)


def test_the_kernel_tells_how_many_processes_it_has_killed():
    assert kills() is not None


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("MemoryError", True),
        (
            "RuntimeError: [enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to",
            True,
        ),
        ("OSError: [Errno 12] Cannot allocate memory", True),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.batch. Some of the step tasks have been OOM Killed.", True),
        ("slurmstepd: error: Step 7.0 exceeded memory limit (413696 > 307200), being killed", True),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB", False),
        ("slurmstepd: error: *** JOB 7 ON node1 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***", False),
        ("step 100: loss 4.2, memory 61 GiB", False),
    ],
)
def test_words_of_a_lack_of_memory(tmp_path, line, said):
    log = tmp_path / "job.log"
    log.write_text(f"begun\n{line}\nended\n")
    assert tells_of_it(log) is said
    log.write_text(f"{line}\n==== attempt 2, 2026-01-01 00:00:00, here, process 7 ====\nDUE TO TIME LIMIT\n")
    assert not tells_of_it(log), "it was an earlier attempt's"


class Job:
    """Logs of attempts, and what the next one asks for."""

    def __init__(self, folder, most=None):
        self.memory, self.log, self.most = MemoryOfJobs(), folder / "job.log", most

    def fails(self, attempt, line):
        self.log.write_text(line)
        os.utime(self.log, ns=(attempt * 10**9,) * 2)

    def asks(self, attempt):
        return self.memory.asked("job", attempt, 100, lambda: [self.log], self.most)


def test_memory_grows_after_a_lack_of_memory_and_not_after_a_time_limit(tmp_path):
    job, asked = Job(tmp_path, most=350), []
    for attempt, line in enumerate(["MemoryError", "time limit", "MemoryError", "MemoryError"], start=1):
        asked.append(job.asks(attempt))
        assert job.asks(attempt) == asked[-1]
        job.fails(attempt, line)
    assert [*asked, job.asks(5)] == [100, 200, 200, 350, 350]


def test_a_log_is_counted_once(tmp_path):
    """The second attempt never began, so that the first one's log is still there."""
    job = Job(tmp_path)
    job.fails(1, "MemoryError")
    assert [job.asks(2), job.asks(3)] == [200, 200]


def test_a_node_has_no_more(tmp_path):
    assert Job(tmp_path, most=60).asks(1) == 60


def test_a_log_that_is_shared_with_other_jobs_is_read_for_the_job_that_it_is_about(tmp_path):
    job, other, shared = Job(tmp_path), Job(tmp_path), tmp_path / "entry.log"
    shared.write_text("slurmstepd: error: Exceeded job memory limit")
    job.memory.add_log("job", shared)
    for each in (job, other):
        each.fails(1, "begun")
    assert [job.asks(2), other.asks(2)] == [200, 100]
