"""Text of the user's that a shell, Snakemake or a table would take for more than text: paths, titles, labels."""

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml

from densewalk.models.export import export_backbone
from densewalk.models.loading import create
from tests.fixtures.studies import REPOSITORY, TINY, snakemake, write_study

pytestmark = pytest.mark.workflow
WEIGHTS = '-weights (1) it\'s $(touch pwned) "x" & [a]*.safetensors'
ROOT = "my data; $(touch pwned) 'x'"
TITLE = "{x} {{y}} <b>walk</b> & 100 % of $HOME `touch pwned` \\alpha_1 | =1+1"


def hostile_study() -> dict:
    """A baseline from a checkpoint and one evaluation, in a generated folder; everything has a difficult name."""
    study = copy.deepcopy(TINY)
    study["study"] = TITLE
    study["synthetic"]["root"] = ROOT
    study["videos"]["walk"]["source"] = f"{ROOT}/walk.mp4"
    study["images"]["coco"]["source"] = f"{ROOT}/coco/train2017"
    study["checkpoints"] = {
        "own": {"file": WEIGHTS, "arch": "vit_nano_patch16", "url": "https://me:secret@host.org/w.pth?token=secret&id=3"}
    }
    labels = {"method": "=cmd|'/c calc'!A1", "arch": "ViT", "pretraining_data": "+1 {x}"}
    study["runs"] = {
        "own_start": {"method": "none", "init": "own"},
        "neco_own": {**TINY["runs"]["neco_dora"], "init": "own", "labels": labels},
    }
    davis = study["evaluations"]["davis"]
    study["evaluations"] = {"davis": davis}
    davis["settings"] |= {"root": f"{ROOT}/DAVIS", "dataset": '=HYPERLINK("x") | <i>_d_</i> {x}'}
    return study


@pytest.mark.slow
def test_a_study_full_of_shell_characters_is_plain_text_everywhere(tmp_path):
    clone = tmp_path / "the clone (it's $HOME; `x`)"
    clone.mkdir()
    shutil.copy2(REPOSITORY / "Snakefile", clone)
    for name in ("workflow", "profiles", "envs", "src"):
        shutil.copytree(REPOSITORY / name, clone / name)
    (clone / ".venv").symlink_to(Path(sys.prefix))
    folder = write_study(clone / "a study (it's {x} $HOME)", hostile_study())
    export_backbone(create("vit_nano_patch16", seed=0), folder / WEIGHTS, run="r", config_hash="0")
    command = [str(clone / ".venv/bin/python"), "-m", "snakemake", "--directory", str(folder), "--cores", "2", "all"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(clone / "src")}
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-5000:]
    assert not list(tmp_path.rglob("pwned"))
    for path in folder.rglob("*.json"):
        assert "secret" not in path.read_text(), path
    tables = folder / "results" / "tables"
    cells = pd.read_csv(tables / "all.csv", dtype=str, keep_default_na=False)
    assert set(cells["dataset"]) == {"'" + '=HYPERLINK("x") | <i>_d_</i> {x}'}
    assert set(cells["pretraining_data"]) == {"", "'+1 {x}"}
    assert cells["value"].str.fullmatch(r"-?\d+\.\d+").any()
    assert "&lt;i&gt;" in (tables / "davis.md").read_text()
    page = (folder / "results" / "report.html").read_text()
    assert "{x} {{y}} &lt;b&gt;walk" in page
    assert "<b>walk" not in page


def test_a_plan_for_a_study_with_braces_in_its_title_is_made(tmp_path):
    write_study(tmp_path, {**TINY, "study": TITLE})
    assert "train_dora" in snakemake(tmp_path, "-n", "all").stdout


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (yaml.safe_dump(TINY) + "study: again\n", "config.yaml has a key twice: study (lines "),
        ("study: s\nx: 2024-13-45\n", "config.yaml is not YAML: month must be in 1..12"),
        (
            yaml.safe_dump({**TINY, "execution": {"device": "gpu"}}),
            "device: Input should be 'auto', 'cpu' or 'cuda' (found 'gpu')",
        ),
        (yaml.safe_dump(TINY).replace("arch: vit_nano_patch16", "arch: vit_nano_patch61", 1), "did you mean vit_nano_patch16"),
        (yaml.safe_dump(TINY).replace("steps: 2\n", "steps: 1000000000\n", 1), "steps: Input should be less than or equal to 10000000"),
        (yaml.safe_dump(TINY).replace("steps: 2\n", "lr: .inf\n      steps: 2\n", 1), "lr: Input should be a finite number"),
    ],
)
def test_snakemake_refuses_what_check_refuses(tmp_path, text, message):
    (tmp_path / "config.yaml").write_text(text)
    done = snakemake(tmp_path, "-n", "all", check=False)
    assert done.returncode != 0
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert (done.stdout + done.stderr).count(message) == 1
