"""Nothing is resumed that was made from something else, and damaged files stop nothing."""

import json
import os
import random
import shutil
import signal
import time

import pytest

from densewalk.core.machine import machine_fault
from densewalk.training import cost
from densewalk.training import state as state_module
from densewalk.training.cost import Meter
from densewalk.training.progress_files import How, Seal, newest_seal, read_or_none
from densewalk.training.state import State
from tests.fixtures.toy import fit
from tests.training.test_loop import same_weights

DAMAGE = {"object": "{}", "empty": "", "zeros": "\0" * 300, "list": "[1]", "cut off": '{"data": "no', "binary": b"\xff\xfe\x00"}


def damage(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def old_state(folder, inputs=None):
    with State(folder, inputs or {"data": "old"}) as state:
        for step in (1, 2):
            state.save(step, {"step": step, "made from": "old"})
        (folder / "training").mkdir()
        (folder / "training" / "step-00000009.pt").touch()
        (folder / "metrics.jsonl").write_text("")


def content_of(folder, inputs):
    with State(folder, inputs) as state:
        return state.newest()


@pytest.mark.parametrize("removed", range(7))
def test_killed_while_stale_state_is_removed_nothing_stale_is_resumed(tmp_path, monkeypatch, removed):
    old_state(tmp_path)
    remove, calls = state_module._remove, []

    def dies(path):
        if len(calls) == removed:
            raise KeyboardInterrupt
        calls.append(path)
        remove(path)

    monkeypatch.setattr(state_module, "_remove", dies)
    with pytest.raises(KeyboardInterrupt):
        State(tmp_path, {"data": "new"}).__enter__()
    monkeypatch.setattr(state_module, "_remove", remove)
    assert content_of(tmp_path, {"data": "new"}) is None
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["inputs.json"]


@pytest.mark.slow
def test_killed_at_any_moment_while_stale_state_is_removed(tmp_path):
    draw = random.Random(0)
    for attempt in range(40):
        folder = tmp_path / str(attempt)
        old_state(folder)
        child = os.fork()
        if child == 0:
            with State(folder, {"data": "new"}):
                os._exit(0)
        time.sleep(draw.uniform(0, 0.004))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert content_of(folder, {"data": "new"}) is None
        shutil.rmtree(folder)


@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_without_a_matching_record_nothing_is_resumed(tmp_path, content):
    for name, make in (("gone", lambda path: path.unlink()), ("damaged", lambda path: damage(path, content))):
        folder = tmp_path / name
        old_state(folder)
        make(folder / "inputs.json")
        assert content_of(folder, {"data": "new"}) is None
        old_state(folder, {"data": "new"})
        make(folder / "inputs.json")
        assert content_of(folder, {"data": "new"}) == {"step": 2, "made from": "old"}, "the checkpoint's own seal is a record, too"


def test_a_checkpoint_of_other_inputs_is_passed_over_wherever_it_comes_from(tmp_path):
    old_state(tmp_path / "old")
    with State(tmp_path / "new", {"data": "new"}) as state:
        for path in (tmp_path / "old").glob("step-*"):
            shutil.copy(path, tmp_path / "new")
        assert state.newest() is None


def test_a_state_of_an_earlier_version_is_resumed_if_its_record_matches(tmp_path):
    def as_before(folder, inputs):
        old_state(folder, inputs)
        for path in folder.glob("step-*.json"):
            path.write_text(json.dumps({key: json.loads(path.read_text())[key] for key in ("step", "sha256")}))

    as_before(tmp_path / "same", {"weights": "a"})
    with State(tmp_path / "same", {"weights": "a", "folder images": "b"}, newer=frozenset({"folder images"})) as state:
        assert state.newest()["step"] == 2
        assert [attempt.commit for attempt in state.made] == ["unknown"]
    old_state(tmp_path / "named", {"results/dora/s0/backbone.safetensors": "a"})
    former = {"results/dora/s0/backbone.safetensors": "a", "folder images": "b"}
    with State(tmp_path / "named", {"initial backbone": "a"}, former=former, newer=frozenset({"folder images"})) as state:
        assert state.newest()["step"] == 2, "by path, as earlier versions recorded inputs"
    with State(tmp_path / "named", {"initial backbone": "a"}, former={"results/walker/s0/backbone.safetensors": "a"}) as state:
        assert state.newest()["step"] == 2, "and again, whatever the path is now"
    as_before(tmp_path / "other", {"weights": "a"})
    assert content_of(tmp_path / "other", {"weights": "a", "data": "b"}) is None, "of an evaluation whose data nobody recorded"
    as_before(tmp_path / "none", {"weights": "a"})
    (tmp_path / "none" / "inputs.json").unlink()
    assert content_of(tmp_path / "none", {"weights": "a"}) is None


@pytest.mark.parametrize("name", ["step-*.json", "cost.json", "metrics.jsonl", "inputs.json", "plan.json"])
@pytest.mark.parametrize("content", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_of_a_state_stops_nothing(tmp_path, name, content, caplog):
    whole = fit(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "parts", dies_at=5, minutes=0.0)
    (tmp_path / "parts" / "plan.json").touch()
    damage(max((tmp_path / "parts").glob(name)), content)
    resumed = fit(tmp_path / "parts")
    assert same_weights(whole, resumed)
    assert len(resumed.seen) == 4 * (8 - (4 if name == "step-*.json" else 5))
    if content and name not in ("plan.json",):
        assert any(record.levelname == "WARNING" for record in caplog.records)


def test_the_cost_before_a_damaged_record_is_unknown_not_zero(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(cost, "energy_mj", lambda device: None)
    damage(tmp_path / "cost.json", "{}")
    before = cost.cost_before(tmp_path / "cost.json")
    assert (before.gpu_hours, before.energy_wh, before.peak_gpu_mib) == (None, None, None)
    assert "GPU-hours and energy are unknown" in caplog.text
    meter = Meter(tmp_path / "cost.json", cost.torch.device("cpu"))
    meter.keep()
    assert json.loads((tmp_path / "cost.json").read_text())["gpu_hours"] is None


# -- who made it -----------------------------------------------------------------------------------------------------


def attempts(folder):
    return [(attempt.until, attempt.commit, attempt.execution) for attempt in newest_seal(folder).attempts]


def test_a_checkpoint_says_who_made_its_steps(tmp_path, monkeypatch):
    def work(step, commit, precision):
        code = {"commit": commit, "dirty": False, "versions": {}, "host": "h"}
        monkeypatch.setattr(state_module.provenance, "record", lambda: code)
        with State(tmp_path, {"data": "x"}, how=How(device="cpu", execution={"precision": precision})) as state:
            state.newest()
            if step:
                state.save(step, {"step": step})
            return [attempt.commit for attempt in state.made]

    work(3, "a", "float32")
    work(5, "a", "float32")
    assert attempts(tmp_path) == [(5, "a", {"precision": "float32"})], "the same code in the same way is one attempt"
    work(8, "b", "bfloat16")
    expected = [(5, "a", {"precision": "float32"}), (8, "b", {"precision": "bfloat16"})]
    assert attempts(tmp_path) == expected
    assert work(None, "c", "float32") == ["a", "b"], "an attempt without a step has made nothing"
    (tmp_path / "step-00000008.pt").write_bytes(b"damaged")
    work(7, "c", "float32")
    (tmp_path / "step-00000008.json").unlink()
    assert attempts(tmp_path) == [(5, "a", {"precision": "float32"}), (7, "c", {"precision": "float32"})]


def test_a_seal_of_an_earlier_version_is_read(tmp_path):
    damage(tmp_path / "step-00000003.json", '{"step": 3, "sha256": "x"}')
    seal = read_or_none(tmp_path / "step-00000003.json", Seal)
    assert (seal.inputs, seal.made, seal.attempts[0].until) == (None, None, 3)


def test_a_file_in_the_folders_place_is_one_line(tmp_path):
    (tmp_path / "state").touch()
    with pytest.raises(NotADirectoryError) as raised:
        State(tmp_path / "state" / "run", {})
    assert str(machine_fault(raised.value)).startswith(f"{tmp_path / 'state'} is a file where a folder should be")
