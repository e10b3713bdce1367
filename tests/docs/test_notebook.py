"""The example notebook runs as it stands, but for the names in its first cell of code, and holds no output."""

import json
import re

import numpy as np
import pytest

from densewalk.models.export import export_backbone
from densewalk.models.loading import create
from tests.evaluations.test_davis import write_sequence
from tests.fixtures.studies import REPOSITORY

NOTEBOOK = json.loads((REPOSITORY / "docs/davis_and_pca.ipynb").read_text())
CELLS = ["".join(cell["source"]) for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """The names that the cells define, and what they printed."""
    folder = tmp_path_factory.mktemp("notebook")
    for name in ("boat", "kites"):
        write_sequence(folder / "DAVIS", name, frames=4)
    export_backbone(create("vit_nano_patch16", seed=1), folder / "backbone.safetensors", run="r", config_hash="0")
    changed = re.sub(r'Path\(".*?"\)', f'Path("{folder}/DAVIS")', CELLS[0])
    changed = re.sub(r'BACKBONE = ".*?"', f'BACKBONE = "{folder}/backbone.safetensors"', changed)
    changed = re.sub(r"SHORT_SIDE = \d+", "SHORT_SIDE = 64", changed)
    assert changed.count(str(folder)) == 2
    found: dict = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for cell in [changed, *CELLS[1:]]:
            exec(cell, found)
    return found


def test_its_numbers_are_those_of_the_evaluation(names):
    for result in (names["result"], names["floor"]):
        assert result.unit == "objects"
        assert result.n == 4
        assert 0 <= result.metrics["J&F"] <= 100
    assert names["result"].metrics != names["floor"].metrics


def test_its_maps_show_each_frame_in_three_components(names):
    assert [name for name, *_ in names["maps"]] == ["boat", "kites"]
    for _, pixels, squares, variance in names["maps"]:
        assert squares.shape == pixels.shape
        assert len(np.unique(squares.reshape(-1, 3), axis=0)) > 4
        assert 0 < sum(variance) <= 1


def test_it_is_saved_without_output():
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code")
