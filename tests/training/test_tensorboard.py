"""TensorBoard's files, read as TensorBoard reads them, hold what metrics.jsonl holds."""

import sys

import pytest

from densewalk.core.errors import UserError
from densewalk.data.settings import ImagesSettings
from densewalk.jobs import train as train_job
from densewalk.jobs.doctor import examine
from densewalk.methods.dino.settings import DinoSettings
from densewalk.models.origin import RandomWeights
from densewalk.study.config import parse_study
from densewalk.study.specs import RunSpec
from densewalk.training import learning_curve
from densewalk.training.execution import Execution
from tests.fixtures.helpers import curves, events
from tests.fixtures.toy import fit


def without_time(found):
    return {tag: [(step, value) for step, _, value in points] for tag, points in found.items()}


def test_event_files_hold_the_points_of_the_curve(tmp_path):
    fit(tmp_path, tensorboard=True)
    found = events(tmp_path)
    assert found == curves(tmp_path)
    assert set(found) == {"loss", "lr", "noise"}
    assert [step for step, *_ in found["loss"]] == list(range(8))


def test_off_by_default(tmp_path):
    fit(tmp_path)
    assert not (tmp_path / "tensorboard").exists()


@pytest.mark.parametrize(("minutes", "kept"), [(0.0, 5), (10.0, 0)])
def test_after_a_resume_no_step_is_doubled_or_lost(tmp_path, minutes, kept):
    fit(tmp_path / "whole", tensorboard=True)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", dies_at=5, minutes=minutes, tensorboard=True)
    assert [step for step, *_ in events(tmp_path / "parts")["loss"]] == list(range(5)), "points are there while a training runs"
    resumed = fit(tmp_path / "parts", tensorboard=True)
    assert len(resumed.seen) == 4 * (8 - kept)
    assert events(tmp_path / "parts") == curves(tmp_path / "parts")
    assert without_time(events(tmp_path / "parts")) == without_time(events(tmp_path / "whole"))


def test_one_who_looks_on_forgets_what_a_resume_makes_void(tmp_path):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="tensorboard is not installed")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, dies_at=5, minutes=10.0, tensorboard=True)
    looking = reader.EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={reader.SCALARS: 0})
    looking.Reload()
    fit(tmp_path, tensorboard=True)
    looking.Reload()
    assert [e.step for e in looking.Scalars("loss")] == list(range(8))


def test_asked_for_between_two_attempts_it_has_the_steps_before(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path, dies_at=5, minutes=0.0)
    fit(tmp_path, tensorboard=True)
    assert events(tmp_path) == curves(tmp_path)


def test_without_the_package_a_training_is_refused_before_it_begins(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    data = {"gone": ImagesSettings(source="gone")}
    spec = RunSpec(
        run="dino",
        seed=0,
        method="dino",
        arch="vit_nano_patch16",
        init=RandomWeights(),
        data=data,
        settings={"steps": 1},
        version=DinoSettings.VERSION,
    )
    with pytest.raises(UserError, match=r"the package tensorboard is not installed; to do: .*execution\.tensorboard: false"):
        train_job.make_backbone(
            spec, None, [tmp_path / "gone.json"], tmp_path / "state", tmp_path / "out", Execution(device="cpu", tensorboard=True)
        )
    assert not (tmp_path / "state").exists()
    runs = {"start": {"method": "none", "init": "random", "arch": "vit_nano_patch16"}}
    study = parse_study({"study": "Events", "runs": runs, "evaluations": {}, "execution": {"tensorboard": True}})
    problems = {finding.subject: finding.problem or "" for finding in examine(study)}
    assert "the package tensorboard is not installed" in problems["execution.tensorboard"], "the doctor says so, too"


def test_the_files_of_a_finished_training_lie_beside_its_curve(tmp_path):
    state, out = tmp_path / "state", tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        fit(state, steps=4, dies_at=2, tensorboard=True)
    fit(state, steps=4, tensorboard=True)
    (out / "tensorboard").mkdir(parents=True)
    (out / "tensorboard" / "events.out.tfevents.1.old").touch()
    learning_curve.copy_learning_curve(state, out, tensorboard=True)
    assert events(out) == curves(out) == curves(state)
    assert len(list((out / "tensorboard").iterdir())) == 1
    learning_curve.copy_learning_curve(state, out, tensorboard=False)
    assert not (out / "tensorboard").exists()
