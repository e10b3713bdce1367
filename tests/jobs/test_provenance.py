"""Records say what made the weights, whenever and by whichever code they were exported."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from densewalk.core import provenance
from densewalk.core.errors import Interrupted
from densewalk.core.provenance import Provenance
from densewalk.data.settings import ImagesSettings
from densewalk.jobs import train as train_job
from densewalk.jobs.prepare import prepare_images
from densewalk.models.timm_models import named_architecture
from densewalk.results.records import read_run
from densewalk.study.config import parse_study
from densewalk.study.stale import find_stale, states_of
from densewalk.training import loop
from densewalk.training.execution import Execution
from densewalk.training.state import forget
from tests.fixtures.official import official_weights

SIZES = {"global_size": 32, "local_size": 16, "local_crops": 1, "out_dim": 16, "head_hidden": 16}
SETTINGS = {"steps": 3, "batch_size": 2, "warmup_epochs": 0, **SIZES}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A study's folder with images and a checkpoint."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for i in range(4):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(tmp_path / f"images/{i}.jpg")
    save_weights(tmp_path / "w.pth", 0)
    prepare_images(ImagesSettings(source="images"), tmp_path / "images.json")
    as_commit(monkeypatch, "a" * 40)
    return tmp_path


def save_weights(path, seed):
    torch.manual_seed(seed)
    weights = {name: torch.randn_like(w) * 0.02 for name, w in official_weights(named_architecture("vit_nano_patch16")).items()}
    torch.save(weights, path)


def as_commit(monkeypatch, commit):
    code = {"commit": commit, "dirty": False, "versions": {"torch": "2"}, "host": "h"}
    monkeypatch.setattr(provenance, "record", lambda: code)
    monkeypatch.setattr(provenance, "current", lambda: Provenance(**code))


def study():
    runs = {"base": {"method": "none", "init": "w"}, "dino": {"method": "dino", "init": "w", "data": ["photos"], "settings": SETTINGS}}
    checkpoints = {"w": {"file": "w.pth", "arch": "vit_nano_patch16", "url": "https://me:hunter2@example.org/w.pth?token=hunter2"}}
    content = {"study": "s", "checkpoints": checkpoints, "images": {"photos": {"source": "images"}}, "runs": runs, "evaluations": {}}
    return parse_study(content)


def make(here, run="dino", **execution):
    out = here / "results" / run / "s0"
    spec = study().run_spec(run, 0)
    receipts = [here / "images.json"] if run == "dino" else []
    options = Execution(device="cpu", workers=0, checkpoint_minutes=0.0, **execution)
    train_job.make_backbone(spec, here / "w.pth", receipts, spec.state(here / "results"), out, options)
    return read_run(out / "run.json"), (out / "card.md").read_text(), (out / "backbone.safetensors").read_bytes()


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_forced_again_with_another_precision_or_code_old_weights_keep_what_made_them(here, monkeypatch):
    first, card, weights = make(here)
    assert [(made.until, made.commit[0], made.execution["precision"]) for made in first.training.made] == [(3, "a", "float32")]
    assert (first.commit[0], first.exported) == ("a", None)
    as_commit(monkeypatch, "b" * 40)
    again, card, same = make(here, precision="bfloat16")
    assert same == weights
    assert again.training.made == first.training.made
    assert again.training.execution["precision"] == "float32"
    assert (again.commit[0], again.exported.commit[0]) == ("a", "b")
    assert "steps 1 to 3: commit aaaaaaaaaaaa, torch 2, float32, 1 x cpu" in card
    assert "written by commit bbbbbbbbbbbb" in card


def test_a_training_that_two_codes_made_names_both(here, monkeypatch):
    save = loop.save

    def stops(method, optimizer, state, step):
        save(method, optimizer, state, step)
        raise Interrupted("step 1 of 2", "here")

    monkeypatch.setattr(loop, "save", stops)
    with pytest.raises(Interrupted):
        make(here)
    monkeypatch.setattr(loop, "save", save)
    as_commit(monkeypatch, "b" * 40)
    record, card, _ = make(here, precision="bfloat16")
    made = [(attempt.until, attempt.commit[0], attempt.execution["precision"]) for attempt in record.training.made]
    assert made == [(1, "a", "float32"), (3, "b", "bfloat16")]
    assert record.commit[0] == "b"
    assert "steps 1 to 1: commit aaaaaaaaaaaa" in card
    assert "steps 2 to 3: commit bbbbbbbbbbbb, torch 2, bfloat16" in card


@pytest.mark.parametrize("run", ["base", "dino"])
def test_a_record_holds_the_sha256_of_every_file_that_was_read_and_no_secret(here, run):
    record, card, _ = make(here, run)
    read = {here / "w.pth", *([here / "images.json"] if run == "dino" else [])}
    assert {path: file.sha256 for path, file in record.files.items()} == {str(path): sha256(path) for path in read}
    assert sha256(here / "w.pth") in card
    assert record.data.keys() == ({"images"} if run == "dino" else set())
    everything = "".join(path.read_text(errors="replace") for path in here.rglob("*") if path.is_file() and "results" in path.parts)
    assert "hunter2" not in everything


def test_another_checkpoint_or_other_images_train_again(here):
    first, _, weights = make(here)
    save_weights(here / "w.pth", 1)
    second, _, other = make(here)
    assert other != weights
    assert second.files != first.files
    Image.new("RGB", (40, 40)).save(here / "images/0.jpg")
    third, _, black = make(here)
    assert black != other
    assert third.data != second.data


def test_stale_lists_what_other_code_or_files_made_and_lets_it_start_again(here, monkeypatch):
    results = here / "results"
    for run in ("base", "dino"):
        make(here, run)
    assert list(find_stale(study(), results)) == []
    as_commit(monkeypatch, "b" * 40)
    found = list(find_stale(study(), results))
    assert [(one.run, one.evaluation, one.path) for one in found] == [
        (run, None, results / run / "s0/backbone.safetensors") for run in ("base", "dino")
    ]
    assert found[0].reasons == ("made by commit aaaaaaaaaaaa, not bbbbbbbbbbbb",)
    for folder in states_of(study(), found, results):
        forget(folder)
    record, *_ = make(here)
    assert [made.commit[0] for made in record.training.made] == ["b"], "it started from the beginning"
    make(here, "base")
    assert list(find_stale(study(), results)) == []
    save_weights(here / "w.pth", 1)
    assert {one.reasons for one in find_stale(study(), results)} == {("w.pth has another content",)}
    (here / "w.pth").unlink()
    assert list(find_stale(study(), results)) == [], "a checkpoint that was removed to free the disk is no other one"


def test_a_record_of_an_earlier_version_is_read(here):
    make(here)
    path = here / "results/dino/s0/run.json"
    content = json.loads(path.read_text())
    for key in ("files", "data", "exported"):
        del content[key]
    del content["training"]["made"]
    path.write_text(json.dumps(content))
    record = read_run(path)
    assert (record.files, record.data, record.exported, record.training.made) == ({}, {}, None, ())
    assert list(find_stale(study(), here / "results")) == []
