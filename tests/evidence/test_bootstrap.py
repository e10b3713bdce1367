"""Paired bootstrap against enumeration, plain loops, recorded values and scipy."""

from itertools import product

import numpy as np
import pytest
from scipy import stats
from scipy.optimize import linear_sum_assignment

from densewalk.evidence import bootstrap as module
from densewalk.evidence.bootstrap import (
    RESAMPLES,
    bca_quantiles,
    bias_and_acceleration,
    counts_of,
    draw_blocks,
    informative,
    jackknife,
    paired_bootstrap,
    two_sided_p,
)
from densewalk.evidence.multiplicity import benjamini_hochberg, discordant, holm
from densewalk.evidence.share_intervals import share_intervals
from densewalk.evidence.statistics import MatchedIoU, MeanIoU, MeanOfUnits, RatioOfSums
from tests.fixtures.helpers import shared


@pytest.fixture(scope="module")
def recorded():
    return np.load(shared("parity/eval_bootstrap.npz"))


def given(indices):
    """Draw these indices."""
    return lambda sizes, *_: [counts_of(indices.astype(int), len(sizes)).astype(float)]


def plain_miou(confusions):
    """Percent, from the confusion matrices of a multiset of images."""
    total = sum(np.asarray(c, dtype=float) for c in confusions)
    values = []
    for c in range(len(total)):
        union = total[c].sum() + total[:, c].sum() - total[c, c]
        if union > 0:
            values.append(total[c, c] / union)
    return 100 * sum(values) / len(values)


def confusions(seed, n=5, classes=3):
    return np.random.default_rng(seed).integers(0, 40, (n, classes, classes)) + 60 * np.eye(classes, dtype=int)


def test_every_resample_is_scored_as_a_loop_does():
    a, b = confusions(1), confusions(2)
    draws = np.array(list(product(range(5), repeat=5)))[::7]
    weights = counts_of(draws, 5).astype(float)
    found = MeanIoU.of_confusions(b).of_weights(weights) - MeanIoU.of_confusions(a).of_weights(weights)
    expected = [plain_miou(b[list(d)]) - plain_miou(a[list(d)]) for d in draws]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_enumerated_distribution_equals_the_recorded_one(recorded):
    a, b = (MeanIoU.of_confusions(recorded[f"exact/confusion_{x}"]) for x in "ab")
    weights = counts_of(np.array(list(product(range(5), repeat=5))), 5).astype(float)
    found = np.sort(b.of_weights(weights) - a.of_weights(weights))
    np.testing.assert_allclose(found, recorded["exact/replicates"], rtol=0, atol=1e-9)
    assert b.score - a.score == pytest.approx(float(recorded["exact/difference"]), abs=1e-9)
    values = MeanOfUnits(recorded["exact_mean/values"])
    assert values.of_weights(weights).std() == pytest.approx(float(recorded["exact_mean/std"]), abs=1e-9)


def test_random_resamples_converge_to_the_enumeration():
    a, b = (MeanIoU.of_confusions(confusions(seed)) for seed in (1, 2))
    weights = counts_of(np.array(list(product(range(5), repeat=5))), 5).astype(float)
    exact = b.of_weights(weights) - a.of_weights(weights)
    found = paired_bootstrap([a], [b], resamples=20_000).replicates
    assert found.mean() == pytest.approx(exact.mean(), abs=4 * exact.std() / np.sqrt(20_000))
    assert found.std() == pytest.approx(exact.std(), rel=0.03)


def test_intervals_and_p_of_given_draws_equal_the_recorded_ones(recorded, monkeypatch):
    a, b = (MeanIoU.of_confusions(recorded[f"miou/confusion_{x}"]) for x in "ab")
    monkeypatch.setattr(module, "draw_blocks", given(recorded["miou/indices"]))
    percentile, bca = (paired_bootstrap([a], [b], method=m) for m in ("auto", "BCa"))
    assert (percentile.method, bca.method) == ("percentile", "BCa")
    close = {"rtol": 0, "atol": 1e-9}
    np.testing.assert_allclose(bca.replicates, recorded["miou/replicates"], **close)
    np.testing.assert_allclose([percentile.low, percentile.high], recorded["miou/percentile_95"], **close)
    np.testing.assert_allclose([bca.low, bca.high], recorded["miou/bca_95"], **close)
    assert bca.p == pytest.approx(float(recorded["miou/p_two_sided"]), abs=1e-9)
    left_out = jackknife(module._difference([a], [b]), np.arange(40))
    np.testing.assert_allclose(left_out, recorded["miou/jackknife"], **close)
    np.testing.assert_allclose(bias_and_acceleration(bca.replicates, bca.difference, left_out), recorded["miou/z0_acceleration"], **close)
    np.testing.assert_allclose(bca_quantiles(bca.replicates, bca.difference, left_out, 0.95), recorded["miou/bca_quantiles"], **close)


def test_whole_clusters_are_drawn(recorded, monkeypatch):
    owner = recorded["clustered/owner"]
    a, b = (MeanOfUnits(recorded[f"clustered/{x}"], scale=100.0) for x in "ab")
    monkeypatch.setattr(module, "draw_blocks", given(recorded["clustered/indices"]))
    found = paired_bootstrap([a], [b], owner=owner, method="percentile")
    np.testing.assert_allclose(found.replicates, recorded["clustered/replicates"], rtol=0, atol=1e-9)
    np.testing.assert_allclose([found.low, found.high], recorded["clustered/percentile_95"], rtol=0, atol=1e-9)
    assert (found.units, found.clusters) == (16, 8)
    assert "few" in found.notes[0]
    plain = []
    for draw in recorded["clustered/indices"][:20]:
        units = [u for v in draw for u in np.flatnonzero(owner == v)]
        plain.append(100 * np.mean([b.values[u] for u in units]) - 100 * np.mean([a.values[u] for u in units]))
    np.testing.assert_allclose(found.replicates[:20], plain, rtol=0, atol=1e-9)


def test_matching_is_made_for_each_resample_unless_fixed(recorded):
    counts = recorded["matching/counts"].transpose(0, 2, 1)  # recorded as clusters x classes
    weights = counts_of(recorded["matching/indices"].astype(int), 20).astype(float)
    options = {"absent": "skip"}
    again, fixed = (MatchedIoU.of_counts(counts, fixed=fixed, **options) for fixed in (False, True))
    assert again.score == pytest.approx(float(recorded["matching/score"]), abs=1e-9)
    np.testing.assert_array_equal(again.match(counts.sum(0)), recorded["matching/assignment"])
    expected = recorded["matching/replicates_rematched_fixed"]
    np.testing.assert_allclose(np.stack([again.of_weights(weights), fixed.of_weights(weights)], 1), expected, rtol=0, atol=1e-9)


def test_more_clusters_than_classes_are_matched_as_a_loop_does():
    counts = np.random.default_rng(3).integers(0, 9, (4, 3, 5))
    total = counts.sum(0)
    for matching in ("hungarian", "many_to_one", "many_to_one_iou"):
        classes = np.full(5, -1)
        iou = np.array([[total[c, k] / (total[c].sum() + total[:, k].sum() - total[c, k]) for k in range(5)] for c in range(3)])
        if matching == "hungarian":
            classes[linear_sum_assignment(-iou)[1]] = linear_sum_assignment(-iou)[0]
        else:
            classes[:] = (total if matching == "many_to_one" else iou).argmax(0)
        confusion = np.zeros((3, 3))
        for k in range(5):
            confusion[:, max(classes[k], 0)] += total[:, k]
        assert MatchedIoU.of_counts(counts, matching=matching).score == pytest.approx(plain_miou([confusion]), abs=1e-9)


def test_bca_equals_scipy():
    values = np.random.default_rng(5).exponential(size=30)
    a, b = MeanOfUnits(np.zeros(30)), MeanOfUnits(values)
    found = paired_bootstrap([a], [b], resamples=4000)
    data = (values,)
    reference = stats.bootstrap(data, np.mean, n_resamples=4000, method="BCa", bootstrap_result=None, rng=np.random.default_rng(0))
    low, high = reference.confidence_interval
    width = high - low
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.1 * width)


def test_same_rows_differ_by_nothing_and_swapped_rows_by_the_opposite():
    a, b = (MeanIoU.of_confusions(confusions(seed, n=25)) for seed in (1, 2))
    same, forth, back = paired_bootstrap([a], [a]), paired_bootstrap([a], [b], resamples=500), paired_bootstrap([b], [a], resamples=500)
    assert (same.replicates == 0).all()
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)
    np.testing.assert_array_equal(forth.replicates, -back.replicates)


def test_units_doubled_as_clusters_change_no_interval():
    values = np.random.default_rng(0).normal(size=(2, 24))
    single = paired_bootstrap(*([MeanOfUnits(v)] for v in values), resamples=300)
    double = paired_bootstrap(*([MeanOfUnits(np.repeat(v, 2))] for v in values), owner=np.repeat(np.arange(24), 2), resamples=300)
    np.testing.assert_allclose(double.replicates, single.replicates, atol=1e-12)
    assert (double.low, double.high) == pytest.approx((single.low, single.high))


def test_a_row_of_several_seeds_is_their_mean():
    values = np.random.default_rng(0).normal(size=(3, 24))
    found = paired_bootstrap([MeanOfUnits(values[0])], [MeanOfUnits(values[1]), MeanOfUnits(values[2])], resamples=300)
    expected = paired_bootstrap([MeanOfUnits(values[0])], [MeanOfUnits(values[1:].mean(0))], resamples=300)
    np.testing.assert_allclose(found.replicates, expected.replicates, atol=1e-12)


def test_ratio_of_sums_and_units_left_out():
    ratio = RatioOfSums(np.array([1, 3, 0]), np.array([2, 4, 5]), scale=100)
    weights = np.array([[1.0, 1, 1], [2, 0, 1]])
    np.testing.assert_allclose(ratio.of_weights(weights), [100 * 4 / 11, 100 * 2 / 9])
    mean = MeanOfUnits(np.array([1.0, np.nan, 4.0]))
    np.testing.assert_allclose(mean.of_weights(np.array([[1.0, 5, 1], [2, 1, 1]])), [2.5, 2.0])


def test_resamples_that_lack_a_class_are_said():
    rare = np.zeros((20, 2, 2), int)
    rare[:, 0, 0] = 10
    rare[3, 1, 1] = 5
    found = paired_bootstrap([MeanIoU.of_confusions(rare)], [MeanIoU.of_confusions(rare)], resamples=400)
    assert any("lack a class" in note for note in found.notes)


def test_right_and_wrong_answers_equal_the_recorded_ones(recorded):
    found = discordant(recorded["binary/a"], recorded["binary/b"])
    assert {found.only_a, found.only_b} == set(recorded["binary/discordant"].tolist())
    assert 100 * found.difference == pytest.approx(float(recorded["binary/difference"]), abs=1e-9)
    assert 1e4 * found.variance == pytest.approx(float(recorded["binary/bootstrap_variance_exact"]), abs=1e-9)
    assert found.p == pytest.approx(float(recorded["binary/p_exact"]), abs=1e-9)


def test_adjusted_p_equal_the_recorded_ones_and_a_loop(recorded):
    p = recorded["holm/p"]
    np.testing.assert_allclose(holm(p), recorded["holm/adjusted"], rtol=0, atol=1e-9)
    np.testing.assert_allclose(benjamini_hochberg(p), recorded["holm/benjamini_hochberg"], rtol=0, atol=1e-9)
    shuffled = np.array([0.04, 0.001, 0.2])
    np.testing.assert_allclose(holm(shuffled), [0.08, 0.003, 0.2])
    np.testing.assert_allclose(benjamini_hochberg(shuffled), [0.06, 0.003, 0.2])


def test_p_counts_the_resamples_beyond_zero():
    assert two_sided_p(np.array([1.0, 2.0, 3.0])) == 0.5
    assert two_sided_p(np.array([-1.0, 1.0, 0.0])) == 1.0


def test_units_of_equal_values_are_drawn_together():
    """The same distribution as unit by unit: its exact standard deviation, that of the discordant images."""
    generator = np.random.default_rng(5)
    a, b = generator.random((2, 6_000)) < [[0.6], [0.63]]
    found = paired_bootstrap([MeanOfUnits(a.astype(float))], [MeanOfUnits(b.astype(float))], resamples=4_000)
    assert found.method == "percentile"
    assert found.units == 6_000
    exact = np.sqrt(discordant(a, b).variance)
    assert found.replicates.std() == pytest.approx(exact, rel=0.04)
    assert found.replicates.mean() == pytest.approx(found.difference, abs=4 * exact / np.sqrt(4_000))
    assert found.high - found.low == pytest.approx(2 * 1.96 * exact, rel=0.06)


# -- equal resamples, and units without a value -----------------------------------------------------------------------


def exact_replicates(a, b, resamples, seed):
    """Sums of whole numbers over the bootstrap's own draws: nothing is rounded."""
    draws = np.concatenate(list(draw_blocks(np.ones(len(a), np.int64), resamples, seed, len(a))))
    return (draws @ (b - a)).astype(np.int64)


@pytest.mark.parametrize(("n", "seeds"), [(7, 1), (22, 1), (43, 1), (97, 1), (9, 3), (6, 3)])
def test_resamples_that_are_equal_count_as_equal(n, seeds):
    """Of 0 and 1: means differ in their last digits, sums do not."""
    for trial in range(10):
        rng = np.random.default_rng([n, trial])
        a, b = (rng.integers(0, 2, (seeds, n)) for _ in range(2))
        found = paired_bootstrap([MeanOfUnits(x.astype(float), 100.0) for x in a], [MeanOfUnits(x.astype(float), 100.0) for x in b], seed=3)
        exact = exact_replicates(a.sum(0), b.sum(0), RESAMPLES, 3)
        total = int((b - a).sum())
        bias, _ = bias_and_acceleration(found.replicates, found.difference, np.arange(3.0))
        expected, _ = bias_and_acceleration(exact.astype(float), float(total), np.arange(3.0))
        assert bias == expected
        assert found.p == two_sided_p(exact)


def test_units_without_a_value_are_no_evidence():
    a, b = np.full(20, np.nan), np.full(20, np.nan)
    a[3], b[3] = 0.50, 0.51
    assert informative([MeanOfUnits(a), MeanOfUnits(b)], None) == 1
    with pytest.raises(ValueError, match="tells nothing"):
        paired_bootstrap([MeanOfUnits(a)], [MeanOfUnits(b)])
    a[4], b[4] = 0.7, 0.6  # two of them, in one video
    with pytest.raises(ValueError, match="tells nothing"):
        paired_bootstrap([MeanOfUnits(a)], [MeanOfUnits(b)], owner=np.arange(20) // 10)
    found = paired_bootstrap([MeanOfUnits(a)], [MeanOfUnits(b)])
    (note,) = found.notes
    assert note == f"{np.isnan(found.replicates).mean():.0%} of the resamples have no unit with a value, and are left out"
    assert found.p == two_sided_p(found.replicates[~np.isnan(found.replicates)])


def test_shares_of_units_without_a_value_are_refused():
    values = np.full(6, np.nan)
    values[0] = 1.0
    with pytest.raises(ValueError, match="tells nothing"):
        share_intervals([MeanOfUnits(values), MeanOfUnits(values)], np.array([[-1.0, 1.0]]))
