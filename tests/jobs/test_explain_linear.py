"""`densewalk explain` between the two protocols of linear segmentation: the toolbox's head and the probe on reduced masks."""

import csv
from collections import Counter

import pytest

from densewalk.__main__ import main
from densewalk.core.errors import UserError
from densewalk.core.hashing import file_sha256
from densewalk.evaluations.common import dense_features
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.linear_ladder import run as linear_ladder
from densewalk.evaluations.linear_ladder import streams
from densewalk.evaluations.linear_ladder.parts import values
from densewalk.evaluations.segmentation import evaluate as toolbox
from densewalk.jobs import evaluate as evaluation
from densewalk.jobs.explain import Question, explain, plan
from densewalk.jobs.train import make_backbone
from densewalk.models.backbone import Backbone
from densewalk.results.ladder import read_ladders
from densewalk.results.page.ladders import ladder_parts
from densewalk.results.records import read_result
from densewalk.study.config import load_study
from densewalk.study.ladder.protocols import ladder_between
from densewalk.study.registry import evaluation_module
from densewalk.training.execution import Execution
from tests.fixtures.mmdata import write_ade

STUDY = """
study: ladder
runs:
  start: {method: none, init: random, arch: vit_nano_patch16}
evaluations:
  toolbox: {protocol: ade20k_linear, settings: &toolbox {root: ade, dataset: toy, classes: 4, batch_size: 2, crop: 40, short_side: 40,
    warmup: 1, iterations: 6, learning_rate: 0.01}}
  probe: {protocol: linear_segmentation, settings: &probe {root: ade, dataset: toy, layout: ade20k, input_size: 48, mask_size: 20,
    epochs: 2, drop_epoch: 1, batch_size: 4, learning_rate: 0.1}}
  layers: {protocol: ade20k_linear, settings: {<<: *toolbox, layers: 2}}
  windows: {protocol: ade20k_linear, settings: {<<: *toolbox, slide: true}}
  elsewhere: {protocol: ade20k_linear, settings: {<<: *toolbox, root: other}}
  position: {protocol: linear_segmentation, settings: {<<: *probe, features: position}}
  zeros: {protocol: linear_segmentation, settings: {<<: *probe, count_absent_classes: true}}
  folders: {protocol: linear_segmentation, settings: {root: ade, dataset: toy, layout: masks, images: i, masks: m, num_classes: 5}}
  davis: {protocol: davis, settings: {root: ade, dataset: toy}}
execution: {device: cpu, workers: 0}
"""
EXECUTION = Execution(device="cpu", workers=0)
PARTS = ["crops", "amount", "outputs", "batch_norm", "start", "loss_size", "loss_mean", "optimizer", "schedule", "scored_images", "scoring"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("linear")
    write_ade(path / "ade", training=5, validation=4)
    (path / "config.yaml").write_text(STUDY)
    return path


@pytest.fixture
def study(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for module, name in ((dense_features, "write_segmentation_strip"), (toolbox, "write_strip")):
        monkeypatch.setattr(module, name, lambda *_: None)  # slower than the scoring
    found = load_study("config.yaml")
    if not (folder / "results/start/s0/backbone.safetensors").exists():
        make_backbone(found.run_spec("start", 0), None, [], folder / "state", folder / "results/start/s0", EXECUTION)
    return found


def record_of(study, folder, name):
    """The record that a job of the study writes."""
    path = folder / f"results/start/s0/{name}.json"
    if not path.exists():
        spec = study.evaluation_spec("start", 0, name)
        evaluation.evaluate(spec, path.with_name("backbone.safetensors"), folder / "state" / name, path, EXECUTION)
    return read_result(path)


def test_one_order_from_the_toolbox_s_record_to_the_probe_s_by_shared_features(study, folder, monkeypatch):
    records = [record_of(study, folder, name).metrics["mIoU"] for name in ("toolbox", "probe")]
    forwards: Counter[str] = Counter()
    for name in ("dense", "levels"):
        own = getattr(Backbone, name)

        def counted(self, images, *rest, own=own, **options):
            forwards["images"] += len(images)
            return own(self, images, *rest, **options)

        monkeypatch.setattr(Backbone, name, counted)
    question = Question("toolbox", "probe", "start", pairs=0)
    answer = plan(study, question)
    lines = list(answer.describe())
    assert lines[-1] == "11 steps from toolbox to probe, one order: 5 sets of features, 10 trainings, 12 scorings"
    assert lines[0].startswith("crops: 40 px of images with a short side of 40 px x 0.5 to 2, colors distorted -> 0.8 to 1 of the image")
    assert "not alone: learning rate and weight decay" in lines[7]
    found = explain(study, question, answer, folder / "results", EXECUTION)
    assert [found.first, found.last] == records, "the evaluations' own records, to the last digit"
    # 6 steps of 2 with both kinds of crops, 2 epochs of 5; 4 test images in each of two ways
    assert forwards["images"] == 6 * 2 * 2 + 2 * 5 + 4 * 2
    assert [step.name for step in found.steps] == ["code of toolbox", *PARTS, "code of probe"]
    assert [step.sequential for step in found.steps if step.is_code] == pytest.approx([0, 0], abs=1e-9), "one code path meets both"
    assert sum(step.sequential for step in found.steps) == pytest.approx(found.last - found.first)
    assert all(step.shapley is None for step in found.steps)
    assert sum(abs(step.sequential) > 0.01 for step in found.steps) >= 6
    assert all(step.low <= step.sequential + 5 and step.high >= step.sequential - 5 for step in found.steps)
    assert (found.interval.units, found.interval.method, found.interval.resamples) == (4, "percentile", 999)
    with open(folder / "results/explain/toolbox-probe/start-s0/steps.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert [row[0] for row in rows] == [step.name for step in found.steps]
    assert all(float(row[head.index("low")]) <= float(row[head.index("high")]) for row in rows)
    passed = forwards["images"]
    assert main(["explain", "toolbox", "probe", "--run", "start", "--pairs", "0"]) == 0
    assert read_ladders(folder / "results") == [found]
    assert forwards["images"] == passed, "what is there is read"
    (part,) = ladder_parts(study.plan(), folder / "results")
    assert "code of toolbox: what another implementation makes" in part.note
    assert "crops cannot be turned alone: size, scales, borders and colors are one pipeline." in part.note
    assert " to " in part.rows[2][4]


def test_backwards_the_same_steps_have_the_other_sign_at_the_ends(study):
    here, back = (ladder_between(a, study.evaluations[a].settings, b, study.evaluations[b].settings) for a, b in (PAIR, PAIR[::-1]))
    assert [step.names for step in here.steps] == [step.names for step in back.steps]
    assert here.mixture(0) == back.mixture(back.whole)
    assert here.mixture(here.whole) == back.mixture(0)
    assert here.mixture(0b11).own_parts == {"crops", "amount"}
    assert back.mixture(0b11).own_parts == set(PARTS) - {"crops", "amount"}
    assert here.values(here.steps[3]) == ("yes", "no")
    assert back.values(back.steps[3]) == ("no", "yes")


PAIR = ("toolbox", "probe")


def test_a_part_that_is_the_same_in_both_is_no_step(study):
    toolbox, probe = (study.evaluations[name].settings for name in PAIR)
    assert list(values(toolbox, probe)) == PARTS
    plain = toolbox.model_copy(update={"batch_norm": False})
    full = probe.model_copy(update={"scoring": "full"})
    assert {"batch_norm", "scoring"} & values(plain, full).keys() == set()
    assert list(values(toolbox, study.evaluations["zeros"].settings)) == [*PARTS, "absent_classes"]


def test_absent_classes_count_in_the_last_step(study, folder, tmp_path):
    settings = study.evaluations["zeros"].settings
    ladder = ladder_between("toolbox", study.evaluations["toolbox"].settings, "zeros", settings)
    backbone = folder / "results/start/s0/backbone.safetensors"
    job = Job(out=tmp_path / "out", state=tmp_path / "state")
    before, last = linear_ladder.score([ladder.mixture(ladder.whole >> 1), ladder.mixture(ladder.whole)], backbone, job)
    own = evaluation_module("linear_segmentation").evaluate(settings, backbone, Job(out=tmp_path / "out", state=tmp_path / "own"))
    assert last.metrics["mIoU"] == own.metrics["mIoU"]
    assert last.metrics["mIoU"] < before.metrics["mIoU"] / 2, "146 of 151 labels occur nowhere"


def test_a_stopped_training_goes_on(study, folder, tmp_path, monkeypatch):
    ladder = ladder_between("toolbox", study.evaluations["toolbox"].settings, "probe", study.evaluations["probe"].settings)
    backbone = folder / "results/start/s0/backbone.safetensors"
    mixtures, job = [ladder.mixture(0b11), ladder.mixture(0b10000011)], Job(out=tmp_path / "out", state=tmp_path / "state")
    whole = linear_ladder.score(mixtures, backbone, Job(out=tmp_path / "out", state=tmp_path / "whole"))
    monkeypatch.setattr(linear_ladder, "SAVE_SECONDS", 0.0)
    step, calls = linear_ladder.Probe.step, Counter()

    def failing(self, *arguments):
        calls["steps"] += 1
        if calls["steps"] == 5:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(linear_ladder.Probe, "step", failing)
    with pytest.raises(KeyboardInterrupt):
        linear_ladder.score(mixtures, backbone, job)
    resumed = linear_ladder.score(mixtures, backbone, job)
    assert calls["steps"] == 5 + 4, "two of four steps of two heads were done"
    assert resumed == whole


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("layers", "probe"), "layers 2 of layers has no counterpart in the other protocol; allowed: layers 1; to do: add an evaluation"),
        (("windows", "probe"), "slide True of windows has no counterpart"),
        (("elsewhere", "probe"), "elsewhere and probe are of other data: root 'other' and 'ade'"),
        (("probe", "elsewhere"), "elsewhere and probe are of other data"),
        (("toolbox", "position"), "features 'position' of position has no counterpart"),
        (("toolbox", "folders"), "are of other data: layout 'ade20k' and 'masks'"),
        (("toolbox", "davis"), "different kinds of settings"),
    ],
)
def test_what_has_no_counterpart_is_refused_before_anything_is_scored(study, names, message):
    with pytest.raises(UserError, match=message):
        plan(study, Question(*names, "start"))


def test_too_many_trainings_are_fewer_orders_unless_they_are_asked_for(study):
    assert len(plan(study, Question("toolbox", "probe", "start")).subsets) <= 64
    assert len(plan(study, Question("toolbox", "probe", "start", limit=12)).subsets) == 12
    with pytest.raises(UserError, match="scorings for 11 steps"):
        plan(study, Question("toolbox", "probe", "start", pairs=8))


def test_probes_of_other_images_are_refused(study, folder, tmp_path, monkeypatch):
    ladder = ladder_between("toolbox", study.evaluations["toolbox"].settings, "probe", study.evaluations["probe"].settings)
    lists = streams.list_splits
    monkeypatch.setattr(streams, "list_splits", lambda *given: tuple(split[::-1] for split in lists(*given)))
    with pytest.raises(UserError, match=r"training image 1 is .*0000\.jpg in one protocol and .*0004\.jpg in the other"):
        linear_ladder.score([ladder.mixture(0)], folder / "results/start/s0/backbone.safetensors", Job(out=tmp_path, state=tmp_path))


def test_the_record_of_another_backbone_is_not_taken_for_an_end(study, folder, tmp_path):
    from densewalk.jobs.ladder_scores import Scorer

    record_of(study, folder, "toolbox")
    scorer = Scorer(study, PAIR, "start", 0, folder / "results", tmp_path, EXECUTION)
    assert scorer._recorded("toolbox") is not None
    assert scorer.sha256 == file_sha256(folder / "results/start/s0/backbone.safetensors")
    scorer.sha256 = "0" * 64
    assert scorer._recorded("toolbox") is None
