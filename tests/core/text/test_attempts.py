"""Logs of several attempts."""

import io
import re
import subprocess
import sys

from PIL import Image

from densewalk.core.text.attempts import is_done, latest_attempt

buffer = io.BytesIO()
Image.new("RGB", (8, 8)).save(buffer, "png")
PNG = buffer.getvalue()
HEAD = r"==== attempt (\d), \d{4}-\d\d-\d\d \d\d:\d\d:\d\d, \S+, process \d+ ====\n"


def test_each_attempt_of_a_job_begins_with_time_and_number(tmp_path):
    log = tmp_path / "job.log"
    for _ in range(2):
        with log.open("a") as file:
            command = [sys.executable, "-m", "densewalk", "check-images", "--receipt", "x.json", "--settings", '{"source": "nowhere"}']
            assert subprocess.run(command, cwd=tmp_path, stderr=file, check=False).returncode == 2
    text = log.read_text()
    assert re.findall(HEAD, text) == ["1", "2"]
    assert latest_attempt(text) == re.split(HEAD, text)[-1]
    assert latest_attempt(text).count("error: ") == 1
    assert not is_done(text)
    (tmp_path / "nowhere").mkdir()
    (tmp_path / "nowhere" / "a.png").write_bytes(PNG)
    with log.open("a") as file:
        assert subprocess.run(command, cwd=tmp_path, stderr=file, check=False).returncode == 0
    assert is_done(log.read_text())
    assert not is_done(f"{log.read_text()}==== attempt 4, 2026-01-01 00:00:00, here, process 7 ====\n")


def test_a_log_without_attempts_is_one():
    assert latest_attempt("error: a\nb\n") == "error: a\nb\n"


def test_other_commands_write_no_such_line(tmp_path):
    with (tmp_path / "log").open("w") as file:
        subprocess.run([sys.executable, "-m", "densewalk", "check", "none.yaml"], cwd=tmp_path, stderr=file, check=False)
    assert "====" not in (tmp_path / "log").read_text()
