"""Every setting written out is the same study."""

import copy

import pytest
import yaml

from densewalk.__main__ import main
from densewalk.core.config_file import read_config
from densewalk.study.config import load_study, parse_study
from densewalk.study.text.resolved import resolved_yaml
from tests.fixtures.studies import REPOSITORY, TINY

STUDIES = ("demo/config.yaml", "config.yaml", "studies/dora.yaml", "studies/neco.yaml", "studies/timetuning.yaml")


def lines_of(config) -> list[str]:
    return resolved_yaml(parse_study(config), config, "config.yaml").splitlines()


@pytest.mark.parametrize("file", STUDIES)
def test_it_reads_back_as_the_same_study(file):
    study, written = load_study(REPOSITORY / file), read_config(REPOSITORY / file)
    text = resolved_yaml(study, written, file)
    again = parse_study(yaml.safe_load(text))
    assert again == study
    assert [spec.hash for spec in again.specifications()] == [spec.hash for spec in study.specifications()]
    assert resolved_yaml(again, yaml.safe_load(text), file).count("# default") == 0, "nothing is left open"


def test_each_value_says_where_it_comes_from():
    config = copy.deepcopy(TINY)
    config["runs"]["small"] = {**TINY["runs"]["dora"], "settings": {"preset": "small_video", "frames": 3, "compat": "released"}}
    config["runs"]["neco_dora"]["sweep"] = {"steep": {"student_steepness": 7}}
    text = lines_of(config)
    small = text[text.index("  small:") : text.index("execution:")]
    for line in ("      frames: 3", "      steps: 360  # preset small_video", "      objects: 3  # default", "      compat: released"):
        assert line in small
    assert "      hard_masks: null  # follows compat released: true" in small
    assert "      crf: 20  # default".removeprefix("  ") in text
    variant = text[text.index("  neco_dora_steep:") :]
    assert "      student_steepness: 7.0" in variant
    every = {line.split(":")[0].strip() for line in text}
    assert {"min_blank_seconds", "fraction_seeds", "checkpoint_minutes", "sequence_list"} <= every


def test_a_public_checkpoint_is_written_out():
    config = {**copy.deepcopy(TINY)}
    config["runs"]["dinov2"] = {"method": "none", "init": "dinov2_vits14"}
    text = lines_of(config)
    assert "  dinov2_vits14:  # added: its public name stands in the study" in text
    assert "    arch: vit_small_patch14" in text


def test_the_command_prints_it(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(TINY))
    assert main(["check", str(path), "--resolved"]) == 0
    assert parse_study(yaml.safe_load(capsys.readouterr().out)) == load_study(path)
