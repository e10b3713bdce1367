"""Differences over test units: in a command, in gain.csv and on the page; what cannot be compared is refused."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.core.metric import Metric
from densewalk.evidence.bootstrap import paired_bootstrap
from densewalk.evidence.multiplicity import holm
from densewalk.evidence.own_scores import own_scores
from densewalk.evidence.runs import mean_of_runs
from densewalk.evidence.statistics import MatchedIoU, MeanIoU, MeanOfUnits, RatioOfSums
from densewalk.evidence.units import Units, units_path, write_units
from densewalk.results.gain import gains, write_gain
from densewalk.results.page.page import report
from densewalk.results.page.sections import class_charts
from densewalk.results.pairs import differences as module
from densewalk.results.pairs.differences import Differences, difference
from densewalk.results.pairs.rows import compare_rows, text, write_compared
from densewalk.results.pairs.where import where
from densewalk.results.plan import Plan
from densewalk.results.records import read_result
from densewalk.results.tables import read_table
from tests.fixtures.pages import METRIC, PLAN
from tests.fixtures.records import TRAINED, record

IDS = [f"val/{i}.png" for i in range(12)]
METRICS = {"incontext": {"mIoU": Metric("%")}}
START = {"init": "random", "init_kind": "random"}
SHIFTS = {"start": 0.0, "walk": 0.3, "neco": 0.0}


def units_of(run, seed, ids=IDS):
    """mIoU of images; `walk` is better than `start` on every image, `neco` is as good."""
    base = np.random.default_rng(0).integers(20, 60, (len(ids), 3, 3))
    noise = np.random.default_rng([len(run), seed]).integers(0, 25, base.shape)
    moved = base + noise + (SHIFTS[run] * 300 * np.eye(3)).astype(int)
    return Units(ids, "image", {"mIoU": MeanIoU.of_confusions(moved)})


def write(results, run, seed, units, **changes):
    """A record and its units, as a job leaves them."""
    path = results / run / f"s{seed}" / "incontext_voc.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {**START, "method": "none" if run == "start" else "dora", "training": None if run == "start" else TRAINED}
    run_hash = f"{sorted(SHIFTS).index(run)}{seed:011d}"
    score = units.statistics["mIoU"].score
    content = {**record(run, seed, {"mIoU": score}, backbone_sha256=f"{run}{seed}", run_hash=run_hash, **made), **changes}
    path.write_text(json.dumps(content))
    write_units(path, units, config_hash=content["config_hash"], run_hash=run_hash, backbone_sha256=f"{run}{seed}")
    return path


@pytest.fixture
def results(tmp_path):
    for run in SHIFTS:
        for seed in range(2):
            write(tmp_path, run, seed, units_of(run, seed))
    return tmp_path


NAMES = ["start:incontext_voc", "walk:incontext_voc", "neco:incontext_voc"]


def test_rows_are_compared_over_units_and_over_seeds(results):
    walk, neco = compare_rows(NAMES, results, resamples=500)
    a, b = ([units_of(run, seed).statistics["mIoU"] for seed in range(2)] for run in ("start", "walk"))
    assert walk.by_units.difference == pytest.approx(np.mean([s.score for s in b]) - np.mean([s.score for s in a]))
    direct = paired_bootstrap(a, b, resamples=20_000)
    assert walk.by_units.low == pytest.approx(direct.low, abs=0.35 * (direct.high - direct.low))
    assert (walk.by_units.method, walk.by_units.units, walk.by_units.seeds) == ("percentile", 12, 2)
    assert walk.by_seeds.mean == pytest.approx(walk.by_units.difference)
    assert not walk.by_units.is_tie
    assert [walk.p_holm, neco.p_holm] == holm(np.array([walk.by_units.p, neco.by_units.p])).tolist()
    told = text([walk, neco])
    assert "500 resamples of 12 images" in told
    assert "2 pairs of seeds" in told
    assert told.count("Holm") == 2
    write_compared([walk, neco], results / "compared.csv")
    table = read_table(results / "compared.csv")
    assert table["run"].tolist() == ["walk", "neco"]
    assert table["n_units"].tolist() == ["12", "12"]


def test_the_other_way_round_is_the_mirror_image(results):
    sides = [[units_of(run, 0)] for run in ("start", "neco")]
    one, other = difference(*sides, "mIoU", resamples=300), difference(*sides[::-1], "mIoU", resamples=300)
    assert (one.low, one.high, one.difference) == pytest.approx((-other.high, -other.low, -other.difference), abs=1e-9)
    assert one.p == other.p


def test_right_and_wrong_answers_are_counted(results):
    for run, values in (("start", [1, 0, 1, 0] * 3), ("walk", [1, 1, 1, 0] * 3)):
        units = Units(IDS, "image", {"mIoU": MeanOfUnits(np.array(values, float), scale=100.0)})
        write(results, run, 0, units)
    paths = [str(results / run / "s0" / "incontext_voc.json") for run in ("start", "walk")]
    (found,) = compare_rows(paths, results, resamples=200)
    assert (found.discordant.only_a, found.discordant.only_b) == (0, 3)
    assert "one pair tells nothing" in text([found])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: write(r, "walk", 0, units_of("walk", 0), protocol="another"), "not comparable: protocol: .* and another"),
        (lambda r: write(r, "walk", 0, units_of("walk", 0), version=9), "version of the protocol: 1 and 9"),
        (lambda r: write(r, "walk", 0, units_of("walk", 0, [*IDS[:3], "val/x.png", *IDS[4:]])), "number 4 is 'val/3.png' and 'val/x.png'"),
        (lambda r: units_path(r / "walk/s0/incontext_voc.json").unlink(), "no such file"),
        (lambda r: units_path(r / "neco/s0/incontext_voc.json").rename(units_path(r / "walk/s0/incontext_voc.json")), "another result"),
        (lambda r: write(r, "walk", 0, units_of("walk", 0), metrics={"mIoU": 1.0}), "does not give the numbers"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_first_difference(results, damage, message):
    damage(results)
    with pytest.raises(UserError, match=message):
        compare_rows(NAMES[:2], results, resamples=20)


def test_one_video_tells_nothing_about_others_but_seeds_are_compared(results):
    for run in ("start", "walk"):
        for seed in range(2):
            write(results, run, seed, replace(units_of(run, seed), clusters=["walk.mp4"] * 12, cluster="video"))
    (found,) = compare_rows(NAMES[:2], results)
    a, b = (np.array([units_of(run, seed).statistics["mIoU"].score for seed in range(2)]) for run in ("start", "walk"))
    assert (found.by_units, found.cluster, found.pairs) == (None, "video", 2)
    assert (found.reference_value, found.value) == pytest.approx((a.mean(), b.mean()))
    assert found.by_seeds.half == pytest.approx(12.7062047 * np.std(b - a, ddof=1) / np.sqrt(2))  # t(0.975, 1)
    told = text([found])
    assert "test units      one video tells nothing of others" in told
    assert "2 pairs of seeds" in told
    write_compared([found], results / "compared.csv")
    table = read_table(results / "compared.csv")
    assert table[["units_low", "units_p", "notes"]].fillna("").values.tolist() == [["", "", "one video tells nothing of others"]]
    assert table["seeds_ci95"].astype(float).item() == pytest.approx(found.by_seeds.half, abs=0.005)
    write_gain(all_paths(results), results / "gain.csv", METRICS)
    assert set(read_table(results / "gain.csv")["units_p"]) == {""}


def test_three_images_that_agree_are_no_evidence():
    a, b = (Units(IDS[:3], "image", {"mIoU": MeanOfUnits(np.array([0.1, 0.2, 0.4]) + shift)}) for shift in (0.0, 0.3))
    found = difference([a], [b], "mIoU", resamples=100)
    assert found.low > 0
    assert found.p == 0.25
    assert found.is_tie
    assert "cannot tell" in found.notes[-1]


def test_two_discordant_images_are_a_tie():
    a, b = np.ones(18), np.ones(18)
    b[:2] = 0
    sides = ([Units([str(i) for i in range(18)], "image", {"mIoU": MeanOfUnits(x, scale=100.0)})] for x in (a, b))
    found = difference(*sides, "mIoU", resamples=2_000)
    assert found.p > 0.05
    assert found.model_copy(update={"high": -5.0}).is_tie  # as other draws give it
    assert found.is_tie


def test_names_that_are_nothing(results):
    for names in (["start:incontext_voc", "walk:davis"], ["start:incontext_voc", "walk"], ["start:incontext_voc", "wolk:incontext_voc"]):
        with pytest.raises(UserError, match="no such result"):
            compare_rows(names, results)
    with pytest.raises(UserError, match="no unit statistics of loss"):
        compare_rows(NAMES[:2], results, "loss")


def test_the_command(results, capsys):
    assert main(["compare", *NAMES[:2], "--results", str(results), "--resamples", "50", "--csv", str(results / "c.csv")]) == 0
    assert "walk:incontext_voc - start:incontext_voc" in capsys.readouterr().out
    assert main(["compare", NAMES[0], "--results", str(results)]) == 2


# -- gain.csv --------------------------------------------------------------------------------------------------------


def all_paths(results):
    return sorted(results.glob("*/s*/*.json"))


def test_gains_have_both_intervals_and_old_results_empty_cells(results, monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 200)
    units_path(results / "neco/s1/incontext_voc.json").unlink()  # a record of an earlier version
    cache = results / "specs" / "differences.json"
    write_gain(all_paths(results), results / "gain.csv", METRICS, cache=cache)
    table = read_table(results / "gain.csv").set_index("run")
    walk, neco = table.loc["walk"], table.loc["neco"]
    assert float(walk["units_low"]) < float(walk["difference"]) < float(walk["units_high"])
    assert (walk["n_units"], walk["n_clusters"], walk["units_method"]) == ("12", "", "percentile")
    assert walk["units_p_holm"] == walk["units_p"]  # one comparison
    assert walk["ci95"] != ""
    assert neco["difference"] != ""
    assert all(neco[name] == "" for name in table.columns if name.startswith(("units", "n_")))

    first = (results / "gain.csv").read_bytes()
    monkeypatch.setattr(module, "paired_bootstrap", lambda *_, **__: pytest.fail("it is remembered"))
    write_gain(all_paths(results), results / "gain.csv", METRICS, cache=cache)
    assert (results / "gain.csv").read_bytes() == first
    monkeypatch.undo()
    before = json.loads(cache.read_text())
    write(results, "walk", 0, replace(units_of("walk", 0), statistics=units_of("walk", 5).statistics))
    write_gain(all_paths(results), results / "gain.csv", METRICS, cache=cache)
    assert len(json.loads(cache.read_text())["differences"]) == len(before["differences"]) + 1


def test_rows_of_other_units_have_no_interval(results, monkeypatch):
    write(results, "walk", 0, units_of("walk", 0, IDS[::-1]))
    paths = all_paths(results)
    records = [read_result(p) for p in paths]
    places = {(r.run, r.seed, r.evaluation): p for p, r in zip(paths, records, strict=True)}
    monkeypatch.setattr(module, "RESAMPLES", 50)
    found = {g.run: g for g in gains(records, METRICS, None, Differences(places)) if g.kind == "run"}
    assert found["walk"].units is None
    assert found["neco"].units is not None


# -- where it lives, and the page ------------------------------------------------------------------------------------


def test_own_scores_are_those_of_single_images():
    confusions = np.random.default_rng(3).integers(0, 40, (5, 3, 3))
    confusions[2, 1], confusions[2, :, 1] = 0, 0  # an image without a class
    expected = [
        100 * np.mean([c[k, k] / (c[k].sum() + c[:, k].sum() - c[k, k]) for k in range(3) if c[k].sum() + c[:, k].sum()])
        for c in confusions
    ]
    np.testing.assert_allclose(own_scores(MeanIoU.of_confusions(confusions, "zero")), expected)
    np.testing.assert_allclose(own_scores(mean_of_runs([MeanIoU.of_confusions(confusions)] * 2)), expected)
    swapped = MatchedIoU.of_counts(confusions + 200 * np.eye(3, dtype=int)[[1, 0, 2]][None], fixed=False)
    straight = MeanIoU.of_confusions((confusions + 200 * np.eye(3, dtype=int)[[1, 0, 2]][None])[:, :, [1, 0, 2]])
    np.testing.assert_allclose(own_scores(swapped), own_scores(straight))
    np.testing.assert_allclose(own_scores(RatioOfSums(np.array([1, 3]), np.array([2, 4]), scale=100.0)), [50, 75])


def test_the_units_and_classes_that_moved_most(results):
    values = {"start": [0.5, 0.5, 0.5, 0.5] * 3, "walk": [0.9, 0.5, 0.4, 0.6] * 3}
    records = {}
    for run, of_units in values.items():
        units = Units(IDS, "image", {"mIoU": MeanOfUnits(np.array(of_units), scale=100.0)})
        ious = {"class 0": 50.0, "class 1": 70.0 if run == "walk" else 30.0, "class 2": None}
        names = (
            {"class_names": {"class 0": "cat", "class 1": "dog", "class 2": "cow"}} if run == "walk" else {}
        )  # the other is an older one
        path = write(results, run, 0, units, details={"IoU": ious, **names})
        records[run] = read_result(path)
    places = {(run, 0, "incontext_voc"): results / run / "s0" / "incontext_voc.json" for run in values}
    found = where([(records["start"], records["walk"])], "mIoU", Differences(places))
    assert [m.name for m in found.units[0]] == [IDS[0], IDS[4], IDS[8], IDS[3], IDS[7]]
    assert [m.difference for m in found.units[1]] == pytest.approx([-10, -10, -10])
    assert [m.name for m in found.classes[0]] == ["dog"]
    assert found.moved == (6, 3)
    svg = class_charts([*records.values()], ["start", "walk"])[0].svg
    assert [text for text in re.findall(r">([^<>]+)</text>", svg) if text in ("cat", "dog") or "class 0" in text] == ["cat", "dog"]


def test_the_page_shows_ties_in_grey_and_where_gains_live(results, monkeypatch):
    monkeypatch.setattr(module, "RESAMPLES", 200)
    for run in ("start", "walk"):
        folder = results / run / "s0" / "incontext_voc" / "val"
        folder.mkdir(parents=True)
        for name in IDS:
            Image.fromarray(np.full((8, 8, 3), 90, np.uint8)).save(folder / f"{name.removeprefix('val/')}.png")
    run = {"method": "dora", "init": "random", "arch": "vit_small_patch16", "data": [], "seeds": [0, 1]}
    plan = Plan.model_validate(
        {
            "study": "units",
            "runs": {"start": {**run, "method": "none"}, "walk": run, "neco": run},
            "evaluations": {"incontext_voc": {**PLAN["evaluations"]["incontext_voc"], "metrics": {"mIoU": METRIC}, "runs": list(SHIFTS)}},
            "hashes": {f"{name}/s{seed}/incontext_voc": f"{seed:012d}" for name in SHIFTS for seed in range(2)},
        }
    )
    report(plan, results, results / "report.html")
    page = (results / "report.html").read_text()
    assert page.count('class="number tie"') == 1
    assert ": a tie. One interval is about training seeds" in page
    assert "incontext_voc, mIoU: walk against start" in page
    assert "image val/" in page.replace("<wbr>", "")
    assert "Of 12 images," in page
    assert (results / "specs" / "differences.json").is_file()
