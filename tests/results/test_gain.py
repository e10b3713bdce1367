"""What runs have gained: pairs of seeds, intervals by hand, floors, and what is called better."""

import json
import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.core.metric import Metric, floor_of
from densewalk.results.gain import COLUMNS, gain_table, gains, write_gain
from densewalk.results.page.gains import gain_sections
from densewalk.results.page.page import report
from densewalk.results.page.sections import rise
from densewalk.results.page.view import GainCell
from densewalk.results.paper.tables import paper_table
from densewalk.results.plan import Plan
from densewalk.results.significance import best_runs, paired
from densewalk.results.tables import read_table
from densewalk.study.registry import evaluations, metrics_of_tables
from tests.fixtures.records import TRAINED, record, typed

START = {"init": "random", "init_kind": "random"}
TRAINING = {**START, "method": "dora", "training": TRAINED}
METRICS = {"incontext": {"mIoU": Metric("%"), "loss": Metric("", better="lower")}}


def study():
    """Random weights, three runs from them (one with a single seed), one built on another, and a checkpoint with what is built on it."""
    values = {
        "start": (30.0, 31.0, 29.0),
        "walk": (33.0, 34.5, 31.9),
        "noise": (36.0, 28.0, 31.0),
        "lone": (50.0,),
        "neco": (34.0, 35.4, 33.1),
    }
    made = {
        "start": START,
        "walk": TRAINING,
        "noise": TRAINING,
        "lone": TRAINING,
        "neco": {"method": "neco", "init": "walk", "init_kind": "run", "training": TRAINED},
    }
    records = [
        record(run, seed, {"mIoU": value}, **made[run], **({"init_seed": seed} if run == "neco" else {}))
        for run, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]
    records.append(record("dino", 0, {"mIoU": 45.0}, init="dino_file"))
    post = {"method": "neco", "init": "dino_file", "training": TRAINED}
    records += [record("post", seed, {"mIoU": value}, **post) for seed, value in enumerate((46.0, 46.4, 46.2))]
    return [typed(content) for content in records]


def rows(baseline=None):
    """Run and what it is compared with -> its line of gain.csv."""
    table = gain_table(study(), METRICS, baseline)
    assert tuple(table.columns) == COLUMNS
    return {(row["run"], row["against"]): row for _, row in table.iterrows()}


def test_the_difference_is_by_seed_and_its_interval_is_that_of_pairs():
    row = rows()["walk", "start"]
    assert row["by_seed"] == "seed 0: +3.00; seed 1: +3.50; seed 2: +2.90"
    interval = ttest_rel([33.0, 34.5, 31.9], [30.0, 31.0, 29.0]).confidence_interval()
    low, high = float(row["difference"]) - float(row["ci95"]), float(row["difference"]) + float(row["ci95"])
    assert (low, high) == pytest.approx((interval.low, interval.high), abs=0.011)
    assert (row["value"], row["reference_value"], row["difference"], row["seeds"]) == ("33.13", "30.00", "+3.13", "3")
    assert row["beyond_interval"] == "gain"


@pytest.mark.parametrize(
    ("run", "start", "beyond"),
    [
        ("walk", "start", "gain"),
        ("noise", "start", "no"),  # +6, -3, +2
        ("lone", "start", ""),  # +20, of one seed
        ("neco", "walk", "gain"),
        ("post", "dino", "gain"),  # the checkpoint as it is has one seed for all
    ],
)
def test_a_run_is_compared_with_its_own_start_and_never_called_better_on_one_seed(run, start, beyond):
    row = rows()[run, "start"]
    assert (row["reference"], row["beyond_interval"]) == (start, beyond)
    assert (row["ci95"] == "") == (row["seeds"] == "1")


def test_a_named_baseline_is_compared_with_seed_by_seed_and_loses_nothing_by_a_missing_seed():
    found = rows("walk")
    assert found["neco", "start; baseline"]["by_seed"] == "seed 0: +1.00; seed 1: +0.90; seed 2: +1.20"
    assert found["dino", "baseline"]["by_seed"] == "seed 0: +12.00"
    assert found["lone", "baseline"]["seeds"] == "1"
    assert ("walk", "baseline") not in found
    assert not [key for key in rows() if key[1] == "baseline"]


def test_a_start_that_is_the_baseline_has_one_line():
    found = rows("start")
    assert found["walk", "start; baseline"]["difference"] == "+3.13"
    assert not [key for key in found if key[0] in ("walk", "noise", "lone") and key[1] != "start; baseline"]
    assert {key[1] for key in found if key[0] == "neco"} == {"start", "baseline"}, "its start is walk"
    assert len(gain_table(study(), METRICS, "start")) == len(gain_table(study(), METRICS, None)) + 3, "neco, dino and post"


def test_a_run_that_is_built_on_one_seed_is_compared_with_that_seed():
    start = [typed(record("walk", seed, {"mIoU": value}, **TRAINING)) for seed, value in ((0, 1.0), (1, 9.0))]
    built = [typed(record("neco", s, {"mIoU": 11.0}, method="neco", init="walk", init_kind="run", init_seed=1)) for s in (0, 1)]
    assert paired(built, start, "mIoU").differences == (2.0, 2.0)


def test_a_worse_run_is_a_loss_and_less_is_a_gain_where_less_is_better():
    start = [typed(record("start", s, {"mIoU": 30.0, "loss": 5.0}, **START)) for s in (0, 1)]
    run = [typed(record("run", s, {"mIoU": 19.0 + 4 * s, "loss": 4.0 - 0.01 * s}, **TRAINING)) for s in (0, 1)]
    found = {gain.metric: gain.beyond for gain in gains([*start, *run], METRICS, None) if gain.kind == "run"}
    assert found == {"mIoU": "no", "loss": "gain"}  # -9 +- 25, t(0.975, 1) = 12.7
    run = [typed(record("run", s, {"mIoU": 20.0 + 0.1 * s, "loss": 6.0}, **TRAINING)) for s in (0, 1)]
    found = {gain.metric: gain.beyond for gain in gains([*start, *run], METRICS, None) if gain.kind == "run"}
    assert found == {
        "mIoU": "loss",
        "loss": "loss",
    }


def test_an_undefined_number_gives_no_difference():
    start = [typed(record("start", s, {"mIoU": 30.0}, **START)) for s in (0, 1)]
    run = [typed(record("run", s, {"mIoU": None if s else 31.0}, **TRAINING)) for s in (0, 1)]
    row = gain_table([*start, *run], METRICS, None).iloc[-1]
    assert (row["difference"], row["ci95"], row["beyond_interval"]) == ("", "", "")
    assert row["by_seed"] == "seed 0: +1.00; seed 1: no value"


def test_floors_are_rows_without_a_difference_and_an_interval():
    davis = {"task": "davis", "evaluation": "davis"}
    values = {"J": 30.0, "J_copied": 17.5}
    records = [record("start", s, {**values, "J": 20.0 + s}, **START, **davis) for s in (0, 1)]
    records += [record("walk", s, values, **TRAINING, **davis) for s in (0, 1)]
    table = gain_table([typed(r) for r in records], metrics_of_tables(), None)
    floors = table[table["kind"] == "floor"]
    assert floors[["run", "metric", "value"]].to_numpy().tolist() == [["start", "J", "20.50"], ["copying", "J", "17.50"]]
    assert (floors[["difference", "ci95", "against", "seeds"]] == "").all(axis=None)
    assert "J_copied" not in set(table["metric"]), "a floor has no gain"


def test_a_network_of_one_s_own_is_a_run_and_no_floor(tmp_path):
    own = record("mynet_build", 0, {"mIoU": 40.0}, **START, arch="python/mypackage.mynet:build")
    records = [typed(own), *study()]
    table = gain_table(records, METRICS, "mynet_build").set_index(["run", "against"])
    assert list(table[table["kind"] == "floor"].index.get_level_values("run")) == ["start"]
    assert table.loc[("walk", "baseline"), "by_seed"] == "seed 0: -7.00; seed 1: -5.50; seed 2: -8.10", "one seed of it for all"
    paths = [tmp_path / f"{one.run}{one.seed}.json" for one in records]
    for path, one in zip(paths, records, strict=True):
        path.write_text(one.model_dump_json())
    shown = paper_table(paths, ["run", "mIoU"], None, "incontext", METRICS)
    assert "mynet_build" in {row[0].text for row in shown.rows}
    assert [row[0].text for row in shown.floors] == ["start (floor)"]


def test_every_floor_of_an_evaluation_is_known_by_its_name_and_is_nobody_s_merit():
    for settings in evaluations().values():
        for name, metric in settings.METRICS.items():
            assert (metric.better is None) == (floor_of(name) is not None), name
            if floor_of(name):
                assert floor_of(name)[0] in settings.METRICS


def test_a_baseline_without_results_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(record("walk", 0, {"mIoU": 1.0})))
    with pytest.raises(UserError, match=r"baseline: no result of a run 'walc'.*allowed: walk"):
        write_gain([path], tmp_path / "gain.csv", METRICS, "walc")
    write_gain([], tmp_path / "gain.csv", METRICS, "walc")
    assert read_table(tmp_path / "gain.csv").empty


def test_the_command_writes_it(tmp_path, monkeypatch):
    for one in study():
        path = tmp_path / "results" / one.run.replace("start", "random_start") / f"s{one.seed}" / "incontext_voc.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({**one.model_dump(mode="json"), "run": one.run.replace("start", "random_start")}))
    monkeypatch.chdir(tmp_path)
    assert main(["tables", "--table", "gain", "--out", "gain.csv", "--baseline", "random_start", "results"]) == 0
    table = read_table(tmp_path / "gain.csv").set_index(["run", "against"])
    assert table.loc[("neco", "baseline"), "by_seed"] == "seed 0: +4.00; seed 1: +4.40; seed 2: +4.10"
    assert "| neco | run | incontext_voc | mIoU | 34.17 | baseline | random_start | +4.17 ± 0.52 |" in (tmp_path / "gain.md").read_text()
    assert (tmp_path / "gain.tex").is_file()


def test_the_best_must_be_better_than_every_other_by_more_than_the_interval():
    groups = {}
    for one in study():
        groups.setdefault(one.run, []).append(one)
    several = {run: groups[run] for run in ("start", "walk", "neco")}
    assert best_runs(several, "mIoU", "higher") == {"neco"}
    assert best_runs(several, "mIoU", "lower") == set(), "random weights are a floor"
    assert best_runs(several, "mIoU", None) == set()
    assert best_runs({**several, "noise": groups["noise"]}, "mIoU", "higher") == set()
    assert best_runs({"lone": groups["lone"], "start": groups["start"]}, "mIoU", "higher") == set()
    assert best_runs({"walk": groups["walk"]}, "mIoU", "higher") == set()
    assert best_runs({"post": groups["post"], "dino": groups["dino"]}, "mIoU", "higher") == {"post"}


# -- on the page -------------------------------------------------------------------------------------------------------


def page_study(folder):
    """The study as files, and its plan with a baseline."""
    records = study()
    runs = {}
    for one in records:
        path = folder / one.run / f"s{one.seed}" / "incontext_voc.json"
        path.parent.mkdir(parents=True)
        path.write_text(one.model_dump_json())
        runs.setdefault(one.run, {"method": one.method, "init": one.init, "arch": one.arch, "data": [], "seeds": []})["seeds"].append(
            one.seed
        )
    evaluation = {"table": "incontext", "title": "In-context", "protocol": "incontext", "pictures": "", "runs": list(runs)}
    content = {
        "study": "Gains",
        "runs": runs,
        "evaluations": {"incontext_voc": {**evaluation, "metrics": {"mIoU": {"unit": "%", "text": "", "better": "higher"}}}},
        "baseline": "walk",
        "hashes": {f"{r.run}/s{r.seed}/incontext_voc": r.config_hash for r in records},
    }
    return Plan.model_validate(content), records


def test_the_page_begins_with_the_gains(tmp_path):
    plan, records = page_study(tmp_path)
    starts, baseline = gain_sections(plan, records)
    cells = {row.run: row.cells[0] for row in starts.rows}
    assert cells["walk"] == GainCell(
        "+3.13", "0.80", best=True, note="from 30.00 (start)", seeds="seed 0: +3.00; seed 1: +3.50; seed 2: +2.90"
    )
    assert (cells["lone"].best, cells["lone"].interval, cells["lone"].note) == (False, "", "from 30.00 (start), one seed")
    assert [(row.run, row.cells[0].text) for row in starts.rows if row.is_floor] == [("start", "30.00")]
    assert {row.run: row.cells[0].note for row in baseline.rows}["dino"] == "from 33.00, one seed"
    report(plan, tmp_path, tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    main = text[text.index('<main id="main">') :]
    assert main.index('id="gains"') < main.index('id="study"')
    assert "<b>+3.13</b> ± 0.80" in main
    assert "<b>+20.00</b>" not in main
    assert ">+20.00" in main


def test_a_baseline_that_is_every_start_is_shown_once(tmp_path):
    plan, records = page_study(tmp_path)
    chosen = [r for r in records if r.run in ("start", "walk", "lone")]
    own = plan.model_copy(update={"baseline": "start", "runs": {run: plan.runs[run] for run in ("start", "walk", "lone")}})
    assert [table.heading for table in gain_sections(own, chosen)] == ["Gain over the start"]
    assert len(gain_sections(plan.model_copy(update={"baseline": "start"}), records)) == 2, "neco starts from another run"


def test_a_page_without_a_start_has_no_gains(tmp_path):
    plan, records = page_study(tmp_path)
    assert gain_sections(plan.model_copy(update={"baseline": None}), [r for r in records if r.method != "none" and r.run != "neco"]) == []


def test_a_missing_start_is_said_in_the_cell(tmp_path):
    plan, records = page_study(tmp_path)
    (table, _) = gain_sections(plan, [r for r in records if r.run != "dino" and not (r.run == "start" and r.seed)])
    notes = {row.run: row.cells[0].note for row in table.rows}
    assert notes["post"] == "no result of its start"
    assert notes["walk"] == "from 30.00 (start), 1 of 3 seeds"


@pytest.mark.parametrize(
    ("losses", "rises"),
    [
        (np.linspace(5, 6, 40), True),
        (np.linspace(6, 5, 40), False),
        (np.full(40, 5.0), False),
        (5 + np.random.default_rng(0).normal(size=40), False),
        ([5.0, 6.0], False),
        ([], False),
        ([math.nan] * 40, False),
    ],
)
def test_a_loss_that_rises_beyond_its_noise_is_noticed(losses, rises):
    assert (rise(list(losses)) is not None) == rises
