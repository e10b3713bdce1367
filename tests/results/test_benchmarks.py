"""A published value stands only beside what scored the benchmark's own list."""

import pytest

from densewalk.evaluations.common.settings import EvaluationSettings
from densewalk.evaluations.davis.settings import DavisSettings
from densewalk.results.benchmarks import BENCHMARKS, is_benchmark
from densewalk.results.published import elsewhere, published, published_numbers
from densewalk.study.registry import evaluations
from tests.fixtures.records import DAVIS_VAL, DINO, record, typed


def davis(n, sequences):
    protocol = DavisSettings(root="data", dataset="DAVIS-2017", compat="released").published_protocol
    changes = {"task": "davis", "dataset": "DAVIS-2017", "published_protocol": protocol, "published_metrics": None}
    return typed(record("dino", 0, {"J&F": 61.9}, labels=DINO, n=n, details={"sequences": {name: [] for name in sequences}}, **changes))


def test_a_list_of_four_sequences_under_the_benchmark_s_name_has_no_published_value():
    assert published(davis(61, DAVIS_VAL), "J&F").value == 61.8
    assert published(davis(61, DAVIS_VAL[::-1]), "J&F").value == 61.8
    for other in (davis(7, DAVIS_VAL[:4]), davis(61, [*DAVIS_VAL[:-1], "schoolgirls"]), davis(60, DAVIS_VAL)):
        assert published(other, "J&F") is None
        assert elsewhere(other, "J&F") == "", "of other data, whatever the protocol"


@pytest.mark.parametrize(
    ("dataset", "n", "without", "expected"), [("VOC07", 5011, 0, True), ("COCO20k", 19_800, 17, True), ("VOC07", 5010, 0, False)]
)
def test_images_without_an_object_belong_to_the_list(dataset, n, without, expected):
    one = typed(record("r", 0, {"CorLoc": 1.0}, task="discovery", dataset=dataset, n=n, details={"images_without_object": without}))
    assert is_benchmark(one) == expected


def test_every_evaluation_with_a_published_protocol_knows_its_benchmarks():
    def can_be_published(settings):
        return any("published_protocol" in vars(base) for base in settings.__mro__ if base is not EvaluationSettings)

    assert {table for table, _ in BENCHMARKS} == {s.TABLE for s in evaluations().values() if can_be_published(s)}
    assert {dataset for _, dataset in BENCHMARKS} <= {row["dataset"] for row in published_numbers()}
