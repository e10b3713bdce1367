"""Snakemake makes again what another checkpoint or `densewalk stale` asks for, and nothing else."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch

from densewalk.models.timm_models import named_architecture
from tests.fixtures.official import official_weights
from tests.fixtures.studies import TINY, planned, snakemake, write_study

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
PAGE = {"results/report.html", *(f"results/tables/{table}.csv" for table in ("gain", "all", "cost", "davis"))}


def save_weights(folder, seed, time=None):
    """A checkpoint of the seed, the same file each time but for its time."""
    torch.manual_seed(seed)
    weights = official_weights(named_architecture("vit_nano_patch16"))
    torch.save({name: w + 0.02 * torch.randn_like(w) for name, w in weights.items()}, folder / "weights.pth")
    if time is not None:
        os.utime(folder / "weights.pth", (time, time))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A baseline from a checkpoint and one of random weights, both evaluated."""
    config = copy.deepcopy(TINY)
    config["checkpoints"] = {"w": {"file": "weights.pth", "arch": "vit_nano_patch16"}}
    config["runs"] = {"start": config["runs"]["start"] | {"seeds": [0]}, "base": {"method": "none", "init": "w"}}
    config["evaluations"] = {"davis": config["evaluations"]["davis"]}
    config["pictures"] = {"images": 0}
    folder = write_study(tmp_path_factory.mktemp("study"), config)
    save_weights(folder, 0)
    snakemake(folder, "all")
    return folder


def stale(folder, *options):
    command = [sys.executable, "-m", "densewalk", "stale", "config.yaml", *options]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_the_content_of_a_checkpoint_decides_and_not_its_time(study):
    of_base = {"results/base/s0/backbone.safetensors", "results/base/s0/davis.json", *PAGE}
    save_weights(study, 0, time=4e9)
    assert planned(study) == set(), "the same file with a later time"
    save_weights(study, 1, time=1e9)
    assert planned(study) == of_base, "another file with an earlier time"
    save_weights(study, 0, time=1e9)
    assert planned(study) == set()


def test_a_record_of_an_earlier_version_reruns_nothing(study):
    path = study / "results/base/s0/run.json"
    before, status = path.read_text(), path.stat()
    content = json.loads(before)
    del content["files"]
    path.write_text(json.dumps(content))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "results/start/s0/backbone.safetensors" not in planned(study)
    path.write_text(before)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_only_stale_outputs_are_made_again(study):
    path = study / "results/start/s0/davis.json"
    content = json.loads(path.read_text())
    status = path.stat()
    path.write_text(json.dumps(content | {"commit": "b" * 40, "dirty": False}))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    if not content["dirty"]:
        assert stale(study).splitlines()[1:] == ["1 outputs are stale"]
    assert "start, seed 0: davis: made by commit bbbbbbbbbbbb, not" in stale(study, "--rerun")
    targets = (study / "results/stale.txt").read_text().split()
    assert "results/start/s0/davis.json" in targets
    if not content["dirty"]:
        assert planned(study, "all", "--forcerun", *targets) == {"results/start/s0/davis.json", *PAGE}
    snakemake(study, "all", "--forcerun", *targets)
    assert json.loads(path.read_text())["commit"] == content["commit"]
    assert "stale" in snakemake(study, "stale").stdout
