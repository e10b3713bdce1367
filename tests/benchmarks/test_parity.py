"""The table of all reference cases of the frozen evaluations (benchmarks/parity.py): every row within what its file allows."""

import importlib.util
import math
from pathlib import Path

import pytest

from tests.fixtures.helpers import shared

SCRIPT = Path(__file__).parents[2] / "benchmarks/parity.py"


@pytest.fixture(scope="module")
def parity():
    spec = importlib.util.spec_from_file_location("parity", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["davis_jf", "davis_propagation", "hummingbird", "knn", "lost", "neco_eval", "timetuning_eval"])
def test_all_rows_of_a_file(parity, name):
    shared(f"parity/{name}.npz")
    rows = list(parity.rows_of(shared("parity"), name))
    assert rows
    assert [row for row in rows if not row.holds] == []


def test_a_difference_is_seen(parity):
    assert not parity.compare("f", "c", "q", [1.0, 2.0], [1.0, 2.1], 0.05).holds
    assert parity.compare("f", "c", "q", [1.0, math.nan], [1.0, math.nan], 0).holds
    assert not parity.compare("f", "c", "q", [1.0, math.nan], [1.0, 2.0], 1).holds
    with pytest.raises(ValueError, match=r"shape \(1,\), expected \(2,\)"):
        parity.compare("f", "c", "q", [1.0], [1.0, 2.0], 0)
