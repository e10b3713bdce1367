"""The Python blocks of the README and of docs/python.md run as they stand, but for the names of a checkpoint and of a folder."""

import re

import pytest

from densewalk.models.export import export_backbone
from densewalk.models.loading import create
from tests.evaluations.test_davis import write_sequence
from tests.fixtures.studies import REPOSITORY

BLOCKS = [
    (page, number, block)
    for page in ("README.md", "docs/python.md")
    for number, block in enumerate(re.findall(r"```python\n(.*?)```", (REPOSITORY / page).read_text(), flags=re.DOTALL))
]


def test_readme_has_a_block_of_at_most_eight_lines():
    lengths = [block.count("\n") for page, _, block in BLOCKS if page == "README.md"]
    assert len(lengths) == 1
    assert lengths[0] <= 8


@pytest.mark.parametrize(("page", "number", "block"), BLOCKS, ids=[f"{page}-{number}" for page, number, _ in BLOCKS])
def test_block_runs(tmp_path, monkeypatch, page, number, block):
    monkeypatch.chdir(tmp_path)
    write_sequence(tmp_path / "data/DAVIS", "boat")
    export_backbone(create("vit_nano_patch16", seed=0), "backbone.safetensors", run="r", config_hash="0")
    names = {}
    exec(block.replace('"dinov2_vits14"', '"backbone.safetensors"'), names)
    if "result" in names:
        assert 0 <= names["result"].metrics["J&F"] <= 100
    assert names["net"].dim > 0
