"""Results that are no longer those of their study are named; their values stay."""

import json

import pytest
import yaml

from densewalk.__main__ import main
from densewalk.study.config import parse_study
from tests.fixtures.records import record
from tests.results import test_pairs as pairs
from tests.study.test_status import STUDY

PLAN = parse_study(STUDY).plan()


@pytest.fixture
def folder(tmp_path):
    """Results of a study of the runs start and dino, one of an outdated setting, and two of a run that has another name now."""
    made = [("start", 0, PLAN.hashes["start/s0/davis"]), ("dino", 0, PLAN.hashes["dino/s0/davis"]), ("dino", 1, "0" * 12)]
    for run, seed, config_hash in [*made, ("old", 0, "1" * 12), ("old", 1, "2" * 12)]:
        path = tmp_path / "results" / run / f"s{seed}" / "davis.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(record(run, seed, {"J": 40.0 + seed}, task="davis", evaluation="davis", config_hash=config_hash)))
    return tmp_path


def lines(caplog):
    found = [message.partition("as it is now: ")[2] for message in caplog.messages if message.startswith("not a result of")]
    caplog.clear()
    return found


OLD = "old:davis, seeds 0, 1: not in the study"
OUTDATED = "dino:davis, seed 1: outdated (made by another configuration than the study's is now; Snakemake makes it again by itself)"


@pytest.mark.parametrize("source", ["config.yaml", "plan"])
def test_tables_name_what_is_not_the_study_s(folder, source, capsys, caplog):
    results = folder / "results"
    if source == "plan":
        (results / "specs").mkdir()
        (results / "specs" / f"plan-{PLAN.hash}.json").write_text(PLAN.model_dump_json())
    else:
        (folder / "config.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    assert main(["tables", "--columns", "run,seeds,J", "--format", "csv", str(results)]) == 0
    assert lines(caplog) == [OUTDATED, OLD]
    assert {row.split(",")[0] for row in capsys.readouterr().out.splitlines()[1:]} == {"start", "dino", "old"}
    assert main(["tables", "--columns", "run,J", *(str(results / run / "s0" / "davis.json") for run in ("start", "dino"))]) == 0
    assert lines(caplog) == [], "these are the study's own"
    assert main(["tables", "--table", "davis", "--out", str(folder / "a.csv"), str(results)]) == 0
    assert lines(caplog) == [OUTDATED, OLD]


def test_without_a_study_nothing_is_said(folder, caplog):
    (folder / "config.yaml").write_text(yaml.safe_dump({**STUDY, "results": "elsewhere"}))
    assert main(["tables", "--columns", "run,J", str(folder / "results")]) == 0
    (folder / "config.yaml").write_text("learning_rate: 1\n")
    assert main(["tables", "--columns", "run,J", str(folder / "results")]) == 0
    assert lines(caplog) == []


def test_a_study_that_cannot_be_read_is_said(folder, caplog):
    (folder / "config.yaml").write_text(yaml.safe_dump({**STUDY, "runs": {"dino": {"method": "dinoo"}}}))
    assert main(["tables", "--columns", "run,J", str(folder / "results")]) == 0
    assert "so its results are not compared with it" in caplog.text


def test_compare_names_them_too(tmp_path, caplog):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    for run in ("start", "walk"):
        pairs.write(tmp_path / "results", run, 0, pairs.units_of(run, 0))
    rows = ["start:incontext_voc", "walk:incontext_voc"]
    assert main(["compare", *rows, "--results", str(tmp_path / "results"), "--resamples", "50"]) == 0
    assert lines(caplog) == [f"{row}, seed 0: not in the study" for row in rows]
