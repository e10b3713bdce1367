"""What is made again, in the real workflow: content and settings decide, never a path, a time or a name."""

import copy
import json
import os
import shutil
import subprocess
import sys

import pytest

from densewalk.core.hashing import config_hash
from densewalk.results.missing import survey
from densewalk.study.config import load_study
from tests.fixtures.studies import TINY, planned, snakemake, write_study

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
PAGE = {"results/report.html", *(f"results/tables/{table}.csv" for table in ("gain", "all", "cost", "davis", "incontext"))}
TRAINED = {
    f"results/{run}/s0/{name}"
    for run in ("dora", "neco_dora")
    for name in ("backbone.safetensors", "davis.json", "incontext.json", "features.json")
}


def densewalk(folder, *words):
    done = subprocess.run([sys.executable, "-m", "densewalk", *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def changed(folder, change):
    """The tiny study with a change."""
    config = copy.deepcopy(TINY)
    change(config)
    write_study(folder, config)
    return config


def test_touched_copied_and_moved_originals_retrain_nothing(study):
    for path in ("data/walk.mp4", "results/data/walk.json", "results/data/walk.mp4", "results/dora/s0/backbone.safetensors"):
        os.utime(study / path)
    assert planned(study) == set(), "touched"
    shutil.rmtree(study / ".snakemake")
    assert planned(study) == set(), "without what Snakemake remembers"
    shutil.copy(study / "data" / "walk.mp4", study / "elsewhere.mp4")
    shutil.copytree(study / "data" / "coco" / "train2017", study / "photos")

    def moved(config):
        config["videos"]["walk"]["source"] = "elsewhere.mp4"
        config["images"]["coco"]["source"] = "photos"

    changed(study, moved)
    assert planned(study) <= PAGE, "moved"
    (study / "elsewhere.mp4").unlink()
    assert planned(study) <= PAGE, "removed, as to free the disk"


def test_another_content_in_the_same_place_is_another_video(study):
    with (study / "data" / "walk.mp4").open("ab") as file:
        file.write(b"more")
    os.utime(study / "data" / "walk.mp4", (1, 1))
    assert planned(study) == TRAINED | PAGE | {"results/data/walk.mp4"}


def test_a_moved_video_hides_no_other_change(study):
    shutil.copy(study / "data" / "walk.mp4", study / "elsewhere.mp4")

    def change(config):
        config["videos"]["walk"]["source"] = "elsewhere.mp4"
        config["evaluations"]["davis"]["settings"]["top_k"] = 3
        config["runs"]["neco_dora"]["settings"] = {**config["runs"]["neco_dora"]["settings"], "steps": 3}

    changed(study, change)
    davis = {f"results/{run}/s{seed}/davis.json" for run, seed in (("start", 0), ("start", 1), ("dora", 0))}
    assert planned(study) == davis | {path for path in TRAINED if "neco" in path} | PAGE


def test_what_was_deleted_is_made_again_and_nothing_else(study):
    (study / "results/start/s0/davis.json").unlink()
    (study / "results/dora/s0/backbone.safetensors").unlink()
    assert planned(study, "all") == {"results/start/s0/davis.json", "results/dora/s0/backbone.safetensors"} | PAGE - {
        "results/tables/incontext.csv"
    }
    assert "3 of 4 runs, 7 of 8 evaluations" in densewalk(study, "status", "config.yaml")


def test_a_forced_run_is_made_with_all_that_depends_on_it(study):
    assert planned(study, "all", "--forcerun", "results/dora/s0/backbone.safetensors") == TRAINED | PAGE


def test_other_generated_data_are_generated_and_used(study):
    changed(study, lambda config: config["synthetic"].update(seconds=9))
    jobs = planned(study)
    assert {"data/receipt.json", "results/data/walk.mp4", "results/start/s1/davis.json"} | TRAINED <= jobs


def test_renamed_runs_evaluations_and_videos_keep_their_results(study):
    def run(config):
        config["runs"]["walker"] = config["runs"].pop("dora")
        config["runs"]["neco_dora"] = {**config["runs"]["neco_dora"], "init": "walker"}

    def evaluation(config):
        run(config)
        config["evaluations"]["objects"] = config["evaluations"].pop("davis")

    def video(config):
        evaluation(config)
        config["videos"]["lisbon"] = config["videos"].pop("walk")
        config["runs"]["walker"]["data"] = ["lisbon"]

    weights = (study / "results/dora/s0/backbone.safetensors").read_bytes()
    for change, old, new in ((run, "dora", "walker"), (evaluation, "davis", "objects"), (video, "walk", "lisbon")):
        changed(study, change)
        told = f"config.yaml {old} {new}` moves it, nothing is"
        assert (told in snakemake(study, "-n", "all").stdout) == (change is not video)
        assert (told in densewalk(study, "status", "config.yaml")) == (change is not video), "a video's name retrains nothing"
        assert f"{old} is {new} now" in densewalk(study, "rename", "config.yaml", old, new)
        assert planned(study) == PAGE, f"{old} renamed"
        assert "4 of 4 runs, 8 of 8 evaluations" in densewalk(study, "status", "config.yaml")
        assert "nothing to do" in densewalk(study, "rename", "config.yaml", old, new)
    assert (study / "results/walker/s0/backbone.safetensors").read_bytes() == weights
    assert json.loads((study / "results/neco_dora/s0/objects.json").read_text())["init"] == "walker"
    left = [path for path in (study / "results").rglob("*") if {"dora", "walk.json"} & set(path.parts)]
    assert left == []


def test_renamed_labels_and_data_sets_change_the_tables_alone(study):
    def change(config):
        config["evaluations"]["davis"]["settings"]["dataset"] = "Another name"
        config["runs"]["dora"]["labels"] = {"method": "DoRA", "arch": "ViT-N/16", "pretraining_data": "a walk"}

    changed(study, change)
    assert planned(study) == PAGE


def with_hashes_of_an_earlier_version(folder):
    """Records as versions wrote them whose hashes had names and paths in them, and that recorded no contents."""
    results = folder / "results"

    def rewrite(path, content):
        status = path.stat()
        path.write_text(json.dumps(content))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def of_run(run):
        path = results / run / "run.json"
        content = json.loads(path.read_text())
        init = content["spec"]["init"]
        if init["kind"] == "run":
            init["hash"] = of_run(f"{init['name']}/s{init['seed']}")
        content["config_hash"] = config_hash(content["spec"])
        content.pop("contents", None)
        rewrite(path, content)
        return content["config_hash"]

    for run in ("start/s0", "start/s1", "dora/s0", "neco_dora/s0"):
        run_hash = of_run(run)
        for path in (results / run / "davis.json", results / run / "incontext.json"):
            content = json.loads(path.read_text())
            content["run_hash"] = content["spec"]["run_hash"] = run_hash
            content["config_hash"] = config_hash(content["spec"])
            rewrite(path, content)


def test_results_of_an_earlier_version_are_recognized(study):
    with_hashes_of_an_earlier_version(study)
    assert planned(study) <= PAGE
    with (study / "data" / "walk.mp4").open("ab") as file:
        file.write(b"more")
    assert planned(study) == TRAINED | PAGE | {"results/data/walk.mp4"}


def test_status_says_what_snakemake_plans_and_why_says_which_setting(study, monkeypatch):
    def change(config):
        config["runs"]["dora"]["settings"] = {**config["runs"]["dora"]["settings"], "objects": 2}
        config["evaluations"]["incontext"]["settings"]["input_size"] = 64

    changed(study, change)
    (study / "results/start/s1/davis.json").unlink()
    jobs = {path for path in planned(study) if path.endswith((".safetensors", "davis.json", "incontext.json"))}
    monkeypatch.chdir(study)
    plan = load_study("config.yaml").plan()
    outputs = [output for found in survey(plan, study / "results") for output in (found.backbone, *found.results)]
    wanted = {
        f"results/{o.run}/s{o.seed}/{f'{o.evaluation}.json' if o.evaluation else 'backbone.safetensors'}"
        for o in outputs
        if o.state != "done"
    }
    assert wanted == jobs
    text = densewalk(study, "status", "config.yaml")
    assert "2 of 4 runs, 1 of 8 evaluations" in text
    assert "left: about" in text
    why = densewalk(study, "why", "results/neco_dora/s0/incontext.json")
    assert why.splitlines()[0] == "results/neco_dora/s0/incontext.json: outdated"
    assert "settings.input_size: 96 -> 64" in why
    assert "dora: settings.objects: 3 -> 2" in why
    assert densewalk(study, "why", "results/tables/gain.csv").strip() == "results/tables/gain.csv: outdated (made from what is made again)"
    assert densewalk(study, "why", "results/start/s0/davis.json").startswith("results/start/s0/davis.json: up to date")
