"""The table of all reference cases (benchmarks/parity.py): every row within what its file allows, and any folder of such files."""

import importlib.util
import math
import sys
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch

from densewalk.evaluations.metrics.davis import jf
from densewalk.evidence.shares import interactions, one_at_a_time, sequential
from densewalk.ops.sinkhorn import sinkhorn
from tests.fixtures.helpers import shared
from tests.fixtures.reference_values import record_neco, record_timetuning

SCRIPT = Path(__file__).parents[2] / "benchmarks/parity.py"
KINDS = [
    *("cis", "contrastive_losses", "crw", "mae_step", "mocov3_step", "mosic_loss", "paka"),
    *("dinov2_parts", "dinov2_step_centering", "dinov2_step_sinkhorn", "ibot_loss", "ibot_masks", "ibot_step"),
    *("dinov2_loss", "eval_correspondence", "eval_discovery", "eval_retrieval", "eval_vos"),
    *("eval_bootstrap", "eval_depth", "eval_depth_train", "eval_ladder", "eval_position", "rasa"),
    *("davis_jf", "davis_propagation", "dora_step", "hummingbird", "knn", "lost", "neco_eval", "neco_loss", "neco_sort", "neco_step"),
    *("neco_views", "pamr", "stego", "timetuning_eval", "timetuning_propagation", "timetuning_sinkhorn", "timetuning_step"),
]


@pytest.fixture(scope="module")
def parity():
    spec = importlib.util.spec_from_file_location("parity", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", KINDS)
def test_all_rows_of_a_file(parity, name):
    shared(f"parity/{name}.npz")
    rows = [row for row in parity.rows_of(shared("parity"), name) if isinstance(row, parity.Row)]
    assert rows
    assert [row for row in rows if not row.holds] == []
    assert name in parity.FILES


def test_a_difference_is_seen(parity):
    assert not parity.compare("f", "c", "q", [1.0, 2.0], [1.0, 2.1], 0.05).holds
    assert parity.compare("f", "c", "q", [1.0, math.nan], [1.0, math.nan], 0).holds
    assert not parity.compare("f", "c", "q", [1.0, math.nan], [1.0, 2.0], 1).holds
    with pytest.raises(ValueError, match=r"shape \(1,\), expected \(2,\)"):
        parity.compare("f", "c", "q", [1.0], [1.0, 2.0], 0)


def test_no_script_hides_a_package():
    """A script's folder comes first where modules are looked for: `coverage` would be found there by numba, which asks for it."""
    names = {file.stem for file in SCRIPT.parent.glob("*.py")}
    assert len(names) > 10
    assert not names & ({"coverage", "numba", "numpy", "torch", "torchvision", "pandas", "PIL", "cv2"} | set(sys.stdlib_module_names))


# -- other folders -----------------------------------------------------------------------------------------------------


def sinkhorn_case(**changes):
    """Another number of rows, prototypes and iterations than the recorded case has."""
    scores = torch.randn(30, 7, generator=torch.Generator().manual_seed(0))
    file = {"3/scores": np.array(scores), "3/eps": 0.5, "3/iters": 3, "3/q": np.array(sinkhorn(scores, epsilon=0.5, iterations=3))}
    return {k: v for k, v in {**file, **changes}.items() if v is not None}


def jf_case():
    rng = np.random.default_rng(0)
    truth, prediction = rng.integers(0, 3, (2, 5, 20, 30)).astype(np.uint8)
    j, f = jf(truth, prediction, 2)
    return {"other/gt": truth, "other/pred": prediction, "other/n": 2, "other/J": j, "other/F": f}


def run(parity, monkeypatch, capsys, folder):
    monkeypatch.setattr(sys, "argv", ["parity.py", str(folder)])
    status = parity.main()
    return status, capsys.readouterr().out


def test_a_folder_with_other_cases_is_compared(parity, monkeypatch, capsys, tmp_path):
    np.savez(tmp_path / "timetuning_sinkhorn.npz", **sinkhorn_case())
    np.savez(tmp_path / "davis_jf_more.npz", **jf_case())
    np.savez(tmp_path / "another_name.npz", **sinkhorn_case())
    np.savez(tmp_path / "photos.npz", x=np.zeros(3))
    (tmp_path / "notes.txt").write_text("no arrays")
    status, text = run(parity, monkeypatch, capsys, tmp_path)
    assert status == 0
    assert text.count("| shares |") == 2, "one of them is told by its keys"
    assert "| davis_jf_more | other | F |" in text
    assert "not compared: photos.npz: of no known kind" in text
    assert "not compared: notes.txt: no .npz" in text
    assert f"not compared: neco_step: no file of this kind in {tmp_path}" in text
    assert text.splitlines()[-1] == "4 quantities compared, 0 too far, 0 files wrong"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"3/q": np.zeros((30, 7))}, "**too far**"),
        (
            {"3/q": np.zeros((29, 7))},
            "wrong: timetuning_sinkhorn.npz, of kind timetuning_sinkhorn, cannot be compared: ValueError: timetuning_sin",
        ),
        (
            {"3/eps": None},
            "wrong: timetuning_sinkhorn.npz is no whole file of kind timetuning_sinkhorn: 3/eps is not a file in the archive",
        ),
        ({"3/q": None}, "wrong: timetuning_sinkhorn.npz has no case of kind timetuning_sinkhorn"),
        ({"3/scores": np.array(["a"])}, "wrong: timetuning_sinkhorn.npz, of kind timetuning_sinkhorn, cannot be compared: TypeError"),
        ({"3/scores": np.full((30, 7), np.nan)}, "cannot be compared: NonFiniteScores: 210 of 210 Sinkhorn scores are NaN or infinite"),
    ],
)
def test_a_wrong_file_is_said_and_the_others_compared(parity, monkeypatch, capsys, tmp_path, changes, message):
    np.savez(tmp_path / "timetuning_sinkhorn.npz", **sinkhorn_case(**changes))
    np.savez(tmp_path / "davis_jf.npz", **jf_case())
    status, text = run(parity, monkeypatch, capsys, tmp_path)
    assert status == 1
    assert message in text
    assert "| davis_jf | other | J |" in text
    assert all(len(line) < 400 for line in text.splitlines())


@pytest.mark.parametrize("content", [b"", b"PK no archive", b"{}", None])
def test_a_damaged_file_is_said(parity, monkeypatch, capsys, tmp_path, content):
    if content is None:
        np.savez(tmp_path / "whole.npz", **sinkhorn_case())
        content = (tmp_path / "whole.npz").read_bytes()[:-60]
        (tmp_path / "whole.npz").unlink()
    for name in ("timetuning_sinkhorn.npz", "unnamed.npz"):
        (tmp_path / name).write_bytes(content)
    status, text = run(parity, monkeypatch, capsys, tmp_path)
    assert status == 1
    assert "wrong: timetuning_sinkhorn.npz cannot be read as .npz: " in text
    assert "wrong: unnamed.npz cannot be read as .npz: " in text


def test_a_folder_in_which_nothing_is_compared_is_no_success(parity, monkeypatch, capsys, tmp_path):
    assert run(parity, monkeypatch, capsys, tmp_path)[0] == 1
    status, text = run(parity, monkeypatch, capsys, tmp_path / "none")
    assert status == 1
    assert text == f"{tmp_path / 'none'} is no folder; give one with reference values (*.npz)\n"


def test_nothing_in_a_file_is_run(parity, monkeypatch, capsys, tmp_path):
    np.savez(tmp_path / "timetuning_sinkhorn.npz", **sinkhorn_case(**{"3/scores": np.array([{"a": 1}], dtype=object)}))
    status, text = run(parity, monkeypatch, capsys, tmp_path)
    assert status == 1
    assert "Object arrays cannot be loaded when allow_pickle=False" in text


def held(parity, folder, name):
    rows = [row for row in parity.rows_of(folder, name) if isinstance(row, parity.Row)]
    assert rows
    return [(row.case, row.quantity, row.difference) for row in rows if not row.holds]


def test_a_recorded_step_of_neco_with_registers_and_a_queue(parity, monkeypatch, tmp_path):
    """Two parameters for the CLS token and its position, trained by an optimizer of their own: our single one makes the same steps."""
    file = record_neco(monkeypatch)
    np.savez(tmp_path / "neco_step.npz", **file)
    assert held(parity, tmp_path, "neco_step") == []
    moved = file["steps/0/student_after/cls_token"] + 1e-4
    np.savez(tmp_path / "neco_step.npz", **{**file, "steps/0/student_after/cls_token": moved})
    assert [row[:2] for row in held(parity, tmp_path, "neco_step")] == [("step 0", "student after, largest error")]


@pytest.mark.parametrize(("teacher", "queue"), [(True, 40), (False, 40), (False, 0)])
def test_recorded_steps_of_timetuning_with_a_queue_or_without_a_teacher(parity, tmp_path, teacher, queue):
    """The queue is full in the second step: 40 entries, 20 new ones a step (two clips of nine patches fill 18)."""
    torch.manual_seed(0)  # whether a missing queue is seen depends on the weights
    file = record_timetuning("other", teacher=teacher, queue=min(queue, 36))
    np.savez(tmp_path / "timetuning_step.npz", **file)
    assert held(parity, tmp_path, "timetuning_step") == []
    if queue:
        del file["other/queue_length"]
        np.savez(tmp_path / "timetuning_step.npz", **file)
        assert any("loss of step 1" in row[1] for row in held(parity, tmp_path, "timetuning_step")), "without its queue"


def ladder_case():
    """Five settings instead of two to four, and two of their orders."""
    scores, orders = np.random.default_rng(0).normal(size=32), list(permutations(range(5)))
    found = {"scores": scores, "shapley": np.mean([sequential(scores, order) for order in orders], 0), "difference": scores[-1] - scores[0]}
    found |= {"orders": orders[3:5], "sequential": [sequential(scores, order) for order in orders[3:5]]}
    found |= {"interaction": interactions(scores)}
    found |= dict(zip(("one_at_a_time_from_a", "one_at_a_time_from_b"), one_at_a_time(scores), strict=True))
    return {f"five/{name}": value for name, value in found.items()}, "five/shapley"


def rasa_case():
    """Two rounds instead of four, on 3 x 4 places of 7 dimensions, and three steps of training."""
    generator = torch.Generator().manual_seed(0)
    features = left = torch.randn(2, 12, 7, generator=generator)
    target = torch.tensor([[row / 2, column / 3] for row, column in product(range(3), range(4))]).expand(2, -1, -1)
    file = {"features": features, "target": target}
    for t in range(2):
        file["before_last"] = left
        weight = torch.randn(2, 7, generator=generator)
        q = torch.linalg.qr(weight.T).Q
        file |= {f"rounds/{t}/weight": weight, f"rounds/{t}/positional": left @ q @ q.T}
        left = left - left @ q @ q.T
        file[f"rounds/{t}/left"] = left
    weight = torch.nn.Parameter(torch.randn(2, 7, generator=generator))
    file |= {"all": left, "training/weight_before": weight.detach().clone(), "training/lr": 0.1, "training/steps": 3}
    optimizer, losses = torch.optim.AdamW([weight], 0.1, weight_decay=0), []
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
    for _ in range(3):
        optimizer.zero_grad()
        loss = ((file["before_last"] @ weight.T).sigmoid() - target).square().mean()
        loss.backward()
        file.setdefault("training/grad_first", weight.grad.clone())
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    file |= {"training/losses": losses, "training/weight_after": weight.detach()}
    return {name: np.array(value) for name, value in file.items()}, "rounds/1/left"


def bootstrap_case():
    """Four images instead of five, and two lists of p."""
    values = np.random.default_rng(0).normal(size=4)
    means = np.array([values[list(draw)].mean() for draw in product(range(4), repeat=4)])
    file = {"values": values, "std": means.std(), "std_formula": values.std() / 2}
    file["percentile_95"] = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    file = {f"exact_mean/{name}": value for name, value in file.items()}
    for case, adjusted in enumerate(([0.02, 0.03], [0.04, 0.04])):
        file |= {f"holm/{case}/p": [0.01, 0.03] if case == 0 else [0.02, 0.04], f"holm/{case}/adjusted": adjusted}
        file[f"holm/{case}/benjamini_hochberg"] = [0.02, 0.03] if case == 0 else [0.04, 0.04]
    return file, "holm/1/adjusted"


@pytest.mark.parametrize(("kind", "case"), [("eval_ladder", ladder_case), ("rasa", rasa_case), ("eval_bootstrap", bootstrap_case)])
def test_other_numbers_of_cases_and_rounds_are_compared(parity, tmp_path, kind, case):
    file, broken = case()
    np.savez(tmp_path / f"{kind}.npz", **file)
    assert held(parity, tmp_path, kind) == []
    np.savez(tmp_path / f"{kind}.npz", **{**file, broken: np.asarray(file[broken]) + 1e-3})
    assert {name for name, *_ in held(parity, tmp_path, kind)} == {broken.rpartition("/")[0]}
