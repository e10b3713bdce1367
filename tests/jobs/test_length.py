"""A measured budget: the steps are decided once, before the first one, and never mixed with those of another machine."""

import numpy as np
import pytest
import torch
from PIL import Image

from densewalk.core.errors import Interrupted, UserError
from densewalk.data.settings import ImagesSettings
from densewalk.jobs import train as train_job
from densewalk.jobs.prepare import prepare_images
from densewalk.methods.dino.settings import DinoSettings
from densewalk.models.architecture import architecture_named
from densewalk.models.origin import RandomWeights
from densewalk.results.compare import _facts
from densewalk.results.records import read_run
from densewalk.study.specs import RunSpec
from densewalk.training import loop
from densewalk.training.budget import measure
from densewalk.training.execution import Execution
from densewalk.training.progress_files import PLANNED_LENGTH, PlannedLength, read_progress

SIZES = {"global_size": 32, "local_size": 16, "local_crops": 1, "out_dim": 16, "head_hidden": 16, "batch_size": 2, "warmup_epochs": 1}
BUDGET = {"budget": {"cpu_seconds": 6.0}}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with four images, and a machine on which a step takes a second."""
    (tmp_path / "images").mkdir()
    for i in range(4):
        save_image(tmp_path, i, seed=i)
    prepare_images(ImagesSettings(source=str(tmp_path / "images")), tmp_path / "images.json")
    machine(monkeypatch, "fast", 1.0)
    return tmp_path


def save_image(here, number, seed):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(here / f"images/{number}.jpg")


def machine(monkeypatch, name, seconds):
    """What is measured from now on; how often is in the list that is returned."""
    asked = []
    monkeypatch.setattr(measure, "machine_name", lambda device: name)
    monkeypatch.setattr(measure, "step_seconds", lambda *args, **given: asked.append(name) or seconds)
    return asked


def spec_of(seed=0, **settings):
    data = {"photos": ImagesSettings(source="images")}
    settings = {**SIZES, **settings}
    return RunSpec(
        run="dino",
        seed=seed,
        method="dino",
        arch="vit_nano_patch16",
        init=RandomWeights(),
        data=data,
        settings=settings,
        version=DinoSettings.VERSION,
    )


def make(here, seed=0, results="results", device="cpu", **settings):
    spec, out = spec_of(seed, **settings), here / results / "dino" / f"s{seed}"
    state = spec.state(here / results)
    execution = Execution(device=device, workers=0, checkpoint_minutes=0.0)
    train_job.make_backbone(spec, None, [here / "images.json"], state, out, execution)
    return read_run(out / "run.json"), (out / "backbone.safetensors").read_bytes(), state


def stop_after(monkeypatch, step):
    save = loop.save

    def stops(method, optimizer, state, done):
        save(method, optimizer, state, done)
        if done == step:
            raise Interrupted(f"step {done}", "here")

    monkeypatch.setattr(loop, "save", stops)
    return lambda: monkeypatch.setattr(loop, "save", save)


def weights(content):
    """Without the header, which holds the run's hash."""
    size = int.from_bytes(content[:8], "little")
    return content[8 + size :]


def test_it_is_the_training_of_so_many_steps_to_the_last_bit(here, monkeypatch):
    """Also if the steps are really measured: the networks that are thrown away leave nothing."""
    monkeypatch.undo()
    planned = []
    real = measure.step_seconds
    monkeypatch.setattr(measure, "step_seconds", lambda *args, **given: (planned.append(real(*args, **given)), 1.0)[1])
    budgeted, one, state = make(here, **BUDGET)
    plain, other, _ = make(here, results="plain", steps=6)
    assert planned[0] > 0
    assert weights(one) == weights(other)
    assert budgeted.training.steps == plain.training.steps == 6
    assert budgeted.config_hash != plain.config_hash
    work = spec_of(steps=6).settings.step_work(architecture_named("vit_nano_patch16")).flops
    assert budgeted.training.teraflop == plain.training.teraflop == pytest.approx(6 * work / 1e12)
    assert budgeted.training.cpu_seconds > 0
    assert budgeted.training.length == read_progress(state / PLANNED_LENGTH, PlannedLength)
    assert plain.training.length is None


def test_resumed_on_another_machine_it_ends_where_it_was_planned_to_end(here, monkeypatch):
    _, whole, _ = make(here, results="whole", **BUDGET)
    go_on = stop_after(monkeypatch, 2)
    with pytest.raises(Interrupted):
        make(here, **BUDGET)
    go_on()
    asked = machine(monkeypatch, "slow", 2.0)
    record, resumed, _ = make(here, **BUDGET)
    assert resumed == whole
    assert (record.training.steps, record.training.length.machine, asked) == (6, "fast", [])
    assert [attempt.until for attempt in record.training.made] == [6]


def test_checkpoints_of_a_schedule_of_another_length_are_not_gone_on_from(here, monkeypatch):
    """The record of the length is lost, and the machine is another one: what is there is part of no such training."""
    go_on = stop_after(monkeypatch, 2)
    with pytest.raises(Interrupted):
        make(here, **BUDGET)
    go_on()
    (spec_of(**BUDGET).state(here / "results") / PLANNED_LENGTH).write_text("{")
    machine(monkeypatch, "slow", 2.0)
    record, again, _ = make(here, **BUDGET)
    _, plain, _ = make(here, results="plain", steps=3)
    assert record.training.steps == 3
    assert weights(again) == weights(plain)


def test_started_from_the_beginning_on_another_machine_it_says_so(here, monkeypatch):
    before, *_ = make(here, **BUDGET)
    machine(monkeypatch, "slow", 2.0)
    after, *_ = make(here, results="other", **BUDGET)
    assert before.config_hash == after.config_hash, "a budget is what the study says"
    told = list(_facts(before, after))
    assert "training: steps: 6 -> 3" in told
    assert "training: budget measured on: fast -> slow" in told


def test_seeds_take_over_the_length_on_one_kind_of_machine_only(here, monkeypatch):
    make(here, **BUDGET)
    asked = machine(monkeypatch, "fast", 3.0)
    assert make(here, seed=1, **BUDGET)[0].training.steps == 6
    assert asked == []
    asked = machine(monkeypatch, "slow", 2.0)
    assert make(here, seed=2, **BUDGET)[0].training.steps == 3
    assert asked == ["slow"]
    asked = machine(monkeypatch, "fast", 3.0)
    assert make(here, **BUDGET, teacher_momentum=0.9)[0].training.steps == 2
    assert asked == ["fast"], "other settings are measured"


def test_other_data_are_measured_again(here, monkeypatch):
    make(here, **BUDGET)
    save_image(here, 4, seed=9)
    prepare_images(ImagesSettings(source=str(here / "images")), here / "images.json")
    asked = machine(monkeypatch, "fast", 2.0)
    assert make(here, **BUDGET)[0].training.steps == 3
    assert asked == ["fast"]


def test_a_budget_that_ends_in_the_warm_up_is_refused_before_the_first_step(here):
    with pytest.raises(UserError, match=r"dino: 6 CPU seconds are 6 steps, fewer than the 8 of its warm-up; to do: raise the budget"):
        make(here, **BUDGET, warmup_epochs=4)
    assert not list((here / "results").rglob("step-*"))


def test_a_budget_of_gpu_hours_is_refused_without_a_gpu(here, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"dino: a budget of 1 GPU-hours for a training on cpu; allowed: cpu_seconds, teraflop"):
        make(here, device="auto", budget={"gpu_hours": 1.0})


def test_the_length_is_measured_with_as_many_steps_as_its_schedules_have(here, monkeypatch):
    """The throw-away method is long enough for every timed step and the warm-up."""
    seen = []
    monkeypatch.setattr(measure, "step_seconds", lambda method, data, **given: seen.append(method.total_steps) or 1.0)
    make(here, **BUDGET, warmup_epochs=2.5)
    assert seen == [1 + measure.MOST + 5]
