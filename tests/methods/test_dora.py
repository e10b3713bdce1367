"""DoRA against the released implementation's recorded step, plain loops, and its own symmetries."""

import itertools
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from densewalk.core import distributed
from densewalk.core.errors import TrainingError, UserError
from densewalk.data.augmentation.draws import Distortion
from densewalk.data.check_images import check_images
from densewalk.data.images import normalize
from densewalk.data.settings import ImagesSettings, VideoSettings
from densewalk.data.sources import Source, open_clips
from densewalk.data.video.clips import VideoClips
from densewalk.data.video.encode import write_video
from densewalk.data.video.transcode import transcode
from densewalk.methods.dora import method as dora
from densewalk.methods.dora import tracking
from densewalk.methods.dora.augmentation import DoraClips, make_views
from densewalk.methods.dora.losses import frame_terms, koleo_of_frames, total_loss
from densewalk.methods.dora.method import Dora
from densewalk.methods.dora.settings import DoraSettings
from densewalk.methods.dora.tracking import (
    TeacherFeatures,
    apply_masks,
    hard_masks,
    object_masks,
    refine_prototypes,
    soft_masks,
    track_objects,
)
from densewalk.models.architecture import Architecture
from densewalk.models.backbone import Backbone
from densewalk.models.loading import create
from densewalk.ops.sinkhorn import linear_sinkhorn, sinkhorn
from densewalk.training import loop
from densewalk.training.execution import Execution
from densewalk.training.optimizer import make_optimizer, set_schedules
from densewalk.training.sampler import Item
from densewalk.training.state import State
from densewalk.visualization import features
from tests.fixtures.helpers import shared
from tests.fixtures.methods.dora import SMALL, random_batch, small_settings
from tests.fixtures.receipts import images_receipt, sequences_receipt

CENTERINGS = ("mean", "sinkhorn")
FULL = math.log(256)  # entropy of a teacher that uses all prototypes of the preset alike


def small_method(settings: DoraSettings, total: int = 5, per_epoch: int = 1) -> Dora:
    return Dora(settings, create("vit_nano_patch16", seed=1), total, per_epoch, seed=0)


def take_step(method: Dora, batch: dict[str, Tensor], step: int = 0, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    return method.step(batch, step, torch.Generator().manual_seed(seed))


def tracks_of(method: Dora, teacher: TeacherFeatures, heads: Tensor) -> Tensor:
    found = tracking.object_prototypes(teacher.cls_attention[:, heads], teacher.query)
    return track_objects(refine_prototypes(found, teacher.patches, method.settings), teacher.keys)


# -- the recorded step -----------------------------------------------------------------------------------------------


class Recorded:
    """The released code's step, and our method in the same state."""

    def __init__(self, path: Path, **changes: Any) -> None:
        self.values = np.load(path)
        self.heads = torch.from_numpy(self.values["mot/heads"])
        settings = DoraSettings(**{**SMALL, "compat": "released", "frames": 3, "local_crops": 3, **changes})
        arch = Architecture("recorded", dim=48, depth=3, heads=6, patch=16, image=64)
        self.method = Dora(settings, Backbone(arch), total_steps=10000, steps_per_epoch=100, seed=0)
        self.load(self.method.student, "weights/student/")
        self.load(self.method.teacher, "weights/teacher/")
        self.method.center.copy_(self.tensor("center_before")[0])
        self.method.sample_heads = lambda generator: self.heads  # type: ignore[method-assign]
        self.batch = {"global": self.tensor("inputs/global")[:, None], "local": self.tensor("inputs/locals").transpose(0, 1)}

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.values[name])

    def load(self, network: torch.nn.Module, prefix: str) -> None:
        names = [name for name in self.values.files if name.startswith(prefix)]
        network.load_state_dict({ours(name.removeprefix(prefix)): self.tensor(name) for name in names})


def ours(name: str) -> str:
    return name.replace("backbone.", "backbone.vit.")


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded(shared("parity/dora_step.npz"))


def test_recorded_teacher(recorded: Recorded) -> None:
    seen = recorded.method.encode_teacher(recorded.batch["global"].flatten(0, 1))
    torch.testing.assert_close(seen.logits.transpose(0, 1), recorded.tensor("teacher/logits"), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(seen.patches, recorded.tensor("teacher/patches")[0], atol=1e-5, rtol=1e-5)
    key = recorded.tensor("teacher/key")[:, :, :, 1:].transpose(2, 3).flatten(3)
    torch.testing.assert_close(seen.keys.transpose(0, 1), key, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen.query, recorded.tensor("mot/query_cat"), atol=1e-5, rtol=1e-5)
    attention = recorded.tensor("teacher/attn")[0, :, :, 0, 1:]
    torch.testing.assert_close(seen.cls_attention, attention, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(seen.cls_attention[:, recorded.heads], recorded.tensor("mot/cls_attn"), atol=1e-6, rtol=1e-5)


def test_recorded_discovery_and_tracking(recorded: Recorded) -> None:
    s = recorded.method.settings
    seen = recorded.method.encode_teacher(recorded.batch["global"].flatten(0, 1))
    found = tracking.object_prototypes(seen.cls_attention[:, recorded.heads], seen.query)
    torch.testing.assert_close(found, recorded.tensor("mot/prototypes"), atol=1e-6, rtol=1e-5)
    refined = refine_prototypes(found, seen.patches, s)
    torch.testing.assert_close(refined, recorded.tensor("mot/refined"), atol=2e-4, rtol=1e-4)
    in_logarithms = refine_prototypes(found, seen.patches, s.model_copy(update={"linear_sinkhorn": False}))
    torch.testing.assert_close(in_logarithms, recorded.tensor("mot/refined"), atol=2e-4, rtol=1e-4)
    tracks = track_objects(refined, seen.keys)
    torch.testing.assert_close(tracks.permute(order_of_tracks(recorded, tracks)), recorded.tensor("mot/track_soft"), atol=2e-5, rtol=1e-4)
    masks = hard_masks(tracks, per_batch=True)
    assert torch.equal(masks.permute(order_of_tracks(recorded, tracks)), recorded.tensor("mot/track_bin"))
    unit = torch.nn.functional.normalize(tracks, dim=-1)
    margins = (unit - unit.mean(dim=(0, -1), keepdim=True)).abs().amin(dim=(0, -1))
    np.testing.assert_allclose(np.sort(margins.flatten()), np.sort(recorded.values["mot/track_margin_min"]), atol=1e-5)
    shown = apply_masks(recorded.batch["global"].flatten(0, 1), masks, seen.grid)
    assert torch.equal(shown.transpose(0, 1), recorded.tensor("mot/masked_img"))


def test_recorded_assignment(recorded: Recorded) -> None:
    seen = recorded.method.encode_teacher(recorded.batch["global"].flatten(0, 1))
    unit = torch.nn.functional.normalize(seen.patches, dim=-1)
    torch.testing.assert_close(unit, recorded.tensor("mot/z_norm"), atol=1e-6, rtol=0)
    scores = unit @ tracking.object_prototypes(seen.cls_attention[:, recorded.heads], seen.query).transpose(1, 2)
    torch.testing.assert_close(scores, recorded.tensor("mot/assignment"), atol=1e-5, rtol=1e-5)
    exact_scores = recorded.tensor("mot/z_norm").double() @ recorded.tensor("mot/prototypes").double().transpose(1, 2)
    for solve in (sinkhorn, linear_sinkhorn):
        shares = solve(recorded.tensor("mot/assignment"), epsilon=0.05, iterations=30)
        torch.testing.assert_close(shares, recorded.tensor("mot/sinkhorn"), atol=2e-5, rtol=0)
        exact = solve(exact_scores, epsilon=0.05, iterations=30)
        torch.testing.assert_close(exact, recorded.tensor("mot/sinkhorn_f64"), atol=1e-12, rtol=0)


def test_recorded_configuration(recorded: Recorded) -> None:
    """The values that the step was recorded with are the method's own."""
    config = {name.removeprefix("config/"): str(recorded.values[name]) for name in recorded.values.files if name.startswith("config/")}
    s, arch = recorded.method.settings, recorded.method.student.backbone.arch
    ours = {
        "img": s.global_size, "local": s.local_size, "patch": arch.patch, "dim": arch.dim, "depth": arch.depth, "heads": arch.heads,
        "T": s.frames, "B": len(recorded.batch["global"]), "n_local": s.local_crops, "hid": s.head_hidden, "bot": s.head_bottleneck,
        "out": s.out_dim, "student_temp": s.student_temperature, "teacher_temp": s.teacher_temperature,
        "center_momentum": s.center_momentum, "sk_iters": s.sinkhorn_iterations, "sk_eps": s.sinkhorn_epsilon,
    }  # fmt: skip
    assert {name: str(value) for name, value in ours.items()} == {name: config[name] for name in ours}
    # the release draws the heads by Python's generator, which `unseeded_heads` stands for
    drawn = random.Random(recorded.values["mot_python_seed"].item()).sample(range(arch.heads), s.objects)
    assert drawn == recorded.heads.tolist()


def order_of_tracks(recorded: Recorded, tracks: Tensor) -> tuple[int, int, int, int]:
    """The file's axes are (objects, frames) or (frames, objects), batch, patches: both have length 3 here."""
    soft = recorded.tensor("mot/track_soft")
    orders = [(1, 2, 0, 3), (2, 1, 0, 3)]
    return min(orders, key=lambda order: (tracks.permute(order) - soft).abs().max().item())


def test_recorded_loss_terms(recorded: Recorded) -> None:
    targets = recorded.method.targets(recorded.tensor("teacher/logits").transpose(0, 1), step=0)
    masked = recorded.tensor("student/masked").transpose(1, 2)
    crops = recorded.tensor("student/local").unflatten(1, (3, 2)).permute(1, 2, 0, 3)
    mask_terms, local_terms = frame_terms(targets, masked, crops[1:], 0.1)
    torch.testing.assert_close(local_terms, recorded.tensor("loss/local_terms"), rtol=1e-5, atol=0)
    expected = recorded.tensor("loss/mask_terms")
    transposed = not torch.allclose(mask_terms, expected, rtol=1e-5)
    torch.testing.assert_close(mask_terms.T if transposed else mask_terms, expected, rtol=1e-5, atol=0)
    for name in ("loss/official", "loss/loss_official_formula"):
        assert total_loss(mask_terms, local_terms, carry_over=True).item() == pytest.approx(recorded.values[name].item(), rel=1e-6)
    all_mask_terms, all_local_terms = frame_terms(targets, masked, crops, 0.1)
    torch.testing.assert_close(all_local_terms, recorded.tensor("loss/local_terms_all"), rtol=1e-5, atol=0)
    clean = total_loss(all_mask_terms, all_local_terms, carry_over=False)
    assert clean.item() == pytest.approx(recorded.values["loss/loss_clean"].item(), rel=1e-6)


def test_recorded_student(recorded: Recorded) -> None:
    masked, local, _ = recorded.method.encode_student(recorded.tensor("mot/masked_img").transpose(0, 1), recorded.batch["local"])
    torch.testing.assert_close(masked.transpose(1, 2), recorded.tensor("student/masked"), atol=2e-6, rtol=1e-5)
    expected = recorded.tensor("student/local").unflatten(1, (3, 2)).permute(1, 2, 0, 3)[1:]
    torch.testing.assert_close(local, expected, atol=2e-6, rtol=1e-5)


def test_recorded_step() -> None:
    # the recorded update has learning rate 5e-4, weight decay 0.04, momentum 0.996 and prototypes that learn
    recorded = Recorded(shared("parity/dora_step.npz"), batch_size=256, warmup_epochs=0, freeze_last_layer_epochs=0)
    method = recorded.method
    optimizer = make_optimizer(method)
    set_schedules(optimizer, 0)
    loss, _ = take_step(method, recorded.batch)
    assert loss.item() == pytest.approx(recorded.values["loss/official"].item(), rel=1e-6)
    loss.backward()
    compare_gradients(recorded)
    method.after_backward(0)
    torch.testing.assert_close(method.center, recorded.tensor("loss/center_after")[0], atol=1e-6, rtol=1e-5)
    optimizer.step()
    method.after_update(0)
    networks = {"student": method.student.state_dict(), "teacher": method.teacher.state_dict()}
    names = [name for name in recorded.values.files if name.startswith("after_step/")]
    assert len(names) == 3
    for name in names:
        kind, parameter = name.removeprefix("after_step/").split(".", 1)
        torch.testing.assert_close(networks[kind][ours(parameter)], recorded.tensor(name), atol=1e-6, rtol=1e-5)


def compare_gradients(recorded: Recorded) -> None:
    gradients = {name: p.grad for name, p in recorded.method.student.named_parameters() if p.grad is not None}
    names = [name for name in recorded.values.files if name.startswith("grad/")]
    assert names
    for name in names:
        expected = recorded.tensor(name)
        error = (gradients[ours(name.removeprefix("grad/"))] - expected).norm() / expected.norm()
        assert error < 1e-4, f"{name}: {error}"
    norms = [gradients[name].norm().item() for name in gradients]
    np.testing.assert_allclose(sorted(norms), sorted(recorded.values["grad_norms_before_clip"]), rtol=1e-4)


def test_recorded_schedules_and_groups() -> None:
    recorded = Recorded(shared("parity/dora_step.npz"))  # the defaults are the recorded recipe: 48 clips, 10 of 100 epochs of warm-up
    method = recorded.method
    decayed, plain = method.param_groups()
    counts = [sum(p.numel() for p in group.params) for group in (decayed, plain)]
    assert counts == recorded.values["n_params_regularized"].tolist()
    np.testing.assert_allclose(decayed.lr, recorded.values["schedules/lr"], rtol=1e-12, atol=1e-18)
    np.testing.assert_allclose(decayed.weight_decay, recorded.values["schedules/wd"], rtol=1e-12)
    assert not plain.weight_decay.any()
    np.testing.assert_allclose(method.momentum, recorded.values["schedules/ema"], rtol=1e-12)
    np.testing.assert_allclose(method.temperatures, recorded.values["schedules/teacher_temp"], rtol=1e-12)


# -- formulas against plain loops in float64 -------------------------------------------------------------------------


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dot(a: Tensor, b: Tensor) -> float:
    return sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def softmax(values: list[float]) -> list[float]:
    exponentials = [math.exp(v - max(values)) for v in values]
    return [e / sum(exponentials) for e in exponentials]


def plain_refine(found: Tensor, patches: Tensor, epsilon: float, iterations: int, mass: float) -> Tensor:
    """Equations 4 and 5 of one clip; every patch has `mass`."""
    (k, d), n = found.shape, len(patches)
    unit = [[x / math.sqrt(dot(z, z)) for x in z.tolist()] for z in patches]
    m = [[math.exp(sum(a * b for a, b in zip(z, p.tolist(), strict=True)) / epsilon) for p in found] for z in unit]
    for _ in range(iterations):
        for j in range(k):
            total = sum(m[i][j] for i in range(n))
            for i in range(n):
                m[i][j] *= 1 / k / total
        for i in range(n):
            total = sum(m[i])
            for j in range(k):
                m[i][j] *= 1 / n / total
    return torch.tensor([[sum(mass * n * m[i][j] * unit[i][c] for i in range(n)) for c in range(d)] for j in range(k)], dtype=torch.float64)


@pytest.mark.parametrize("n_fold", [False, True])
@pytest.mark.parametrize("linear", [False, True])
def test_refine_equals_the_plain_loop(n_fold: bool, linear: bool) -> None:
    settings = small_settings(n_fold_assignment=n_fold, linear_sinkhorn=linear, sinkhorn_iterations=4)
    found, patches = 0.1 * normal(2, 3, 8), normal(2, 10, 8, seed=1)
    result = refine_prototypes(found, patches, settings)
    for b in range(2):
        expected = plain_refine(found[b], patches[b], 0.05, 4, mass=1.0 if n_fold else 0.1)
        torch.testing.assert_close(result[b], expected, rtol=1e-9, atol=1e-12)


def test_prototypes_and_track_equal_the_plain_loop() -> None:
    attention, query, keys = normal(2, 3, 10).softmax(-1), normal(2, 10, 8, seed=1), normal(2, 4, 10, 8, seed=2)
    found = tracking.object_prototypes(attention, query)
    tracks = track_objects(found, keys)
    for b, i in itertools.product(range(2), range(3)):
        prototype = [sum(attention[b, i, n].item() * query[b, n, c].item() for n in range(10)) for c in range(8)]
        np.testing.assert_allclose(found[b, i], prototype, rtol=1e-12)
        for t in range(4):
            expected = softmax([dot(found[b, i], keys[b, t, n]) / math.sqrt(8) for n in range(10)])
            np.testing.assert_allclose(tracks[b, i, t], expected, rtol=1e-9)


@pytest.mark.parametrize("per_batch", [False, True])
def test_hard_masks_equal_the_plain_loop(per_batch: bool) -> None:
    tracks = normal(3, 2, 4, 10).softmax(-1)
    masks = hard_masks(tracks, per_batch=per_batch)
    unit = [[[[x / math.sqrt(dot(m, m)) for x in m.tolist()] for m in clip] for clip in sample] for sample in tracks]
    for b, i, t in itertools.product(range(3), range(2), range(4)):
        pool = [x for a in range(3) for x in unit[a][i][t]] if per_batch else unit[b][i][t]
        assert masks[b, i, t].tolist() == [float(x > sum(pool) / len(pool)) for x in unit[b][i][t]]


def test_soft_masks_span_zero_to_one() -> None:
    tracks = normal(3, 2, 4, 10).softmax(-1)
    masks = soft_masks(tracks)
    assert torch.equal(masks.amin(-1), torch.zeros(3, 2, 4, dtype=torch.float64))
    torch.testing.assert_close(masks.amax(-1), torch.ones(3, 2, 4, dtype=torch.float64))
    assert torch.equal(masks.argsort(-1), tracks.argsort(-1))


def test_shown_objects_equal_the_plain_loop() -> None:
    views, masks = normal(2, 3, 3, 8, 12), normal(2, 2, 3, 6, seed=1).softmax(-1)
    shown = apply_masks(views, masks, (2, 3))
    for b, i, t, y, x in itertools.product(range(2), range(2), range(3), range(8), range(12)):
        patch = (y // 4) * 3 + x // 4
        torch.testing.assert_close(shown[b, i, t, :, y, x], views[b, t, :, y, x] * masks[b, i, t, patch])


def plain_cross_entropy(target: Tensor, logits: Tensor, temperature: float) -> float:
    probabilities = softmax([x / temperature for x in logits.tolist()])
    return -sum(p * math.log(q) for p, q in zip(target.tolist(), probabilities, strict=True))


def test_frame_terms_equal_the_plain_loop() -> None:
    samples, views, frames, objects, crops, protos = 2, 2, 3, 2, 3, 7
    targets = normal(samples * views, frames, protos).softmax(-1)
    masked, local = normal(objects, samples * views, frames, protos, seed=1), normal(crops, samples, frames, protos, seed=2)
    mask_terms, local_terms = frame_terms(targets, masked, local, 0.1)
    for t in range(frames):
        for i in range(objects):
            terms = [plain_cross_entropy(targets[b, t], masked[i, b, t], 0.1) for b in range(samples * views)]
            assert mask_terms[i, t].item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)
        pairs = itertools.product(range(crops), range(samples), range(views))
        terms = [plain_cross_entropy(targets[b * views + g, t], local[v, b, t], 0.1) for v, b, g in pairs]
        assert local_terms[t].item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_total_loss_with_and_without_the_released_carry_over() -> None:
    mask_terms, local_terms = normal(3, 8).float(), normal(8, seed=1).float()
    # the release's accumulation: one running value over frames that the next object starts from
    losses, running = [], 0.0
    clean = []
    for i in range(3):
        clean.append(0.0)
        for t in range(8):
            term = 0.5 * (mask_terms[i, t].item() + local_terms[t].item())
            running += term
            clean[-1] += term / 8
        running /= 8
        losses.append(running)
    assert total_loss(mask_terms, local_terms, carry_over=True).item() == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert total_loss(mask_terms, local_terms, carry_over=False).item() == pytest.approx(sum(clean) / 3, rel=1e-5)
    ones = total_loss(torch.ones(3, 8), torch.ones(8), carry_over=True)
    assert ones.item() == pytest.approx((1.140625 + 1.125 + 1) / 3)


# -- properties ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"hard_masks": True}, {"compat": "released", "loss_carry_over": False}])
def test_the_order_of_objects_does_not_matter(changes: dict[str, Any]) -> None:
    settings = small_settings(**changes)
    batch, losses = random_batch(settings), []
    for heads in ([0, 3, 5], [5, 0, 3]):
        method = small_method(settings)
        method.sample_heads = lambda generator, heads=heads: torch.tensor(heads)  # type: ignore[method-assign]
        losses.append(take_step(method, batch)[0].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize(("batch", "frames", "objects", "views"), [(1, 1, 1, 1), (1, 3, 3, 2), (3, 1, 2, 1), (2, 2, 6, 2)])
@pytest.mark.parametrize("compat", ["paper", "released"])
def test_every_size_gives_a_finite_loss_and_gradient(batch: int, frames: int, objects: int, views: int, compat: str) -> None:
    settings = small_settings(compat=compat, frames=frames, objects=objects, global_views=views, local_crops=2)
    method = small_method(settings)
    loss, logs = take_step(method, random_batch(settings, batch))
    loss.backward()
    assert 0 < loss < 20
    assert all(torch.isfinite(p.grad).all() for p in method.student.parameters() if p.requires_grad)
    assert all(p.grad is None for p in method.teacher.parameters())
    assert set(logs) == {"loss_mask", "loss_local", "teacher_entropy", "teacher_mean_entropy", "mask_keep", "object_overlap"}
    assert 0 < logs["mask_keep"] < 1
    assert 0 <= logs["object_overlap"] <= logs["mask_keep"]


@pytest.mark.parametrize("compat", ["paper", "released"])
def test_bfloat16_step_is_close_to_float32(compat: str) -> None:
    settings = small_settings(compat=compat)
    high, _ = take_step(small_method(settings), random_batch(settings))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low, logs = take_step(small_method(settings), random_batch(settings))
    assert low.item() == pytest.approx(high.item(), rel=0.1)
    assert all(value.dtype == torch.float32 for value in logs.values())


def test_clips_do_not_influence_each_other() -> None:
    settings = small_settings(local_crops=1)
    method = small_method(settings)
    batch = random_batch(settings, batch=3)
    heads = method.sample_heads(torch.Generator().manual_seed(0))
    whole, alone = (
        object_masks(tracks_of(method, method.encode_teacher(views.flatten(0, 1)), heads), method.settings)
        for views in (batch["global"], batch["global"][1:2])
    )
    torch.testing.assert_close(whole[2:4], alone, atol=1e-4, rtol=1e-4)


def test_logarithms_and_products_agree_in_float64() -> None:
    found, patches = 0.05 * normal(2, 3, 8), normal(2, 30, 8, seed=1)
    results = [refine_prototypes(found, patches, small_settings(linear_sinkhorn=linear)) for linear in (False, True)]
    torch.testing.assert_close(results[0], results[1], rtol=1e-10, atol=1e-13)


FOLLOWING = {name: (facts.values["paper"], facts.values["released"]) for name, facts in DoraSettings.switches().items() if facts.by}


@pytest.mark.parametrize("switch", [*FOLLOWING])
def test_every_switch_changes_the_step(switch: str) -> None:
    base = {"compat": "paper", "hard_masks": True, "global_views": 1} if switch == "batch_threshold" else {"compat": "paper"}
    batch = random_batch(small_settings(global_views=2))
    losses = []
    for value in FOLLOWING[switch]:
        settings = small_settings(**{**base, switch: value})
        views = settings.resolved().global_views
        method = sharpen(small_method(settings))
        try:
            losses.append(take_step(method, {**batch, "global": batch["global"][:, :views]})[0].item())
        except TrainingError:
            losses.append(float("nan"))
    assert math.isfinite(losses[0])
    assert losses[0] != losses[1]


def sharpen(method: Dora) -> Dora:
    """Larger queries: assignments so peaked that products underflow."""
    for network in (method.teacher, method.student):
        block = network.backbone.vit.blocks[-1]
        with torch.no_grad():
            block.attn.qkv.weight.mul_(60)
    return method


def test_switches_follow_compat_unless_set() -> None:
    paper, released = DoraSettings().resolved(), DoraSettings(compat="released").resolved()
    for name, (in_paper, in_release) in FOLLOWING.items():
        assert (getattr(paper, name), getattr(released, name)) == (in_paper, in_release)
    mixed = DoraSettings(compat="released", hard_masks=False).resolved()
    assert mixed.hard_masks is False
    assert mixed.loss_carry_over is True


def test_heads_are_drawn_from_the_step_s_generator() -> None:
    method = small_method(small_settings())
    draws = [tuple(method.sample_heads(torch.Generator().manual_seed(seed)).tolist()) for seed in (0, 0, *range(1, 30))]
    assert draws[0] == draws[1]
    assert all(len(set(draw)) == 3 and set(draw) <= set(range(6)) for draw in draws)
    assert len(set(draws)) > 10
    method.settings = method.settings.model_copy(update={"unseeded_heads": True})
    assert len({tuple(method.sample_heads(torch.Generator().manual_seed(0)).tolist()) for _ in range(30)}) > 5


# -- training --------------------------------------------------------------------------------------------------------


def test_learns_one_batch() -> None:
    settings = small_settings(
        batch_size=256, lr=2e-3, teacher_momentum=1.0, freeze_last_layer_epochs=0, warmup_epochs=0, clip_grad=None, epochs=40
    )
    method = small_method(settings, total=40)
    optimizer = make_optimizer(method)
    batch = random_batch(settings)
    excess = []
    for at in range(40):
        set_schedules(optimizer, at)
        loss, logs = take_step(method, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.center.zero_()
        excess.append(loss.item() - logs["teacher_entropy"].item())
    assert excess[-1] < 0.3 * excess[0]


def test_prototypes_wait_and_gradients_are_clipped() -> None:
    settings = small_settings(clip_grad=0.01)
    method = small_method(settings, total=10, per_epoch=2)
    for at, frozen in ((0, True), (1, True), (2, False)):
        take_step(method, random_batch(settings), at)[0].backward()
        method.after_backward(at)
        assert (method.student.head.last_layer.weight_v.grad is None) == frozen
        norms = [p.grad.norm().item() for p in method.student.parameters() if p.grad is not None]
        assert max(norms) <= 0.01 * 1.0001
        method.zero_grad()


def test_teacher_follows_and_is_handed_on() -> None:
    method = small_method(small_settings())
    with torch.no_grad():
        for p in method.student.parameters():
            p.add_(1.0)
    before = method.teacher.backbone.vit.pos_embed.clone()
    method.after_update(0)
    torch.testing.assert_close(method.teacher.backbone.vit.pos_embed, before + 0.004)
    assert method.export() is method.teacher.backbone
    method.train()
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(method.export().cls(images), method.export().eval().cls(images))


def test_nan_ends_the_training_and_leaves_the_batch_behind(tmp_path: Path) -> None:
    settings = small_settings()
    method = small_method(settings)
    method.diagnostics = tmp_path
    batch = random_batch(settings)
    batch["global"][1, 0, 0, 0, 0, 0] = float("nan")
    with pytest.raises(TrainingError, match=r"step 7: .*NaN.*failed-step-00000007"):
        take_step(method, batch, step=7)
    (path,) = tmp_path.iterdir()
    saved = torch.load(path, weights_only=True)
    assert saved["step"] == 7
    torch.testing.assert_close(saved["batch"], batch, equal_nan=True)


@pytest.mark.parametrize("hard", [False, True])
def test_an_object_without_patches_ends_the_training(hard: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small_settings(hard_masks=hard)
    method = small_method(settings)
    monkeypatch.setattr(dora, "track_objects", lambda found, keys: torch.full((4, 3, 3, 16), 1 / 16))
    with pytest.raises(TrainingError, match="36 of 36 tracked objects have no patch"):
        take_step(method, random_batch(settings))


@pytest.mark.parametrize("compat", ["paper", "released"])
def test_a_batch_in_parts_equals_the_whole(compat: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"batch_threshold": False, "linear_sinkhorn": False, "clip_grad": 0.3, "freeze_last_layer_epochs": 0}
    settings = small_settings(compat=compat, batch_size=4, **changes)
    batch, results = random_batch(settings, batch=4), []
    for parts in (1, 2, 4):
        method = sharpen(small_method(settings))  # else all heads look at much the same, and it matters little which are drawn
        monkeypatch.setattr(method, "prepare", lambda views, device: views)  # the batch is one of views
        optimizer = make_optimizer(method)
        for at in range(2):  # the second step's targets are centered by the first one's
            loss, _ = loop.one_step(method, optimizer, loop.split(batch, parts), at, 0, Execution(), torch.device("cpu"))
        gradients = torch.cat([p.grad.flatten() for p in method.student.parameters() if p.grad is not None])
        results.append((loss, method.center.clone(), gradients))
    for whole, *accumulated in zip(*results, strict=True):
        assert all((whole - x).norm() < 1e-5 * whole.norm() for x in accumulated)


def test_the_released_underflow_ends_the_training() -> None:
    settings = small_settings(compat="released")
    with pytest.raises(TrainingError, match="no patch to show"):
        take_step(sharpen(small_method(settings)), random_batch(settings))


# -- what the user gets wrong ----------------------------------------------------------------------------------------


def test_refusals() -> None:
    backbone = create("vit_nano_patch16", seed=0)
    with pytest.raises(UserError, match=r"objects 7 .* allowed: 1 to 6"):
        Dora(small_settings(objects=7), backbone, 5, 1, seed=0)
    with pytest.raises(UserError, match="local_size 40 is not a multiple of the patch size 16"):
        Dora(small_settings(local_size=40), backbone, 5, 1, seed=0)
    with pytest.raises(UserError, match=r"warmup_epochs 9 are 9 steps, the training has 5"):
        small_method(small_settings(warmup_epochs=9))
    with pytest.raises(UserError, match="learns from videos, pets holds images"):
        Dora.dataset(small_settings(), [Source("pets", images_receipt("pets"))])
    with pytest.raises(UserError, match=r"images\.davis\.fps is not given, but a clip's frames are 1 s apart"):
        Dora.dataset(small_settings(), [Source("davis", sequences_receipt("davis"))])
    with pytest.raises(UserError, match=r"davis has a frame every 0\.1 s: 0\.04 s between frames is less"):
        Dora.dataset(small_settings(spacing_seconds=0.04), [Source("davis", sequences_receipt("davis", fps=10.0))])
    with pytest.raises(ValueError, match="skip_first_local_crop leaves none"):
        small_settings(compat="released", local_crops=1)


# -- views -----------------------------------------------------------------------------------------------------------


def test_clips_of_folders_of_frames_stay_inside_their_sequence(tmp_path: Path) -> None:
    for name, length in {"car": 7, "short": 4, "swan": 5, "unlisted": 9}.items():
        (tmp_path / "frames" / name).mkdir(parents=True)
        for number in range(length):
            Image.new("RGB", (6, 4), (ord(name[0]), number, 0)).save(tmp_path / "frames" / name / f"{number}.png")
    (tmp_path / "list.txt").write_text("swan\nshort\ncar\n")
    listed = str(tmp_path / "list.txt")
    wanted = ImagesSettings(source=str(tmp_path / "frames"), layout="sequences", sequence_list=listed, fps=10.0)
    source = Source("davis", check_images(wanted, "davis"))
    clips = open_clips(source, frames=3, spacing_seconds=0.2)
    expected = [("car", [0, 2, 4]), ("car", [1, 3, 5]), ("car", [2, 4, 6]), ("swan", [0, 2, 4])]
    found = [clips[i] for i in range(len(clips))]  # type: ignore[arg-type]
    assert [(chr(int(c[0, 0, 0, 0])), c[:, 1, 0, 0].tolist()) for c in found] == [(name[0], numbers) for name, numbers in expected]
    assert all(c[:, 0].unique().numel() == 1 for c in found), "a clip shows one sequence"
    with pytest.raises(UserError, match=r"a clip of 3 frames, every 4 frames, takes 9; the longest sequence has 7"):
        open_clips(source, frames=3, spacing_seconds=0.4)
    sample = Dora.dataset(small_settings(frames=3, spacing_seconds=0.2), [source])[Item(3, seed=0)]
    assert sample["clip"].shape == (3, 86, 86, 3)  # 64 px views of a clip of 86, as 224 of 300


class StillClips(Dataset[Tensor]):
    """Every frame of a clip is the same picture."""

    def __init__(self, frames: int) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Tensor:
        generator = torch.Generator().manual_seed(index)
        image = torch.randint(0, 256, (1, 3, 90, 120), dtype=torch.uint8, generator=generator)
        return image.expand(self.frames, -1, -1, -1)


def views_of(settings: DoraSettings, seed: int, index: int = 0, *, plain: bool = False) -> dict[str, Tensor]:
    """One sample's views; plain: without flips and colors."""
    batch = default_collate([DoraClips(StillClips(3), settings)[Item(index, seed=seed)]])
    if plain:
        for kind in ("global", "local"):
            batch[f"{kind}_distortions"] = torch.tensor(Distortion(), dtype=torch.float64).expand_as(batch[f"{kind}_distortions"])
    return {kind: x[0] for kind, x in make_views(batch, settings, torch.device("cpu")).items()}


def test_views_depend_on_the_item_alone() -> None:
    settings = small_settings().resolved()
    assert len(DoraClips(StillClips(3), settings)) == 5
    first = views_of(settings, 7, 2)
    torch.manual_seed(1)
    again, other = views_of(settings, 7, 2), views_of(settings, 8, 2)
    assert first["global"].shape == (2, 3, 3, 64, 64)
    assert first["local"].shape == (3, 3, 3, 32, 32)
    assert torch.equal(first["global"], again["global"])
    assert torch.equal(first["local"], again["local"])
    assert not torch.equal(first["global"], other["global"])


def test_global_views_are_consistent_in_time_and_local_crops_are_not() -> None:
    sample = views_of(small_settings().resolved(), 3, plain=True)
    assert torch.equal(sample["global"][:, 0], sample["global"][:, 2])
    assert not torch.equal(sample["global"][0], sample["global"][1])
    assert not torch.equal(sample["local"][:, 0], sample["local"][:, 2])


def test_colors_differ_between_frames() -> None:
    sample = views_of(small_settings().resolved(), 3)
    assert not torch.equal(sample["global"][0, 0], sample["global"][0, 2])


# -- KoLeo -----------------------------------------------------------------------------------------------------------


def test_koleo_spreads_the_frames_of_each_object_and_view_apart() -> None:
    objects, samples, views, frames = 2, 3, 2, 4
    features = torch.randn(objects, samples * views, frames, 5, generator=torch.Generator().manual_seed(0))
    terms = []
    for i, g in itertools.product(range(objects), range(views)):
        rows = [features[i, s * views + g, t] for s in range(samples) for t in range(frames)]
        unit = [row / row.norm() for row in rows]
        for a in range(len(unit)):
            nearest = max((b for b in range(len(unit)) if b != a), key=lambda b: float(unit[a] @ unit[b]))
            terms.append(-math.log(float((unit[a] - unit[nearest]).norm()) + 1e-8))
    assert koleo_of_frames(features, samples).item() == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_koleo_adds_its_weight() -> None:
    plain, _ = take_step(small_method(small_settings()), random_batch(small_settings()))
    settings = small_settings(koleo_weight=0.1)
    loss, logs = take_step(small_method(settings), random_batch(settings))
    assert logs["loss_koleo"] != 0
    assert (loss - plain).item() == pytest.approx(0.1 * logs["loss_koleo"].item(), rel=1e-4)


# -- pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compat", ["paper", "released"])
def test_images_show_what_the_student_is_shown(compat: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small_settings(compat=compat, global_size=32, unseeded_heads=True)
    method, data, drawn = small_method(settings).eval(), DoraClips(StillClips(3), settings.resolved()), []
    monkeypatch.setattr(dora, "write_tracking_strip", lambda path, clips: drawn.append((path, clips)))
    for noise in range(2):
        torch.manual_seed(noise)
        method.pictures(data, tmp_path)
    (path, clips), (_, again) = drawn
    assert path == tmp_path / "objects.png"
    kinds = ("what the student is shown", "whose attention is largest")
    assert [clip.title for clip in clips] == [f"clip {i} of 5: {kind}" for i in (0, 1, 3, 4) for kind in kinds]
    # 90 x 120 px with a short side of twice 32 px in patches of 16
    assert clips[0].frames.shape == (3, 64, 80, 3)
    assert clips[0].masks.shape == (3, 3, 4, 5)
    assert all(np.array_equal(one.masks, two.masks) for one, two in zip(clips, again, strict=True))
    view = normalize(torch.from_numpy(clips[2].frames).permute(0, 3, 1, 2) / 255)
    seen = method.encode_teacher(view[None])
    heads = torch.arange(3)
    expected = object_masks(tracks_of(method, seen, heads), method.settings)[0].unflatten(-1, (4, 5))
    np.testing.assert_allclose(clips[2].masks, expected, atol=1e-6)
    tracks = tracks_of(method, seen, heads)[0].unflatten(-1, (4, 5))
    for t, row, column in np.ndindex(3, 4, 5):
        largest = max(range(3), key=lambda i: tracks[i, t, row, column])
        assert clips[3].masks[:, t, row, column].tolist() == [float(i == largest) for i in range(3)]


def test_spread_stays_away_from_the_ends() -> None:
    assert features.evenly_spaced(100, 4) == [12, 37, 62, 87]
    assert features.evenly_spaced(2, 4) == [0, 1]


# -- whole runs ------------------------------------------------------------------------------------------------------


def run(method: Dora, data: Dataset[dict[str, Tensor]], folder: Path, batch_size: int) -> None:
    """Train to the end."""
    execution = Execution(workers=0, metrics_every=1, checkpoint_minutes=0)
    with State(folder, {"data": "test"}) as state:
        loop.train(method, data, batch_size=batch_size, seed=3, state=state, execution=execution, device=torch.device("cpu"))


def test_a_run_on_two_videos(tmp_path: Path) -> None:
    sources = []
    for number in range(2):
        pictures = np.random.default_rng(number).integers(0, 256, (9, 1, 1, 3), dtype=np.uint8)
        gradient = np.arange(96, dtype=np.uint8)[None, None, :, None]
        write_video(tmp_path / f"{number}.mp4", list(np.broadcast_to(pictures // 2 + gradient, (9, 64, 96, 3))), fps=4.0)
        wanted = VideoSettings(source=str(tmp_path / f"{number}.mp4"), min_frozen_seconds=9)
        sources.append(Source(f"v{number}", transcode(wanted, tmp_path / f"{number}-copy.mp4")))
    settings = small_settings(spacing_seconds=0.5, local_crops=1, drop_path=0.1, warmup_epochs=0)
    data = Dora.dataset(settings, sources)
    # 9 frames at 4 a second: clips of 3 frames, 2 frames apart, start at frames 0 to 4
    assert len(data) == 10  # type: ignore[arg-type]
    for i in range(10):  # a clip never mixes videos
        own = VideoClips(sources[i // 5].receipt, 3, 0.5).read([i % 5, i % 5 + 2, i % 5 + 4])
        assert torch.equal(data.clips[i], own)  # type: ignore[attr-defined]
    run(small_method(settings, total=3, per_epoch=5), data, tmp_path / "state", batch_size=2)
    curve = [json.loads(line) for line in (tmp_path / "state" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in curve] == [0, 1, 2]
    assert all(math.isfinite(value) for line in curve for value in line.values())


def test_a_run_stopped_inside_an_epoch_resumes_to_the_same_weights(tmp_path: Path) -> None:
    settings = small_settings(batch_size=2, local_crops=1, drop_path=0.1)
    data = DoraClips(StillClips(3), settings.resolved())  # five clips: two steps an epoch

    class Stopped(Dora):
        def step(self, batch: dict[str, Tensor], step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
            if step == 3:
                raise KeyboardInterrupt
            return super().step(batch, step, generator)

    whole, resumed = (small_method(settings, total=5, per_epoch=2) for _ in range(2))
    run(whole, data, tmp_path / "whole", batch_size=2)
    with pytest.raises(KeyboardInterrupt):
        run(Stopped(settings, create("vit_nano_patch16", seed=1), 5, 2, seed=0), data, tmp_path / "parts", batch_size=2)
    run(resumed, data, tmp_path / "parts", batch_size=2)
    one, other = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def small_video_curve(folder: Path, steps: int, **changes: Any) -> dict[str, np.ndarray]:
    """The preset's learning curve on five still clips of noise, with a smaller network and smaller views."""
    settings = DoraSettings(preset="small_video", steps=steps, warmup_epochs=0, global_size=64, local_size=32, **changes)
    method = Dora(settings, create("vit_nano_patch16", seed=1), steps, 1, seed=0)
    run(method, DoraClips(StillClips(settings.frames), settings.resolved()), folder, settings.batch_size)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {key: np.array([line[key] for line in lines]) for key in ("loss_mask", "loss_local", "teacher_mean_entropy")}


@pytest.mark.slow
def test_the_preset_for_small_videos_learns_where_a_mean_collapses(tmp_path: Path) -> None:
    curve = small_video_curve(tmp_path / "sinkhorn", steps=60)
    # a student that ignored its picture could at best predict the targets' mean
    cross_entropy = (curve["loss_mask"] + curve["loss_local"]) / 2
    assert (curve["teacher_mean_entropy"] - cross_entropy)[-10:].mean() > 0.1
    assert curve["teacher_mean_entropy"].min() > 0.95 * FULL
    assert small_video_curve(tmp_path / "mean", steps=20, centering="mean")["teacher_mean_entropy"].max() < 0.5 * FULL


def noise_run(folder: Path, centering: str) -> Dora:
    """Three steps on four clips each, spread over however many processes there are."""
    settings = small_settings(batch_size=4, local_crops=1, lr=0.1, centering=centering)
    method = small_method(settings, total=3, per_epoch=1)
    run(method, DoraClips(StillClips(3), settings.resolved()), folder / f"{centering}-{distributed.rank()}", batch_size=4)
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
        "tests.methods.test_dora",
        str(tmp_path),
    ]
    subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
    for centering in CENTERINGS:
        both, images = small_method(small_settings()), torch.randn(4, 3, 64, 64)
        start = both.student.backbone.cls(images)
        both.load_state_dict(torch.load(tmp_path / f"{centering}.pt", weights_only=True))
        alone = noise_run(tmp_path / "alone", centering)
        torch.testing.assert_close(both.center, alone.center, atol=1e-4, rtol=0)
        # compared by their output: the gradient of the keys' bias, and thus AdamW's step, is rounding noise
        ends = [method.student.backbone.cls(images) for method in (both, alone)]
        assert (ends[0] - ends[1]).norm() < 0.01 * (ends[0] - start).norm(), centering


if __name__ == "__main__":
    torch.set_num_threads(1)
    with distributed.process_group(torch.device("cpu")):
        for name in CENTERINGS:
            trained = noise_run(Path(sys.argv[1]), name)
            if distributed.rank() == 0:
                torch.save(trained.state_dict(), Path(sys.argv[1]) / f"{name}.pt")
