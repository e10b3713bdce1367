"""95 % intervals hold the truth about as often as they say."""

import numpy as np
import pytest
from benchmarks import interval_coverage


def share(population, method="percentile", studies=300):
    return np.mean([side == 0 for side in interval_coverage.holds(population, studies, method)])


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(interval_coverage, "POPULATION", 4_000)
    monkeypatch.setattr(interval_coverage, "RESAMPLES", 299)


def test_intervals_of_accuracies_hold_the_truth():
    assert 0.91 <= share(interval_coverage.right_answers(300)) <= 0.985  # 0.95 +- three standard errors of 300 studies


def test_whole_videos_must_be_drawn_where_their_objects_agree():
    assert 0.905 <= share(interval_coverage.objects_of_videos(60), "BCa") <= 0.985
    assert share(interval_coverage.objects_of_videos(60, clustered=False)) < 0.9
