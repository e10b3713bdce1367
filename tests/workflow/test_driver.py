"""How Snakemake goes about a study, with jobs of no time: `densewalk` is a script that touches what it should make."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from densewalk.data.receipts import write_receipt
from densewalk.data.settings import VideoSettings
from tests.fixtures.receipts import video_receipt
from tests.fixtures.studies import REPOSITORY, TINY, snakemake, write_study

pytestmark = [pytest.mark.workflow]

RUNS = {name: {**run, "seeds": [0, 1]} for name, run in TINY["runs"].items()}
COCO = {"protocol": "coco", "seeds": [0], "settings": {"root": "data/coco", "dataset": "synthetic COCO layout"}}
STUDY = {**TINY, "runs": RUNS, "evaluations": {"coco": COCO, **TINY["evaluations"]}}

# touches the files of --out, --receipt and --root; before that, what the file `first` says
DENSEWALK = """#!/bin/bash
[ -f first ] && . ./first
while [ $# -gt 0 ]; do
    case $1 in
        --out) out=$2 ;;
        --out=*) out=${1#*=} ;;
        --receipt) touch $2 ;;
        --root=*) mkdir -p ${1#*=}; echo '{}' > ${1#*=}/receipt.json ;;
    esac
    shift
done
case $out in
    "") ;;
    *.csv) touch $out ${out%.csv}.md ${out%.csv}.tex ;;
    *.*) touch $out ;;
    *) touch $out/backbone.safetensors $out/run.json ;;
esac
"""


@pytest.fixture
def folder(tmp_path):
    """A study, and a Python beside such a `densewalk`."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    (tmp_path / "bin" / "densewalk").write_text(DENSEWALK)
    (tmp_path / "bin" / "densewalk").chmod(0o755)
    return write_study(tmp_path / "study", STUDY)


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [folder.parent / "bin" / "python", "-m", "snakemake", "--directory", folder, "--cores", "1", *arguments]
    paths = [REPOSITORY / "src", *(path for path in sys.path if path.endswith("site-packages"))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    interruptible = {"start_new_session": True, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.default_int_handler)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*map(str, command)], cwd=REPOSITORY, env=environment, **pipes, **interruptible)


def test_the_first_seed_of_all_runs_comes_before_the_second_of_any(folder):
    process = start(folder, "all")
    _, text = process.communicate(timeout=300)
    assert process.returncode == 0, text[-3000:]
    started = re.findall(r"^    output: results/(\w+)/s(\d)/(\w+)\.", text, re.MULTILINE)
    assert [seed for _, seed, _ in started] == sorted(seed for _, seed, _ in started)
    names = {"backbone": "train"}
    first = [f"{names.get(what, what)} {run}" for run, seed, what in started if seed == "0" and what != "features"]
    assert first == [
        "train start",
        "davis start",
        "incontext start",
        "train dora",
        "davis dora",
        "incontext dora",
        "train neco_dora",
        "davis neco_dora",
        "incontext neco_dora",
        "coco start",
        "coco dora",
        "coco neco_dora",
    ]
    assert not [job for job in started if job[1] == "1" and job[2] == "coco"]  # `seeds` of this evaluation


def test_logs_are_appended_and_a_failure_shows_the_end_of_the_latest(folder):
    log = folder / "results" / "logs" / "start" / "s0" / "train.log"
    (folder / "first").write_text('case "$*" in train*s0*) echo "attempt $(date +%N)" >&2; exit 1;; esac\n')
    for attempts in (1, 2):
        process = start(folder, "results/start/s0/run.json", "results/start/s1/run.json")
        _, text = process.communicate(timeout=300)
        assert process.returncode == 1
        lines = log.read_text().splitlines()
        assert len(lines) == attempts
        other = folder / "results" / "start" / "s1" / "run.json"
        assert other.exists(), "another job goes on after the failure"
        other.unlink()
        assert f"    {lines[-1]}" in text


def test_an_interrupted_study_ends_with_one_line(folder):
    (folder / "first").write_text('case "$1" in train) touch begun; echo "Traceback" >&2; sleep 100;; esac\n')
    process = start(folder, "all")
    heard = ""
    while "rule baseline:" not in heard:
        heard += process.stderr.readline()
    while not (folder / "begun").exists():
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    out, text = process.communicate(timeout=100)
    assert process.returncode == 1
    assert out == ""
    lines = text.splitlines()
    said = lines.index("interrupted; run the same command to go on (jobs are saving their state)")
    assert lines[said + 1 :] == []
    assert not [line for line in lines if "rror" in line or "Traceback" in line]
    assert "Traceback" in (folder / "results" / "logs" / "start" / "s0" / "train.log").read_text()


def test_another_one_at_work_is_one_line_and_stops_no_dry_run(folder):
    locks = folder / ".snakemake" / "locks"
    locks.mkdir(parents=True)
    (locks / "0.output.lock").write_text("results/start/s0/run.json\n")
    one = "another Snakemake is at work in this folder"
    unlock = f"snakemake --unlock --directory {folder}"
    for arguments, status, said in (
        (["-n", "--quiet"], 0, f"{one}: what it has not finished is counted as to do"),
        (["--quiet"], 1, f"{one}; to do: wait for it (`densewalk status` says what it does); if it was killed: {unlock}"),
    ):
        process = start(folder, "all", *arguments)
        out, text = process.communicate(timeout=300)
        assert process.returncode == status, text
        assert (out + text).count(said) == 1
        assert "locked" not in out + text.replace("LockException", "")
        assert ("to do: " in out) == (status == 0)


def test_a_dry_run_of_another_folder_says_what_was_removed_and_remembers_contents_there(folder):
    logs = folder / "results" / "logs" / "start"
    for seed, text in enumerate(("made\n==== done ====\n", "error: no memory\n")):
        (logs / f"s{seed}").mkdir(parents=True)
        (logs / f"s{seed}" / "train.log").write_text(text)
    (folder / "data").mkdir()
    (folder / "data" / "walk.mp4").write_text("a video")
    (folder / "results" / "data").mkdir()
    receipt = video_receipt("results/data/walk.mp4", source="data/walk.mp4", settings=VideoSettings(source="data/walk.mp4", short_side=96))
    write_receipt(folder / "results" / "data" / "walk.json", receipt)
    process = start(folder, "all", "-n")
    out, text = process.communicate(timeout=300)
    found = [re.sub(r"\s+", " ", line) for line in out[out.index("to do: ") :].splitlines()]
    assert "1 baseline removed start (0)" in found, text
    assert "1 baseline failed start (1)" in found
    assert "data/walk.mp4" in (folder / "results" / "specs" / "contents.json").read_text()


def test_a_dry_run_ends_with_a_summary(folder):
    process = start(folder, "all", "-n")
    out, _ = process.communicate(timeout=300)
    lines = [line.split(maxsplit=2) for line in out[out.index("to do: ") :].splitlines()]
    found = {rule: (int(count), why) for count, rule, why in lines[2:]}
    assert lines[0][2].startswith(f"{sum(count for count, _ in found.values())} jobs")
    assert found["evaluate_coco"] == (3, found["evaluate_coco"][1])
    assert re.sub(r"\s+", " ", found["train_dora"][1]) == "not started dora (0, 1)"


def test_a_file_in_the_place_of_the_results_is_one_line(tmp_path):
    folder = write_study(tmp_path / "study", TINY)
    (folder / "results").write_text("")
    done = snakemake(folder, "-n", check=False)
    assert done.returncode != 0
    assert "results is a file where a folder should be; to do: move it away" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
