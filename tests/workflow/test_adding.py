"""A method and an evaluation as one folder each, without an edit anywhere else: the example of docs/adding.md, in a copy of the tree."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from tests.fixtures.studies import REPOSITORY, TINY, write_study

pytestmark = pytest.mark.workflow

RUN = {
    "method": "barlow",
    "init": "random",
    "arch": "vit_nano_patch16",
    "data": ["walk"],
    "settings": {"steps": 2, "batch_size": 4, "size": 32, "projector": [16, 16]},
}
EVALUATION = {
    "protocol": "rankme",
    "settings": {"root": "data", "dataset": "synthetic COCO layout", "images": "coco/train2017", "size": 32},
}


def example_files() -> dict[str, str]:
    """Path -> content of each file that docs/adding.md shows."""
    text = (REPOSITORY / "docs" / "adding.md").read_text()
    blocks = re.findall(r"```python\n# (src/\S+)\n(.*?)```", text, flags=re.DOTALL)
    return dict(blocks)


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """A copy of the tree with the four files of the example, and a study that names them."""
    tree = tmp_path_factory.mktemp("tree")
    for name in ("Snakefile", "src", "workflow", "profiles", "slurm", "envs"):
        source = REPOSITORY / name
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(source, tree / name, ignore=ignored) if source.is_dir() else shutil.copy2(source, tree / name)
    for name, content in example_files().items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)
    study = copy.deepcopy(TINY)
    study["runs"] = {"twins": RUN}
    study["evaluations"] = {"rankme": EVALUATION}
    write_study(tree, study)
    return tree


def run(tree: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=tree, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


def test_the_example_is_four_short_files():
    files = example_files()
    assert len(files) == 4
    assert sum(content.count("\n") for content in files.values()) < 220


@pytest.mark.slow
def test_one_folder_each_is_enough(tree):
    schema = run(tree, "-m", "densewalk", "schema")
    assert {"BarlowSettings", "RankMeSettings"} <= json.loads(schema)["$defs"].keys()
    (tree / "workflow/schemas/config.schema.json").write_text(schema)  # what `make format` does
    plan = run(tree, "-m", "snakemake", "-n", "all")
    assert re.search(r"^rule train_barlow:", plan, flags=re.MULTILINE)
    assert re.search(r"^rule evaluate_rankme:", plan, flags=re.MULTILINE)
    run(tree, "-m", "snakemake", "--cores", "2", "results/tables/rank.csv", "results/report.html")
    table = pd.read_csv(tree / "results/tables/rank.csv")
    assert list(table["run"]) == ["twins"]
    assert table["method"][0] == "barlow"
    assert 1 < table["rank"][0] <= 48
    page = (tree / "results/report.html").read_text()
    assert re.search(r"<h2[^>]*>Effective rank of the features</h2>", page)
    assert "dimensions (higher is better), exponential of the entropy of the singular values" in page


@pytest.mark.slow
def test_its_resources_can_be_overridden(tree):
    (tree / "workflow/schemas/config.schema.json").write_text(run(tree, "-m", "densewalk", "schema"))
    plan = run(tree, "-m", "snakemake", "-n", "all", "--forceall", "--set-resources", "train_barlow:gpu=2", "train_barlow:mem_mb=123")
    (job,) = re.findall(r"^rule train_barlow:$.*?^    resources: (.*?)$", plan, re.MULTILINE | re.DOTALL)
    assert "gpu=2" in job
    assert "mem_mb=123" in job


def test_the_examples_arithmetic_is_that_of_the_papers():
    """Against plain loops, so that nobody copies a wrong example."""
    code: dict[str, object] = {}
    for name, function in (("methods/barlow/method.py", "barlow_loss"), ("evaluations/rankme/evaluate.py", "effective_rank")):
        source = example_files()[f"src/densewalk/{name}"]
        body = re.search(rf"^def {function}\(.*?(?=^\S|\Z)", source[source.index(f"def {function}(") :], flags=re.MULTILINE | re.DOTALL)
        exec(f"import torch\nfrom torch import Tensor\n{body[0]}", code)
    generator = torch.Generator().manual_seed(0)
    one, two = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    expected = 0.0
    for i in range(4):
        for j in range(4):
            a, b = one[:, i] - one[:, i].mean(), two[:, j] - two[:, j].mean()
            c = sum(a[n] / a.std() * b[n] / b.std() for n in range(6)) / 6
            expected += (1 - c) ** 2 if i == j else 0.1 * c**2
    assert float(code["barlow_loss"](one, two, 0.1)) == pytest.approx(float(expected), rel=1e-4)
    assert code["effective_rank"](torch.eye(5, 8)) == pytest.approx(5.0, rel=1e-4)
