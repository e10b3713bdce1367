"""`densewalk bench`: data sets are found by what lies in them, a study is written and run, another call adds to it."""

import json
import re

import pytest

from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.data.download.catalog import datasets
from densewalk.data.download.find import find_datasets
from densewalk.jobs.bench.networks import network_of
from densewalk.jobs.bench.study import extended, offered, wanted_evaluations
from densewalk.models.export import export_backbone
from densewalk.models.loading import create
from densewalk.study.config import parse_study
from densewalk.study.registry import evaluations, parse_evaluation
from tests.evaluations.test_bad_input import write_davis, write_imagenet
from tests.fixtures.dense import write_voc

NANO, MICRO = "random/vit_nano_patch16", "random/vit_micro_patch16"


@pytest.fixture
def data(tmp_path):
    write_davis(tmp_path / "sets" / "video" / "DAVIS")
    write_imagenet(tmp_path / "sets" / "imagenet")
    write_voc(tmp_path / "sets" / "VOCdevkit")
    (tmp_path / "sets" / "other" / "JPEGImages").mkdir(parents=True)
    return tmp_path / "sets"


def found_in(folder):
    return {found.name: found for found in find_datasets(folder)}


def test_sets_are_found_by_what_lies_in_them_and_parts_are_told_from_the_whole(data, monkeypatch):
    found = found_in(data)
    assert {name: one.root for name, one in found.items()} == {
        "davis": data / "video" / "DAVIS",
        "imagenet": data / "imagenet",
        "voc": data / "VOCdevkit" / "VOC2012",
    }
    assert found["davis"].lacks == ("2 of 30 in ImageSets/2017/val.txt",)
    assert set(found["imagenet"].lacks) == {"2 of 1000 in train/n[0-9]*", "4 of 50000 in val/n[0-9]*/*"}
    monkeypatch.setitem(datasets()["davis"].signs, "ImageSets/2017/val.txt", 2)
    assert found_in(data)["davis"].lacks == ()


def test_a_data_set_of_one_folder_less_is_not_taken_for_it(data):
    (data / "video" / "DAVIS" / "Annotations").rename(data / "video" / "DAVIS" / "Masks")
    assert "davis" not in found_in(data)


def test_published_names_are_of_whole_sets_only(data, monkeypatch):
    part = wanted_evaluations(find_datasets(data), ["davis"])["davis"]["settings"]
    assert part["dataset"] == "DAVIS-2017 (2 of 30 in ImageSets/2017/val.txt)"
    assert parse_evaluation("davis", part).published_protocol is None
    monkeypatch.setitem(datasets()["davis"].signs, "ImageSets/2017/val.txt", 2)
    whole = wanted_evaluations(find_datasets(data), ["davis"])["davis"]["settings"]
    assert parse_evaluation("davis", whole).published_protocol == "label propagation (DINO)"


def test_masks_that_are_not_there_make_it_a_part(data):
    settings = wanted_evaluations(find_datasets(data), ["incontext"])["incontext_voc"]["settings"]
    assert "masks" not in settings
    assert parse_evaluation("incontext", settings).published_protocol is None


def test_every_offered_evaluation_is_valid_on_a_known_set():
    for entry in offered().values():
        assert datasets()[entry.data].signs
        parse_evaluation(entry.protocol, {"root": "data", **entry.settings})
    assert {entry.protocol for entry in offered().values()} >= evaluations().keys() - {
        "segmentation_upernet",
        *("depth", "retrieval", "mose"),  # no set of depth maps, landmarks or MOSE's videos is known by name
        *("position", "clip_propagation"),  # ours, or of one paper: for a study
        "motion_segmentation",  # of what a run of method cis has learned, not of any network
    }


def test_networks_without_an_ability_are_left_out_by_name(data):
    networks = [network_of(NANO, None, None), network_of("timm/resnet50", None, None)]
    wanted = {"d": {"protocol": "discovery", "settings": {"root": "x", "dataset": "x", "layout": "voc"}}}
    study, rows, left_out = extended({}, networks, {**wanted, **wanted_evaluations(find_datasets(data), ["davis"])})
    assert study["evaluations"]["d"]["runs"] == rows[:1]
    assert "runs" not in study["evaluations"]["davis"]
    assert not left_out
    only, _, left_out = extended({}, networks[1:], wanted)
    assert not only["evaluations"]
    assert set(left_out) == {"d"}


def test_another_call_adds_and_keeps_what_is_there(data):
    first, _, _ = extended({}, [network_of(NANO, None, None)], wanted_evaluations(find_datasets(data), ["davis"]))
    first["evaluations"]["davis"]["settings"]["short_side"] = 240  # a person's change
    first["execution"] = {"workers": 2}
    both, rows, _ = extended(first, [network_of(MICRO, None, None)], wanted_evaluations(find_datasets(data), ["davis", "knn"]))
    assert list(both["runs"]) == ["random_vit_nano_patch16", *rows]
    assert list(both["evaluations"]) == ["davis", "knn"]
    assert both["evaluations"]["davis"] == first["evaluations"]["davis"]
    assert both["execution"] == {"workers": 2}
    again, _, _ = extended(both, [network_of(NANO, None, None)], wanted_evaluations(find_datasets(data), ["knn"]))
    assert again == both


def test_files_say_their_architecture_or_it_is_asked_for(tmp_path):
    (tmp_path / "dora" / "s0").mkdir(parents=True)
    file = tmp_path / "dora" / "s0" / "backbone.safetensors"
    export_backbone(create("vit_nano_patch16", seed=0), file, run="r", config_hash="h")
    network = network_of(str(file), None, None)
    assert network.run == "dora_s0_backbone"
    assert network.checkpoint == {"file": str(file), "arch": "vit_nano_patch16"}
    plain = tmp_path / "mine.pth"
    plain.write_bytes(b"weights")
    with pytest.raises(UserError, match=r"does not say its architecture.*--arch"):
        network_of(str(plain), None, None)
    assert network_of(str(plain), "timm/resnet50", "teacher").checkpoint == {"file": str(plain), "arch": "timm/resnet50", "key": "teacher"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert network_of(str(tmp_path), None, None).checkpoint["arch"] == "huggingface/clip"


def test_public_names_are_the_study_s_own_way(data):
    study, rows, _ = extended({}, [network_of("dinov2_vits14", None, None)], wanted_evaluations(find_datasets(data), ["knn"]))
    assert study["runs"] == {rows[0]: {"method": "none", "init": "dinov2_vits14"}}
    assert parse_study(study).checkpoints["dinov2_vits14"].labels.method == "DINOv2"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dinov2_vits15", "--data", "sets"], "dinov2_vits15 is neither a public checkpoint nor a file.*did you mean"),
        ([NANO, "--data", "sets/other"], "no known data set lies in sets/other.*davis: a folder with ImageSets/2017/val.txt"),
        ([NANO, "--data", "nowhere"], "nowhere is no folder"),
        ([NANO, "--data", "sets", "--protocols", "davies"], "no protocol 'davies'.*davis"),
        ([NANO, "--data", "sets", "--protocols", "davis,tracking"], "no data for tracking.*got10k: a folder with val/list.txt"),
        (["net.py:nobuild", "--data", "sets", "--dry-run"], "net.py has no function nobuild, did you mean build.*allowed: build"),
        (["absent.pth", "--data", "sets"], "absent.pth does not exist"),
        (["dinov2_vits14", "--data", "sets"], "dinov2_vits14.pth.*does not exist.*densewalk fetch --config bench/config.yaml"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(data, monkeypatch, caplog, words, said):
    monkeypatch.chdir(data.parent)
    (data.parent / "net.py").write_text("def build(): ...\n")
    assert main(["bench", *words]) == 2
    assert re.search(said, caplog.text, re.DOTALL)
    assert not (data.parent / "bench" / "results").exists()


def test_a_dry_run_says_what_would_run(data, monkeypatch, capsys):
    monkeypatch.chdir(data.parent)
    assert (
        main(["bench", NANO, MICRO, "--data", "sets", "--protocols", "knn,davis", "--out", "mine", "--dry-run", "--", "--cores", "1"]) == 0
    )
    assert not (data.parent / "mine").exists()
    would_run = capsys.readouterr().out.partition("would run:\n")[2]
    assert "random_vit_nano_patch16: backbone, davis, knn\n  random_vit_micro_patch16: backbone, davis, knn" in would_run
    assert "data sets that are not there: coco" in would_run
    assert main(["bench", "dino_vits16", "--data", "sets", "--protocols", "davis", "--dry-run"]) == 0
    assert "missing: checkpoints/dino_vits16.pth of dino_vits16 does not exist; densewalk fetch dino_vits16\n" in capsys.readouterr().out
