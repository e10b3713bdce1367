"""Logs to which every attempt of a job is appended, each below a line that says when it began, and above one if it came to its end."""

import os
import re
import stat
import time
from pathlib import Path

_DONE = "==== done ===="
_HEAD = re.compile(r"^==== attempt (\d+), .* ====$", re.MULTILINE)


def begin_attempt() -> None:
    """Write number and time of this attempt to the file that standard error is; nothing if it is no file."""
    if not stat.S_ISREG(os.fstat(2).st_mode):
        return
    log = Path("/proc/self/fd/2")  # a link to the file
    earlier = [int(number) for number in _HEAD.findall(log.read_text(encoding="utf-8", errors="replace"))] if log.exists() else []
    slurm = f", Slurm job {number}" if (number := os.environ.get("SLURM_JOB_ID")) else ""
    where = f"{os.uname().nodename}, process {os.getpid()}{slurm}"
    head = f"==== attempt {max(earlier, default=0) + 1}, {time.strftime('%Y-%m-%d %H:%M:%S')}, {where} ====\n"
    os.write(2, head.encode())


def end_attempt() -> None:
    """Say in the file that standard error is that this attempt has made what it should; nothing if it is no file."""
    if stat.S_ISREG(os.fstat(2).st_mode):
        os.write(2, f"{_DONE}\n".encode())


def is_done(text: str) -> bool:
    """True if the latest attempt of a log has come to its end without an error."""
    return latest_attempt(text).rstrip().endswith(_DONE)


def latest_attempt(text: str) -> str:
    """What the latest attempt has written of a log; all of it, if none has said that it began."""
    heads = list(_HEAD.finditer(text))
    return text[heads[-1].end() :].lstrip("\n") if heads else text
