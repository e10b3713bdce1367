"""Several studies in one folder, each in a file of its own."""

import os

import pytest
import yaml

from densewalk.__main__ import main
from densewalk.study.config import load_study
from tests.fixtures.studies import planned, snakemake, write_study

pytestmark = pytest.mark.workflow

BASELINE = {"method": "none", "init": "random", "arch": "vit_nano_patch16"}
MINE = {"study": "Mine", "runs": {"mine": BASELINE}, "execution": {"device": "cpu"}}
OTHER = {"study": "Other", "results": "studies/other", "runs": {"other": BASELINE}, "execution": {"device": "cpu"}}
PAGE = ("report.html", *(f"tables/{table}.csv" for table in ("gain", "all", "cost")))
BACKBONE = "studies/other/other/s0/backbone.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A folder with a config.yaml and another study."""
    write_study(tmp_path, MINE)
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "other.yaml").write_text(yaml.safe_dump(OTHER))
    return tmp_path


def test_a_study_given_by_name_is_read_alone_and_keeps_its_results_apart(folder):
    other = ("--configfile", str(folder / "studies" / "other.yaml"))
    assert planned(folder, "all") == {"results/mine/s0/backbone.safetensors", *(f"results/{name}" for name in PAGE)}
    assert planned(folder, "all", *other) == {BACKBONE, *(f"studies/other/{name}" for name in PAGE)}
    assert planned(folder, BACKBONE, *other) == {BACKBONE}
    assert snakemake(folder, "-n", BACKBONE.replace("other/other", "other/mine"), *other, check=False).returncode != 0, (
        "not mixed with config.yaml"
    )


def test_a_key_on_the_command_line_still_changes_config_yaml(folder):
    assert "elsewhere/tables/all.csv" in planned(folder, "all", "--config", "results=elsewhere")


@pytest.mark.slow
def test_a_study_of_a_file_of_its_own_runs_whole(folder, monkeypatch, capsys):
    other = ("--configfile", str(folder / "studies" / "other.yaml"))
    snakemake(folder, "all", BACKBONE, *other)
    results = folder / "studies" / "other"
    assert {path.name for path in results.iterdir()} >= {"tables", "report.html", "other", "logs", "specs"}
    assert (results / "tables" / "all.csv").is_file()
    assert not (folder / "results").exists()
    spec = load_study(folder / "studies" / "other.yaml").run_spec("other", 0)
    assert spec.path(results).is_file()
    assert planned(folder, "all", BACKBONE, *other) == set(), "nothing is to be done again"
    named = {**OTHER, "baseline": "other"}
    (folder / "studies" / "other.yaml").write_text(yaml.safe_dump(named))
    again = {"studies/other/report.html", "studies/other/tables/gain.csv"}
    assert planned(folder, "all", BACKBONE, *other) == again, "another baseline changes no other table"
    monkeypatch.chdir(folder)
    os.remove(results / "report.html")
    assert not main(["status", "studies/other.yaml"])
    assert "done" in capsys.readouterr().out
    assert not main(["report", "studies/other.yaml"])
    assert (results / "report.html").is_file(), "`status` and `report` look where the study's results are"


@pytest.mark.parametrize("results", ["../elsewhere", "/absolute", ".hidden", "", "a//b"])
def test_results_stay_in_the_study_s_folder(tmp_path, results, caplog):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**MINE, "results": results}))
    assert main(["check", str(path)]) == 2
    assert "results" in caplog.text
