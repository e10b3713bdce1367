import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densewalk.core.errors import TrainingError, UserError
from densewalk.jobs import train as train_job
from densewalk.methods.neco.settings import NecoSettings
from densewalk.models.loading import create
from densewalk.models.origin import RandomWeights
from densewalk.study.specs import RunSpec
from densewalk.training import loop
from densewalk.training.execution import Execution
from densewalk.training.sampler import StepSampler
from densewalk.training.schedules import cosine
from densewalk.training.state import State, StateBusy
from tests.fixtures.studies import REPOSITORY
from tests.fixtures.toy import Noise, Toy, command, fit


def same_weights(one, two) -> bool:
    a, b = one.state_dict(), two.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_training_moves_every_weight_and_the_loss_falls(tmp_path):
    method = fit(tmp_path, steps=30)
    start = Toy(30)
    assert not any(torch.equal(p, q) for p, q in zip(method.student.parameters(), start.student.parameters(), strict=True) if p.ndim > 1)
    curve = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [c["step"] for c in curve] == list(range(30))
    assert sum(c["loss"] for c in curve[-5:]) < 0.7 * sum(c["loss"] for c in curve[:5])


def test_the_optimizer_follows_the_schedules(tmp_path):
    fit(tmp_path, steps=8)
    rates = [json.loads(line)["lr"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rates == pytest.approx(cosine(1e-2, 1e-4, 8, warmup=2).tolist())


@pytest.mark.parametrize("dies_at", [1, 4, 7])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, dies_at):
    whole = fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", dies_at=dies_at, minutes=0.0)
    resumed = fit(tmp_path / "parts")
    assert same_weights(whole, resumed)
    assert len(resumed.seen) == 4 * (8 - dies_at), "passed batches are not read again"
    curves = [(tmp_path / part / "metrics.jsonl").read_text().splitlines() for part in ("whole", "parts")]
    without_time = [[{k: v for k, v in json.loads(line).items() if k != "time"} for line in curve] for curve in curves]
    assert without_time[0] == without_time[1]


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_equals_the_whole(tmp_path, parts):
    whole, accumulated = (fit(tmp_path / str(n), steps=4, parts=n, drop_path=0.0) for n in (1, parts))
    assert sorted(accumulated.seen[:4]) == sorted(whole.seen[:4])
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    start, *ends = (method.student.cls(images) for method in (Toy(4), whole, accumulated))
    assert (ends[0] - ends[1]).norm() < 1e-3 * (ends[0] - start).norm()
    curves = [[json.loads(line) for line in (tmp_path / str(n) / "metrics.jsonl").read_text().splitlines()] for n in (1, parts)]
    for one, other in zip(*curves, strict=True):
        assert (one["loss"], one["noise"]) == pytest.approx((other["loss"], other["noise"]), rel=1e-4)


def test_a_job_refuses_parts_that_would_change_what_is_learned(tmp_path):
    settings = {"steps": 1, "batch_size": 2}
    spec = RunSpec(
        run="neco_dora",
        seed=0,
        method="neco",
        arch="vit_nano_patch16",
        init=RandomWeights(),
        data={},
        settings=settings,
        version=NecoSettings.VERSION,
    )
    execution = Execution(accumulate={"neco_dora": 2})
    with pytest.raises(UserError, match=r"from the patches of the whole batch.*correct execution\.accumulate"):
        train_job.train(spec, create("vit_nano_patch16", seed=0), [], State(tmp_path, {}), execution, torch.device("cpu"))


def test_parts_of_a_nested_batch():
    batch = {"a": torch.arange(4), "b": [torch.arange(8).view(4, 2), torch.empty(4, 0)]}
    first, second = loop.split(batch, 2)
    assert first["a"].tolist() == [0, 1]
    assert second["b"][0].tolist() == [[4, 5], [6, 7]]
    assert second["b"][1].shape == (2, 0)
    assert loop.split(batch, 1)[0] is batch


def test_loading_processes_change_nothing(tmp_path):
    assert same_weights(fit(tmp_path / "none"), fit(tmp_path / "two", workers=2))


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path):
    whole = fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", dies_at=5, minutes=0.0)
    newest = max((tmp_path / "parts").glob("step-*.pt"))
    newest.write_bytes(newest.read_bytes()[:-1000])
    resumed = fit(tmp_path / "parts")
    assert len(resumed.seen) == 4 * (8 - 4)
    assert same_weights(whole, resumed)


def test_state_from_other_inputs_is_not_resumed(tmp_path):
    with State(tmp_path, {"data": "old"}) as state:
        state.save(3, {"step": 3})
        (tmp_path / "work").mkdir()
    with State(tmp_path, {"data": "new"}) as state:
        assert state.newest() is None
        assert not (tmp_path / "work").exists()


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    with State(tmp_path, {}) as state:
        for step in (1, 20, 3, 100):
            state.save(step, {"step": step})
        assert sorted(p.name for p in tmp_path.glob("step-*.pt")) == ["step-00000020.pt", "step-00000100.pt"]
        assert state.newest() == {"step": 100}


def test_a_second_process_is_turned_away(tmp_path):
    code = f"""
from densewalk.training.state import State, StateBusy
try:
    State({str(tmp_path)!r}, {{}}).__enter__()
except StateBusy as error:
    print(error)
"""
    with State(tmp_path, {}):
        answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert f"is being worked in by process {os.getpid()}" in answer
    assert issubclass(StateBusy, UserError)


@pytest.mark.slow
def test_two_processes_equal_one_on_the_same_global_batch(tmp_path):
    finals = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        folder.mkdir()
        subprocess.run(
            command(folder, processes, 6), cwd=REPOSITORY, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        method = Toy(6, drop_path=0.0)
        start = method.student.cls(torch.ones(1, 3, 32, 32))
        method.load_state_dict(torch.load(folder / "final.pt", weights_only=True))
        finals.append(method.student.cls(torch.ones(1, 3, 32, 32)))
    # compared by their output: attention ignores the keys' bias, so that its gradient, and thus AdamW's step, is rounding noise
    torch.testing.assert_close(finals[0], finals[1], atol=2e-4, rtol=0)
    assert (finals[0] - start).abs().max() > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_training_resumes_to_identical_weights(tmp_path, number):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    subprocess.run(command(whole, 1, 60), cwd=REPOSITORY, check=True, capture_output=True)
    process = subprocess.Popen(command(killed, 1, 60), cwd=REPOSITORY, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list((killed / "0").glob("step-*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(60) != 0
    assert not (killed / "final.pt").exists()
    subprocess.run(command(killed, 1, 60), cwd=REPOSITORY, check=True, capture_output=True)
    one, two = (torch.load(folder / "final.pt", weights_only=True) for folder in (whole, killed))
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.slow
def test_fifty_random_kills_change_nothing(tmp_path):
    steps, rng = 320, random.Random(0)
    whole = fit(tmp_path / "whole", steps=steps)
    folder = tmp_path / "killed"
    for _ in range(50):
        before = newest_step(folder)
        child = os.fork()
        if child == 0:
            try:
                fit(folder, steps=steps, minutes=0.0)
            finally:
                os._exit(0)
        deadline = time.monotonic() + 60
        while newest_step(folder) < before + rng.randint(1, 4) and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))  # anywhere in a step or in the writing of a checkpoint
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL, "it was still training"
        assert newest_step(folder) > before, "a checkpoint a step: a life is never lost"
    assert newest_step(folder) < steps
    assert same_weights(whole, fit(folder, steps=steps))
    assert not list(folder.glob(".*.tmp*")), "what the dead left half written is gone"


def newest_step(folder: Path) -> int:
    """The last step with a complete checkpoint."""
    return max((int(seal.stem.removeprefix("step-")) for seal in folder.glob("step-*.json")), default=0)


def test_an_unsealed_checkpoint_is_no_checkpoint(tmp_path):
    with State(tmp_path, {}) as state:
        for step in (1, 2, 3):
            state.save(step, {"step": step})
        (tmp_path / "step-00000003.json").unlink()  # killed before the checksum was written
        assert state.newest() == {"step": 2}
        state.save(4, {"step": 4})
        assert sorted(p.name for p in tmp_path.glob("step-*.pt")) == ["step-00000002.pt", "step-00000004.pt"], "the two intact ones stay"


def test_a_checkpoint_that_cannot_be_written_is_one_clear_error(tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    with State(tmp_path, {}) as state:
        state.save(1, {"step": 1})
        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(UserError, match=r"step-00000002.pt cannot be written with \d+ MiB free.*make room"):
            state.save(2, {"step": 2})
        assert state.newest() == {"step": 1}
        assert not list(tmp_path.glob(".*.tmp*"))


def test_a_signal_saves_and_stops(tmp_path):
    class Signalled(Toy):
        def after_update(self, at):
            super().after_update(at)
            if at == 2:
                os.kill(os.getpid(), signal.SIGUSR1)

    method = Signalled(8)
    with State(tmp_path, {"data": "noise"}) as state, pytest.raises(loop.Interrupted, match="after step 3 of 8"):
        loop.train(method, Noise(), batch_size=4, seed=7, state=state, execution=Execution(workers=0), device=torch.device("cpu"))
    assert [p.name for p in tmp_path.glob("step-*.pt")] == ["step-00000003.pt"]
    assert same_weights(fit(tmp_path), fit(tmp_path / "whole"))


def test_a_loss_that_is_not_finite_stops_and_is_not_saved(tmp_path):
    class Diverging(Toy):
        def step(self, batch, step, generator):
            loss, logs = super().step(batch, step, generator)
            return loss * (float("nan") if step == 3 else 1.0), logs

    execution = Execution(workers=0, checkpoint_minutes=0.0, metrics_every=100)
    with State(tmp_path, {"data": "noise"}) as state, pytest.raises(TrainingError, match="at step 3"):
        loop.train(Diverging(8), Noise(), batch_size=4, seed=7, state=state, execution=execution, device=torch.device("cpu"))
    assert max(tmp_path.glob("step-*.pt")).name == "step-00000003.pt"


@given(length=st.integers(1, 30), batch=st.integers(1, 8), first=st.integers(0, 20), more=st.integers(1, 20))
def test_sampler_epochs_are_permutations_and_resume_continues_them(length, batch, first, more):
    total = first + more
    if batch > length:
        with pytest.raises(UserError, match="larger than the data set"):
            StepSampler(length, batch, 0, first, total)
        return
    steps = list(StepSampler(length, batch, 0, 0, total))
    assert list(StepSampler(length, batch, 0, first, total)) == steps[first:]
    assert len(steps) == total
    per_epoch = length // batch
    for epoch in range(total // per_epoch):
        indices = [item.index for step in steps[epoch * per_epoch : (epoch + 1) * per_epoch] for item in step]
        assert len(set(indices)) == per_epoch * batch
    seeds = [item.seed for step in steps for item in step]
    assert len(set(seeds)) == len(seeds), "the same picture gets other augmentations in another epoch"


def test_schedule_formula():
    values = cosine(1.0, 0.1, 10, warmup=4, start=0.2)
    assert values[:4].tolist() == pytest.approx([0.2, 0.2 + 0.8 / 3, 0.2 + 1.6 / 3, 1.0])
    assert values[4] == pytest.approx(1.0)
    assert values[7] == pytest.approx(0.1 + 0.45)
    with pytest.raises(ValueError, match="warm-up of 5 steps"):
        cosine(1.0, 0.0, 4, warmup=5)
