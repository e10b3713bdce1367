"""Two real processes give each evaluation the result of one, to the last bit."""

import json

import pytest
import torch

from densewalk.core import distributed
from densewalk.core.settings import Settings
from densewalk.evaluations.common import dense_features, image_features
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.common.shares import consecutive, owned, shared_map
from densewalk.evaluations.common.spread_memory import SpreadMemory, spare_rows, whole_tiles
from densewalk.ops.search import nearest_neighbors
from densewalk.study.registry import evaluation_module, evaluations, parse_evaluation
from tests.evaluations.test_bad_input import CASES
from tests.fixtures.dense import write_backbone
from tests.fixtures.processes import in_processes

SHARED = [name for name, case in CASES.items() if evaluations()[case[0]].PROCESSES]
MORE = {
    "incontext": {"augmentation_epochs": 2, "memory_size": 100},
    "overcluster": {"repeats": 3},
    "unsupervised_segmentation": {"repeats": 2, "community_repeats": 3},
    "linear_segmentation": {"batch_size": 3, "epochs": 2},
}


def test_all_evaluations_of_frozen_features_but_few_share_their_work():
    assert {CASES[name][0] for name in CASES} - {CASES[name][0] for name in SHARED} <= {"linear", "depth", "position", "stego"}


def evaluate(name, root, backbone, out):
    """The case's result in plain values, and the names of the files that it wrote."""
    protocol, _, settings, *_ = CASES[name]
    parsed: Settings = parse_evaluation(protocol, {"root": str(root), "dataset": "toy", **settings, **MORE.get(name, {})})
    result = evaluation_module(protocol).evaluate(parsed, backbone, Job(out=out / "out", state=out / "state"))
    return json.dumps([result.metrics, result.n, result.details])


@pytest.mark.parametrize("name", SHARED)
def test_two_processes_equal_one(name, tmp_path, monkeypatch):
    monkeypatch.setattr(dense_features, "BATCH", 2)
    monkeypatch.setattr(image_features, "BATCH", 3)
    for module in ("incontext", "linear_segmentation"):
        monkeypatch.setattr(f"densewalk.evaluations.{module}.evaluate.BATCH", 2)
    monkeypatch.setattr("densewalk.evaluations.common.components.BATCH", 2)
    monkeypatch.setattr(nearest_neighbors, "TILE", 8)
    CASES[name][1](tmp_path / "data")
    backbone = write_backbone(tmp_path / "b.safetensors", motion=name == "motion_segmentation")
    one = evaluate(name, tmp_path / "data", backbone, tmp_path / "one")
    two = in_processes(evaluate, 2, tmp_path, name, tmp_path / "data", backbone, tmp_path / "two")
    assert two[0] == one
    assert two[1] == one
    written = [
        {path.relative_to(tmp_path / n / "out"): path.read_bytes() for path in (tmp_path / n / "out").rglob("*") if path.is_file()}
        for n in ("one", "two")
    ]
    assert written[0] == written[1]


def search(memory, queries, sizes, k):
    """Search in a memory of which this process has as many rows as `sizes` says, each process for its own queries."""
    rank = distributed.rank()
    rows, own = memory.split(sizes)[rank], queries.split([len(queries) - 3 * (len(sizes) - 1), *[3] * (len(sizes) - 1)])[rank]
    table = torch.full((len(rows) + spare_rows(), memory.shape[1]), torch.nan)
    table[: len(rows)] = rows
    (features,), start, count = whole_tiles([table], len(rows))
    spread = SpreadMemory(features, start, count)
    values, index = spread.nearest(own, k)
    return values.tolist(), index.tolist(), spread.fetch(features, index).tolist(), (start, len(features), count)


@pytest.mark.parametrize(("sizes", "k"), [((60, 61, 29), 30), ((3, 2, 145), 5), ((150, 0, 0), 30), ((8, 4, 2), 30)])
def test_a_memory_of_three_processes_equals_one_of_one_also_where_similarities_are_equal(tmp_path, monkeypatch, sizes, k):
    monkeypatch.setattr(nearest_neighbors, "TILE", 16)
    rng = torch.Generator().manual_seed(0)
    memory = torch.randint(-1, 2, (sum(sizes), 3), generator=rng).float()  # 27 different entries
    queries = torch.randn(20, 3, generator=rng)
    queries[:10] = queries[:10].sign()
    values, index = nearest_neighbors.nearest(memory, queries, k)
    found = in_processes(search, 3, tmp_path, memory, queries, list(sizes), k)
    assert [row for part in found for row in part[0]] == values.tolist()
    assert [row for part in found for row in part[1]] == index.tolist()
    assert [row for part in found for row in part[2]] == memory[index].tolist()
    assert all(start % 16 == 0 or not length for *_, (start, length, _) in found), "whole tiles"
    assert sum(length for *_, (_, length, _) in found) == sum(sizes)


def deal(items):
    own = owned(items)
    return own, shared_map(lambda x: x * x, items, cost=int), consecutive(items)


def test_work_is_dealt_by_cost_and_comes_back_in_order(tmp_path):
    items = [5, 1, 1, 1, 2, 9]
    found = in_processes(deal, 2, tmp_path, items)
    assert sorted(found[0][0] + found[1][0]) == list(range(6))
    assert [sum(items[i] for i in own) for own, *_ in found] == [10, 9]
    assert found[0][1] == found[1][1] == [25, 1, 1, 1, 4, 81]
    assert found[0][2] + found[1][2] == items
