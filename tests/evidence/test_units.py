"""The file of unit statistics: what is written is read, and every wrong file is one clear error."""

import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from densewalk.core.errors import UserError
from densewalk.evidence.average_precision import AveragePrecision
from densewalk.evidence.groups import MeanOfGroups
from densewalk.evidence.runs import mean_of_runs
from densewalk.evidence.statistics import MatchedIoU, MeanIoU, MeanOfUnits, RatioOfSums
from densewalk.evidence.units import Units, image_ids, read_units, require_same_units, units_path, write_units

HASHES = {"config_hash": "a" * 12, "run_hash": "b" * 12, "backbone_sha256": "c" * 64}


def all_kinds():
    generator = np.random.default_rng(0)
    tables = generator.integers(0, 50, (4, 3, 3))
    detections = (np.array([0, 1, 3]), np.array([0, 1, 0]), np.array([0.9, 0.5, 0.7]))
    flags = generator.random((2, 3, 10)) < 0.5
    return {
        "mIoU": MeanIoU.of_confusions(tables, "zero"),
        "matched": MatchedIoU.of_counts(generator.integers(0, 50, (4, 3, 5)), matching="many_to_one"),
        "runs": mean_of_runs(
            [MatchedIoU.of_counts(generator.integers(0, 50, (4, 3, 3)), void=1), MeanIoU.of_confusions(tables)],
        ),
        "J": MeanOfUnits(np.array([0.5, 0.25, np.nan, 1.0]), scale=100.0),
        "PCK": RatioOfSums(np.array([1, 0, 2, 3]), np.array([2, 2, 2, 4])),
        "categories": MeanOfGroups(np.array([0, 1, 0, 2]), np.array([1, 0, 2, 3]), np.array([2, 2, 2, 4])),
        "AP": AveragePrecision(4, *detections, *flags, np.ones((4, 2), int)),
    }


@pytest.fixture
def units():
    return Units(["a", "b", "c", "d"], "object", all_kinds(), ["x", "y", "x", "x"], "video")


def test_what_is_written_is_read(tmp_path, units):
    record = tmp_path / "davis.json"
    write_units(record, units, **HASHES)
    first = units_path(record).read_bytes()
    found = read_units(record, **HASHES)
    assert (found.ids, found.unit, found.cluster) == (["a", "b", "c", "d"], "object", "video")
    assert found.owner.tolist() == [0, 1, 0, 0]
    weights = np.random.default_rng(1).integers(1, 4, (5, 4)).astype(float)
    for metric, statistic in units.statistics.items():
        np.testing.assert_array_equal(found.statistics[metric].of_weights(weights), statistic.of_weights(weights))
    write_units(record, found, **HASHES)
    assert units_path(record).read_bytes() == first


def test_statistics_must_give_the_scores_of_the_record(units):
    scores = {metric: statistic.score for metric, statistic in units.statistics.items()}
    units.require_scores(scores)
    with pytest.raises(AssertionError, match="PCK"):
        units.require_scores({**scores, "PCK": scores["PCK"] + 0.01})


def rewrite(path, about):
    """The same arrays under another header."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    header = json.loads(str(arrays["about"]))
    about(header)
    arrays["about"] = np.array(json.dumps(header))
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        (lambda h: h.update(version=2), "version"),
        (lambda h: h.update(run_hash="d" * 12), "belongs to another result: run_hash"),
        (lambda h: h.update(surprise=1), "surprise"),
        (lambda h: h["statistics"]["J"].update(kind="os.system"), "damaged"),
        (lambda h: h["statistics"]["J"].update(options={"fast": 1}), "damaged"),
        (lambda h: h["statistics"].update(more=h["statistics"]["J"]), "damaged"),
    ],
)
def test_another_header_is_refused(tmp_path, units, about, message):
    write_units(tmp_path / "davis.json", units, **HASHES)
    rewrite(tmp_path / "davis.units.npz", about)
    with pytest.raises(UserError, match=message):
        read_units(tmp_path / "davis.json", **HASHES)


def test_missing_cut_and_pickled_files_are_refused(tmp_path, units):
    record = tmp_path / "davis.json"
    with pytest.raises(UserError, match="no such file"):
        read_units(record, **HASHES)
    write_units(record, units, **HASHES)
    content = units_path(record).read_bytes()
    for broken in (b"", content[: len(content) // 2], b"PK" + content[:90]):
        units_path(record).write_bytes(broken)
        with pytest.raises(UserError, match="no file of unit statistics"):
            read_units(record, **HASHES)
    np.savez(units_path(record), ids=np.array([{}], dtype=object))
    with pytest.raises(UserError, match="no file of unit statistics"):
        read_units(record, **HASHES)


def test_no_pickled_array_is_in_the_file(tmp_path, units):
    write_units(tmp_path / "davis.json", units, **HASHES)
    with zipfile.ZipFile(tmp_path / "davis.units.npz") as file:
        assert not any(b"'O'" in file.read(name)[:200] or b"|O" in file.read(name)[:200] for name in file.namelist())


def test_rows_of_other_units_are_refused_by_the_first_difference(units):
    require_same_units(units, units, ("A", "B"))
    with pytest.raises(UserError, match="number 3 is 'c' and 'e'"):
        require_same_units(units, replace(units, ids=["a", "b", "e", "d"]), ("A", "B"))
    fewer = Units(["a", "b", "c"], "object", {"J": MeanOfUnits(np.zeros(3))})
    with pytest.raises(UserError, match="first that only A has is 'd'"):
        require_same_units(units, fewer, ("A", "B"))


def test_ids_and_lengths_are_checked():
    with pytest.raises(AssertionError, match="unique"):
        Units(["a", "a"], "image", {"J": MeanOfUnits(np.zeros(2))})
    with pytest.raises(AssertionError, match="3 units instead of 2"):
        Units(["a", "b"], "image", {"J": MeanOfUnits(np.zeros(3))})


def test_images_are_named_by_their_place_below_the_root(tmp_path):
    paths = [tmp_path / "val" / "a.png", tmp_path / "val.tar" / "a" / "b.png", tmp_path / "val" / "a.png", "/elsewhere/c.png"]
    assert image_ids(paths, tmp_path) == ["val/a.png", "val/a/b.png", "val/a.png (2)", "/elsewhere/c.png"]


def test_the_mean_of_runs_is_that_of_their_scores():
    one, two = (MeanIoU.of_confusions(np.random.default_rng(seed).integers(0, 50, (4, 3, 3))) for seed in (1, 2))
    weights = np.random.default_rng(1).integers(1, 4, (5, 4)).astype(float)
    found = mean_of_runs([one, two]).of_weights(weights)
    np.testing.assert_allclose(found, (one.of_weights(weights) + two.of_weights(weights)) / 2)
    assert mean_of_runs([one]) is one
