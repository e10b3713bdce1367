"""DINO against plain loops, its recipe, and its views."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from densewalk.core import distributed
from densewalk.core.errors import TrainingError, UserError
from densewalk.data.augmentation.draws import Distortion
from densewalk.data.augmentation.views import draw_colors
from densewalk.data.check_images import check_images
from densewalk.data.settings import ImagesSettings
from densewalk.data.sources import Source, open_images
from densewalk.methods.dino.augmentation import DinoCrops
from densewalk.methods.dino.losses import cross_entropies, dino_loss, koleo, teacher_entropies
from densewalk.methods.dino.method import Dino
from densewalk.methods.dino.self_distillation import clip_each
from densewalk.methods.dino.settings import DinoSettings
from densewalk.models.loading import create
from densewalk.training import loop
from densewalk.training.execution import Execution
from densewalk.training.optimizer import make_optimizer, set_schedules
from densewalk.training.sampler import Item
from densewalk.training.state import State
from tests.fixtures.methods.dino import random_batch, small_settings
from tests.fixtures.receipts import images_receipt


def small_method(settings: DinoSettings, total: int = 5, per_epoch: int = 1) -> Dino:
    return Dino(settings, create("vit_nano_patch16", seed=1), total, per_epoch, seed=0)


def take_step(method: Dino, batch: dict[str, Tensor], step: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    return method.step(batch, step, torch.Generator().manual_seed(0))


# -- formulas --------------------------------------------------------------------------------------------------------


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def plain_cross_entropy(target: Tensor, logits: Tensor, temperature: float) -> float:
    exponentials = [math.exp(x / temperature) for x in logits.tolist()]
    return -sum(p * math.log(e / sum(exponentials)) for p, e in zip(target.tolist(), exponentials, strict=True))


def test_cross_entropies_and_loss_equal_the_plain_loop() -> None:
    targets, logits = normal(2, 3, 7).softmax(-1), normal(5, 3, 7, seed=1)
    entropies = cross_entropies(targets, logits, 0.1)
    pairs = []
    for q, v in itertools.product(range(2), range(5)):
        terms = [plain_cross_entropy(targets[q, b], logits[v, b], 0.1) for b in range(3)]
        np.testing.assert_allclose(entropies[q, v], terms, rtol=1e-5)
        if q != v:
            pairs.append(sum(terms) / 3)
    assert dino_loss(targets, logits, 0.1).item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)


def test_cross_entropy_stays_in_float32_under_autocast() -> None:
    targets, logits = normal(2, 3, 500).float().softmax(-1), normal(5, 3, 500, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = cross_entropies(targets, logits, 0.1)
    assert result.dtype == torch.float32
    assert torch.equal(result, cross_entropies(targets, logits, 0.1))


def test_targets_are_centered_and_sharpened_by_epoch() -> None:
    settings = small_settings(teacher_temperature_start=0.04, teacher_temperature=0.07, teacher_temperature_epochs=4, epochs=10)
    method = small_method(settings, total=20, per_epoch=2)
    method.center.normal_()
    logits = torch.randn(2, 3, 128)
    for at, temperature in ((0, 0.04), (1, 0.04), (2, 0.05), (6, 0.07), (19, 0.07)):
        expected = ((logits - method.center) / temperature).softmax(-1)
        torch.testing.assert_close(method.targets(logits, at), expected, rtol=1e-4, atol=1e-7)


def test_center_is_the_moving_mean_over_views_and_samples() -> None:
    method = small_method(small_settings(clip_grad=None))
    method.center.fill_(2.0)
    logits = torch.randn(2, 3, 128)
    for part in logits.split(1, dim=1):
        method.note_logits(part)
    assert (method.center == 2).all()
    method.after_backward(0)
    torch.testing.assert_close(method.center, 0.9 * 2.0 + 0.1 * logits.view(6, 128).mean(0))


def plain_sinkhorn_targets(logits: np.ndarray, temperature: float, iterations: int) -> np.ndarray:
    """DINOv2's: divide prototypes' rows by their sums, then samples' columns, each by the number of them, too."""
    q = np.exp(logits.T / temperature)
    protos, samples = q.shape
    q /= q.sum()
    for _ in range(iterations):
        for k in range(protos):
            q[k] /= q[k].sum() * protos
        for b in range(samples):
            q[:, b] /= q[:, b].sum() * samples
    return (q * samples).T


def test_sinkhorn_centering_equals_the_plain_loop() -> None:
    settings = small_settings(centering="sinkhorn", teacher_temperature_start=0.1, teacher_temperature=0.3, teacher_temperature_epochs=2)
    method = small_method(settings, total=10, per_epoch=2)
    logits = normal(2, 3, 128)
    for at, temperature in ((0, 0.1), (9, 0.3)):
        expected = plain_sinkhorn_targets(logits.view(6, 128).numpy(), temperature, iterations=3)
        targets = method.targets(logits, at)
        np.testing.assert_allclose(targets.view(6, 128), expected, rtol=1e-9, atol=1e-15)
    assert targets.view(6, 128).sum(dim=1).tolist() == pytest.approx([1.0] * 6)


def test_sinkhorn_centering_has_no_center() -> None:
    method = small_method(small_settings(centering="sinkhorn"))
    take_step(method, random_batch(method.settings))
    assert not method.center.any()


def test_sinkhorn_centering_tells_near_equal_images_apart_at_once() -> None:
    logits = 0.9 + 0.05 * torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    logits = logits + 0.02 * torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    spread = {}
    for centering in ("mean", "sinkhorn"):
        method = small_method(small_settings(out_dim=64, centering=centering, teacher_temperature=0.01, teacher_temperature_start=0.01))
        spread[centering] = teacher_entropies(method.targets(logits, 0))["teacher_mean_entropy"].item()
    assert spread["sinkhorn"] > 0.95 * math.log(64)
    assert spread["mean"] < 0.6 * math.log(64)


def test_nan_in_the_logits_ends_the_training_with_its_batch_saved(tmp_path: Path) -> None:
    method = small_method(small_settings(centering="sinkhorn"))
    method.diagnostics = tmp_path
    batch = random_batch(method.settings)
    batch["global"][0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"step 4: the teacher's logits: 128 of 1024 .*; its batch is in .*failed-step-00000004"):
        take_step(method, batch, step=4)
    saved = torch.load(next(tmp_path.glob("failed-step-*.pt")), weights_only=True)
    torch.testing.assert_close(saved["batch"], batch, rtol=0, atol=0, equal_nan=True)


def test_koleo_equals_the_plain_loop() -> None:
    x = normal(6, 5)
    unit = x / x.norm(dim=1, keepdim=True)
    total = 0.0
    for i in range(6):
        nearest = max((j for j in range(6) if j != i), key=lambda j: float(unit[i] @ unit[j]))
        total -= math.log(float((unit[i] - unit[nearest]).norm()) + 1e-8) / 6
    assert koleo(x.float()).item() == pytest.approx(total, rel=1e-5)


def test_an_image_is_no_neighbor_of_its_own_though_the_only_other_one_is_opposite() -> None:
    v = normal(1, 5)
    for x in (torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.cat([v, -3.3 * v]).float()):
        assert koleo(x).item() == pytest.approx(-math.log(2), abs=1e-5)


def test_koleo_survives_duplicates_and_refuses_a_single_image() -> None:
    x = torch.ones(3, 5, requires_grad=True)
    koleo(x).backward()
    assert torch.isfinite(x.grad).all()
    with pytest.raises(ValueError, match="at least two"):
        koleo(torch.ones(1, 5))
    alone = small_settings(koleo_weight=0.1, batch_size=1).obstacle()
    assert alone == "koleo_weight: KoLeo needs at least two images per process, batch_size is 1"
    shared = small_settings(koleo_weight=0.1, batch_size=4).obstacle_to_parts(1, processes=4)
    assert shared == "koleo_weight: KoLeo needs at least two images per process, batch_size is 4, shared by 4 processes"
    assert small_settings(koleo_weight=0.1, batch_size=4).obstacle_to_parts(1, processes=2) is None


def test_a_training_that_is_shorter_than_the_temperatures_warm_up_ends_on_its_way() -> None:
    changes = {"teacher_temperature_start": 0.04, "teacher_temperature": 0.07, "teacher_temperature_epochs": 31}
    method = small_method(small_settings(epochs=None, steps=30, warmup_epochs=0, **changes))
    assert method.temperatures.tolist() == pytest.approx([0.04, 0.041, 0.042, 0.043, 0.044])


def test_each_gradient_is_clipped_by_itself() -> None:
    gradients = [torch.full((4,), 3.0), torch.full((4,), 0.1), torch.zeros(2)]
    clip_each(gradients, 3.0)
    torch.testing.assert_close(gradients[0], torch.full((4,), 1.5), rtol=1e-5, atol=0)
    torch.testing.assert_close(gradients[1], torch.full((4,), 0.1), rtol=0, atol=0)
    assert not gradients[2].any()


def test_entropies_tell_sure_from_collapsed() -> None:
    sure = teacher_entropies(torch.eye(8))
    assert sure["teacher_entropy"].item() == pytest.approx(0)
    assert sure["teacher_mean_entropy"].item() == pytest.approx(math.log(8))
    collapsed = teacher_entropies(torch.eye(8)[:1].expand(5, 8))
    assert collapsed["teacher_mean_entropy"].item() == pytest.approx(0)


# -- the method ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("crops", [0, 2])
def test_step_equals_its_definition(crops: int) -> None:
    settings = small_settings(local_crops=crops)
    method = small_method(settings)
    method.center.normal_(std=0.1)
    batch, center = random_batch(settings), method.center.clone()
    views = [*batch["global"].unbind(1), *batch["local"].unbind(1)]
    with torch.no_grad():
        expected = []
        for q, v in itertools.product(range(2), range(2 + crops)):
            if q == v:
                continue
            teacher, student = method.teacher, method.student
            target = ((teacher.head(teacher.backbone.cls(views[q])) - center) / 0.04).softmax(-1)
            prediction = (student.head(student.backbone.cls(views[v])) / 0.1).log_softmax(-1)
            expected.append(-(target * prediction).sum(-1).mean().item())
    loss, logs = take_step(method, batch)
    assert loss.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert set(logs) == {"loss_dino", "teacher_entropy", "teacher_mean_entropy"}
    loss.backward()
    assert all(p.grad is None for p in method.teacher.parameters())


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_equals_the_whole(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small_settings(clip_grad=0.3, freeze_last_layer_epochs=0)
    batch, results = random_batch(settings), []
    for n in (1, parts):
        method = small_method(settings)
        monkeypatch.setattr(method, "prepare", lambda views, device: views)  # the batch is one of views
        optimizer = make_optimizer(method)
        for at in range(2):  # the second step's targets are centered by the first one's
            loss, _ = loop.one_step(method, optimizer, loop.split(batch, n), at, 0, Execution(), torch.device("cpu"))
        gradients = torch.cat([p.grad.flatten() for p in method.student.parameters() if p.grad is not None])
        results.append((loss, method.center.clone(), gradients))
    for whole, accumulated in zip(*results, strict=True):
        assert (whole - accumulated).norm() < 1e-5 * whole.norm()


def test_koleo_adds_its_weight() -> None:
    plain, _ = take_step(small_method(small_settings()), random_batch(small_settings()))
    settings = small_settings(koleo_weight=0.1)
    loss, logs = take_step(small_method(settings), random_batch(settings))
    assert logs["loss_koleo"] != 0
    assert (loss - plain).item() == pytest.approx(0.1 * logs["loss_koleo"].item(), rel=1e-4)


def test_drop_path_disturbs_the_student_alone() -> None:
    method = small_method(small_settings(drop_path=0.5))
    method.train()
    images = torch.randn(8, 3, 64, 64)
    student, teacher = method.student.backbone, method.teacher.backbone
    assert not torch.equal(student.cls(images), student.cls(images))
    assert torch.equal(teacher.cls(images), teacher.cls(images))
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))


def test_head_depends_on_the_seed_alone() -> None:
    heads = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        heads.append(Dino(small_settings(), create("vit_nano_patch16", seed=1), 5, 1, seed=seed).student.head.last_layer.weight_v)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_recipe() -> None:
    method = small_method(DinoSettings(global_size=64, local_size=32, out_dim=64), total=1000, per_epoch=10)
    decayed, plain = method.param_groups()
    assert decayed.lr[99] == pytest.approx(5e-4 * 512 / 256)
    assert decayed.lr[0] == 0
    assert decayed.lr[-1] == pytest.approx(1e-6, rel=0.01)
    assert (decayed.weight_decay[0], plain.weight_decay[-1]) == (pytest.approx(0.04), 0)
    assert (method.momentum[0], method.momentum[-1]) == (pytest.approx(0.996), pytest.approx(1, abs=1e-6))
    assert not method.student.head.last_layer.weight_g.requires_grad
    names = {id(p): name for name, p in method.student.named_parameters()}
    assert {names[id(p)] for p in plain.params if "norm" not in names[id(p)] and not names[id(p)].endswith(".bias")} == set()


def test_steps_replace_the_default_epochs() -> None:
    assert DinoSettings(steps=7).total_steps(10_000) == (7, 19)
    with pytest.raises(ValueError, match="exactly one"):
        DinoSettings(steps=7, epochs=3)


def test_bfloat16_step_is_close_to_float32() -> None:
    settings = small_settings()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, _ = take_step(small_method(settings), random_batch(settings))
    high, _ = take_step(small_method(settings), random_batch(settings))
    assert low.item() == pytest.approx(high.item(), rel=0.05)


def test_learns_one_batch() -> None:
    settings = small_settings(
        batch_size=256, lr=2e-3, teacher_momentum=1.0, freeze_last_layer_epochs=0, warmup_epochs=0, clip_grad=None, epochs=40
    )
    method = small_method(settings, total=40)
    optimizer = make_optimizer(method)
    batch, excess = random_batch(settings), []
    for at in range(40):
        set_schedules(optimizer, at)
        loss, logs = take_step(method, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.center.zero_()
        excess.append(loss.item() - logs["teacher_entropy"].item())
    assert excess[-1] < 0.3 * excess[0]


# -- views -----------------------------------------------------------------------------------------------------------


class Pictures(Dataset[Tensor]):
    def __init__(self, *shape: int, count: int = 3) -> None:
        self.shape, self.count = shape, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        return torch.randint(0, 256, self.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(index))


@pytest.mark.parametrize("shape", [(3, 90, 120), (1, 3, 90, 120)])
def test_views_depend_on_the_item_alone(shape: tuple[int, ...]) -> None:
    data = DinoCrops(Pictures(*shape), small_settings())
    assert len(data) == 3
    first = data[Item(1, seed=5)]
    torch.manual_seed(9)
    again, other = data[Item(1, seed=5)], data[Item(1, seed=6)]
    assert first["global"].shape == (2, 3, 64, 64)
    assert first["local"].shape == (2, 3, 32, 32)
    assert torch.equal(first["global"], again["global"])
    assert torch.equal(first["local"], again["local"])
    assert not torch.equal(first["global"], other["global"])


def test_no_local_crops() -> None:
    assert DinoCrops(Pictures(3, 90, 120), small_settings(local_crops=0))[Item(0, seed=1)]["local"].shape == (0, 3, 32, 32)


def test_probabilities_of_the_distortions() -> None:
    data = DinoCrops(Pictures(3, 40, 40), small_settings(global_size=16, local_size=16, local_crops=2))
    samples = [data[Item(0, seed=seed)] for seed in range(300)]
    rows = torch.stack([torch.cat([s["global_distortions"], s["local_distortions"]]) for s in samples])  # [300, 4 views, columns]
    found = dict(zip(Distortion._fields, ((rows != torch.tensor(Distortion())).float().mean(dim=0)).T, strict=True))
    for name, expected in (("first", [0.8] * 4), ("gray", [0.2] * 4), ("flip", [0.5] * 4), ("hue", [0.8] * 4)):
        assert found[name].tolist() == pytest.approx(expected, abs=0.1), name
    assert found["blur"].tolist() == pytest.approx([1.0, 0.1, 0.5, 0.5], abs=0.1)
    assert found["solarize"].tolist() == pytest.approx([0.0, 0.2, 0.0, 0.0], abs=0.1)
    radii = torch.tensor([draw_colors(torch.Generator().manual_seed(i), blur=1.0).blur for i in range(300)])
    assert 0.1 <= radii.min() < 0.15
    assert 1.9 < radii.max() <= 2.0


def test_image_folder_as_source(tmp_path: Path) -> None:
    for i in range(3):
        Image.fromarray(np.full((50, 60, 3), 40 * i, dtype=np.uint8)).save(tmp_path / f"{i}.png")
    data = Dino.dataset(small_settings(), [Source(name, images_receipt(tmp_path)) for name in ("a", "b")])
    assert len(data) == 6  # type: ignore[arg-type]
    assert data[Item(5, seed=0)]["global"].shape == (2, 3, 64, 64)


def test_sizes_must_fit_the_patches() -> None:
    with pytest.raises(UserError, match=r"global_size 70 is not a multiple of the patch size 16; allowed: e\.g\. 64"):
        small_method(small_settings(global_size=70))


# -- several processes -----------------------------------------------------------------------------------------------


def noise_run(folder: Path) -> Dino:
    """Three steps on four pictures each, spread over however many processes there are."""
    method = small_method(small_settings(lr=0.1), total=3)
    with State(folder / str(distributed.rank()), {"data": "test"}) as state:
        loop.train(
            method,
            DinoCrops(Pictures(3, 90, 120, count=4), method.settings),
            batch_size=4,
            seed=3,
            state=state,
            execution=Execution(workers=0),
            device=torch.device("cpu"),
        )
    return method


@pytest.mark.slow
def test_two_processes_equal_one_on_the_same_global_batch(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "tests.methods.test_dino",
        str(tmp_path),
    ]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    both, images = small_method(small_settings()), torch.randn(4, 3, 64, 64)
    start = both.student.backbone.cls(images)
    both.load_state_dict(torch.load(tmp_path / "final.pt", weights_only=True))
    alone = noise_run(tmp_path / "alone")
    torch.testing.assert_close(both.center, alone.center, atol=1e-4, rtol=0)
    # compared by their output: the gradient of the keys' bias, and thus AdamW's step, is rounding noise
    ends = [method.student.backbone.cls(images) for method in (both, alone)]
    assert (ends[0] - ends[1]).norm() < 0.01 * (ends[0] - start).norm()


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.process_group(torch.device("cpu")):
        trained = noise_run(Path(sys.argv[1]))
        if distributed.rank() == 0:
            torch.save(trained.state_dict(), Path(sys.argv[1]) / "final.pt")


def test_only_frames_of_listed_sequences_are_learned_from(tmp_path: Path) -> None:
    for shade, name in enumerate(("train", "val")):
        (tmp_path / "frames" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (6, 4), (shade, number, 0)).save(tmp_path / "frames" / name / f"{number}.png")
    (tmp_path / "list.txt").write_text("val\n")
    wanted = ImagesSettings(source=str(tmp_path / "frames"), layout="sequences", sequence_list=str(tmp_path / "list.txt"))
    found = open_images(Source("davis", check_images(wanted, "davis")))
    assert [found[i][0, :2, 0, 0].tolist() for i in range(len(found))] == [[1, 0], [1, 1], [1, 2]]  # type: ignore[arg-type]
