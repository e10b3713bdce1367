"""Reference values of the evidence: paired bootstrap, adjusted p, AP of resampled images, and shares of a difference."""

from collections.abc import Callable
from itertools import product
from typing import Any
from unittest import mock

import numpy as np
from benchmarks.reference_values.frozen import Rows
from benchmarks.reference_values.rows import Note, cases, children, compare, compare_named, numbered

from densewalk.evaluations.metrics.detections import Evaluation, box_evaluation
from densewalk.evidence import bootstrap
from densewalk.evidence.bootstrap import bca_quantiles, bias_and_acceleration, counts_of, jackknife, paired_bootstrap
from densewalk.evidence.multiplicity import benjamini_hochberg, discordant, holm
from densewalk.evidence.shares import interactions, one_at_a_time, sequential, shapley
from densewalk.evidence.statistics import MatchedIoU, MeanIoU, MeanOfUnits, Statistic

EXACT = 1e-9
# what is recorded of each kind of cases
DISTRIBUTIONS = {
    "exact": ("difference", "replicates", "mean", "std", "percentile_95", "p_two_sided"),
    "exact_mean": ("std", "std_formula", "percentile_95"),
    "miou": ("difference", "replicates", "percentile_95", "bca_95", "z0_acceleration", "bca_quantiles", "jackknife", "p_two_sided"),
    "clustered": ("difference", "replicates", "percentile_95", "std_iid_formula", "std_cluster_linearised"),
}
Difference = Callable[[np.ndarray], np.ndarray]


def eval_bootstrap(values: Any) -> Rows:
    """Every recorded distribution of resamples, interval and p."""
    for case in numbered(values, "exact"):
        yield from all_resamples(values, case, difference(*confusions(values, case)), len(values[f"{case}/confusion_a"]))
    for case in numbered(values, "exact_mean"):
        yield from all_resamples(values, case, MeanOfUnits(values[f"{case}/values"]).of_weights, len(values[f"{case}/values"]))
    for case in numbered(values, "miou"):
        yield from given_draws(values, case, *confusions(values, case))
    for case in numbered(values, "clustered"):
        a, b = (MeanOfUnits(values[f"{case}/{row}"].astype(float), scale=100.0) for row in "ab")
        yield from given_draws(values, case, a, b, values[f"{case}/owner"])
    for case in numbered(values, "binary"):
        yield from right_and_wrong(values, case)
    for case in numbered(values, "holm"):
        for name, adjust in (("adjusted", holm), ("benjamini_hochberg", benjamini_hochberg)):
            yield compare("eval_bootstrap", case, name, adjust(values[f"{case}/p"]), values[f"{case}/{name}"], EXACT)
    for case in numbered(values, "coco"):
        for row, name in enumerate("ab"):
            yield from average_precision(values, case, row, name)
    for case in numbered(values, "matching"):
        yield from matching(values, case)


def confusions(values: Any, case: str) -> tuple[MeanIoU, MeanIoU]:
    """mIoU of both rows."""
    a, b = (MeanIoU.of_confusions(values[f"{case}/confusion_{row}"].astype(int)) for row in "ab")
    return a, b


def difference(a: Statistic, b: Statistic) -> Difference:
    """The score of B minus that of A on each multiset of units."""
    return lambda weights: b.of_weights(weights) - a.of_weights(weights)


def all_resamples(values: Any, case: str, score: Difference, units: int) -> Rows:
    """The distribution over all n^n resamples of n units; p without the 1 that is added for drawn ones."""
    draws = np.array(list(product(range(units), repeat=units)))
    replicates = np.sort(score(counts_of(draws, units).astype(float)))
    sides = (replicates <= 0).mean(), (replicates >= 0).mean()
    found = {"difference": score(np.ones((1, units)))[0], "replicates": replicates, "mean": replicates.mean(), "std": replicates.std()}
    found |= {"std_formula": deviation(score, np.arange(units)), "p_two_sided": min(1.0, 2 * min(sides))}
    found |= {"percentile_95": np.quantile(replicates, bootstrap.percentile_quantiles(0.95), method="inverted_cdf")}
    yield from compare_named("eval_bootstrap", values, case, found, EXACT, *DISTRIBUTIONS[case.split("/")[0]])


def deviation(score: Difference, owner: np.ndarray) -> float:
    """Standard deviation of a mean over resampled clusters, linearized: that of one cluster's influence, by the jackknife.

    influence_v = (T - T without v) (n - n_v) / n = sum over i in v of (x_i - mean x) / n
    """
    left = len(owner) - np.bincount(owner)
    influence = (score(np.ones((1, len(owner)))) - jackknife(score, owner)) * left / len(owner)
    return float(np.sqrt((influence**2).sum()))


def given_draws(values: Any, case: str, a: Statistic, b: Statistic, owner: np.ndarray | None = None) -> Rows:
    """Replicates, intervals and p of the recorded draws of units, or of clusters."""
    indices = values[f"{case}/indices"].astype(int)

    def draw_blocks(sizes: np.ndarray, *_: Any) -> list[np.ndarray]:
        return [counts_of(indices, len(sizes)).astype(float)]

    with mock.patch.object(bootstrap, "draw_blocks", draw_blocks):
        percentile, bca = (paired_bootstrap([a], [b], owner=owner, method=method) for method in ("percentile", "BCa"))
    score, single = difference(a, b), np.arange(a.units)
    clusters = single if owner is None else owner
    left_out = jackknife(score, clusters)
    known = bca.replicates, bca.difference, left_out
    found = {"difference": bca.difference, "replicates": bca.replicates, "jackknife": left_out, "p_two_sided": bca.p}
    found |= {"percentile_95": (percentile.low, percentile.high), "bca_95": (bca.low, bca.high)}
    found |= {"z0_acceleration": bias_and_acceleration(*known), "bca_quantiles": bca_quantiles(*known, 0.95) or (np.nan, np.nan)}
    if isinstance(a, MeanOfUnits):
        found |= {"std_iid_formula": deviation(score, single), "std_cluster_linearised": deviation(score, clusters)}
    yield from compare_named("eval_bootstrap", values, case, found, EXACT, *DISTRIBUTIONS[case.split("/")[0]])


def right_and_wrong(values: Any, case: str) -> Rows:
    """Two rows of right and wrong answers: which of them differ, the exact variance and the sign test."""
    pair = discordant(values[f"{case}/a"].astype(bool), values[f"{case}/b"].astype(bool))
    found = {"discordant": (pair.only_b, pair.only_a), "difference": 100 * pair.difference, "p_exact": pair.p}
    found |= {"bootstrap_variance_exact": 1e4 * pair.variance}
    yield from compare_named("eval_bootstrap", values, case, found, EXACT, *found)


def matching(values: Any, case: str) -> Rows:
    """mIoU of matched clusters, matched again for each resample or once."""
    counts = values[f"{case}/counts"].astype(int).transpose(0, 2, 1)  # recorded as clusters x classes
    weights = counts_of(values[f"{case}/indices"].astype(int), len(counts)).astype(float)
    again, fixed = (MatchedIoU.of_counts(counts, fixed=fixed, absent="skip") for fixed in (False, True))
    found = {"assignment": again.match(counts.sum(0)), "score": again.score}
    found |= {"replicates_rematched_fixed": np.stack([again.of_weights(weights), fixed.of_weights(weights)], axis=1)}
    yield from compare_named("eval_bootstrap", values, case, found, EXACT, *found)


# -- COCO's average precision ------------------------------------------------------------------------------------------


def average_precision(values: Any, case: str, row: int, name: str) -> Rows:
    """COCO's twelve numbers of one row, and AP of the resamples: of copies of the images drawn, and by how often each was drawn."""
    truth, detections, indices = values[f"{case}/truth"], values[f"{case}/{name}"], values[f"{case}/indices"].astype(int)
    images = int(values[f"{case}/images"])
    whole, recorded = boxes(truth, detections, images), values[f"{case}/replicates_AP_AP50_AP75"][:, row]
    statistics = [100 * value for value in whole.statistics().values()]
    yield compare("eval_bootstrap", case, f"twelve numbers of {name}, %", statistics, values[f"{case}/stats"][row], EXACT)
    copied = [boxes(copies(truth, draw), copies(detections, draw), len(draw)).statistics() for draw in indices]
    ours = [[100 * found[metric] for metric in ("AP", "AP50", "AP75")] for found in copied]
    yield compare("eval_bootstrap", case, f"AP, AP50, AP75 of {name}'s resamples, %", ours, recorded, EXACT)
    if len(np.unique(detections[:, [1, 6]], axis=0)) < len(detections):
        yield Note("eval_bootstrap", f"{case}, {name}", "scores are equal: AP by weights has no order of the draw")
        return
    matched, weights = whole.matched([]), counts_of(indices, images).astype(float)
    weighted = [part.of_weights(weights) for part in (matched, matched.at(0), matched.at(5))]
    yield compare("eval_bootstrap", case, f"the same of {name} by weights, %", np.stack(weighted, axis=1), recorded, EXACT)


def boxes(truth: np.ndarray, detections: np.ndarray, images: int) -> Evaluation:
    """Evaluate rows of image, category, x, y, width, height, and whether it is a crowd or the score."""
    content: dict[str, Any] = {"images": [{"id": number} for number in range(images)]}
    content["categories"] = [{"id": int(number)} for number in np.union1d(truth[:, 1], detections[:, 1])]
    content["annotations"] = [
        {"image_id": int(x[0]), "category_id": int(x[1]), "bbox": x[2:6], "area": x[4] * x[5], "iscrowd": int(x[6])} for x in truth.tolist()
    ]
    records = [{"image_id": int(x[0]), "category_id": int(x[1]), "bbox": x[2:6], "score": x[6]} for x in detections.tolist()]
    return box_evaluation(content, records)


def copies(rows: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """The rows of the images drawn, each draw an image of its own."""
    parts = [rows[rows[:, 0] == image] for image in draw]
    number = np.repeat(np.arange(len(draw)), [len(part) for part in parts])
    return np.column_stack([number, np.concatenate(parts)[:, 1:]])


# -- shares of a difference --------------------------------------------------------------------------------------------


def eval_ladder(values: Any) -> Rows:
    """Every recorded table of scores; of some, Shapley's shares alone are recorded."""
    for case in cases(values, having="scores"):
        scores = values[f"{case}/scores"]
        shares = shapley(scores)
        yield compare("eval_ladder", case, "shapley", shares, values[f"{case}/shapley"], EXACT)
        if len(children(values, case)) == 2:
            continue
        from_a, from_b = one_at_a_time(scores)
        found = {"difference": shares.sum(), "interaction": interactions(scores)}
        found |= {"one_at_a_time_from_a": from_a, "one_at_a_time_from_b": from_b}
        found |= {"sequential": [sequential(scores, order) for order in values[f"{case}/orders"].tolist()]}
        yield from compare_named("eval_ladder", values, case, found, EXACT, *found)
