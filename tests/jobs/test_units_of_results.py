"""The file of unit statistics that a job writes beside its record."""

from dataclasses import replace

import numpy as np
import pytest

from densewalk.core.errors import UserError
from densewalk.evaluations.common.base import Result
from densewalk.evidence.statistics import MeanOfUnits
from densewalk.evidence.units import Units, read_units, units_path
from densewalk.jobs.evaluate import write_with_units
from densewalk.results.records import read_result
from tests.fixtures.records import record, typed


def result_of(values):
    units = Units([str(i) for i in range(len(values))], "image", {"top1": MeanOfUnits(np.array(values, dtype=float), scale=100.0)})
    return Result({"top1": 100 * sum(values) / len(values)}, len(values), "images", units=units)


def test_record_and_units_are_written_together(tmp_path):
    out = tmp_path / "run" / "s0" / "knn.json"
    out.parent.mkdir(parents=True)
    found = typed(record("run", 0, {"top1": 50.0}, evaluation="knn", backbone_sha256="c" * 64))
    write_with_units(out, found, result_of([1, 0]))
    stored = read_result(out)
    hashes = {"config_hash": stored.config_hash, "run_hash": stored.run_hash, "backbone_sha256": stored.backbone_sha256}
    assert read_units(out, **hashes).ids == ["0", "1"]
    with pytest.raises(UserError, match="another result"):
        read_units(out, **{**hashes, "run_hash": "f" * 12})
    write_with_units(out, found, replace(result_of([1, 0]), units=None))  # what is left of an attempt that had some
    assert not units_path(out).exists()


def test_units_that_do_not_give_the_metrics_are_refused():
    with pytest.raises(AssertionError, match="top1"):
        replace(result_of([1, 0]), metrics={"top1": 40.0})
