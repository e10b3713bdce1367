"""iBOT and DINOv2: masks and losses against plain loops, their recipes, and what every method promises."""

import math
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, default_collate

from densewalk.core.errors import UserError
from densewalk.methods.dinov2.method import DinoV2
from densewalk.methods.dinov2.settings import DinoV2Settings
from densewalk.methods.ibot.augmentation import MaskedCrops
from densewalk.methods.ibot.losses import masked_places, patch_loss
from densewalk.methods.ibot.masks import batch_shares, dinov2_rule, draw_blocks, draw_single, ibot_rule, view_shares
from densewalk.methods.ibot.method import METHOD as Ibot
from densewalk.methods.ibot.method import on_device
from densewalk.methods.ibot.settings import IbotSettings
from densewalk.models.export import export_backbone
from densewalk.models.loading import create, load
from densewalk.models.surgery import resize_positions
from densewalk.ops.cpu import switch
from densewalk.ops.cpu.stochastic_depth import BatchSubset, residual
from densewalk.training.sampler import Item
from tests.fixtures.methods.runs import CPU, Images, require_equal_parts, require_equal_processes, require_exact_resume
from tests.models.test_work import step_of

VIEWS = {"global_size": 64, "local_size": 32, "local_crops": 2, "batch_size": 4, "steps": 3, "warmup_epochs": 0}
FEW = {"local_crops": 0, "batch_size": 2}  # where whole trainings are compared
SMALL = {**VIEWS, "out_dim": 64, "head_hidden": 32, "head_bottleneck": 16, "drop_path": 0.0}
KINDS = {"ibot": (Ibot, IbotSettings), "dinov2": (DinoV2, DinoV2Settings)}
LR = {"ibot": {"lr": 0.02}, "dinov2": {"lr": 0.01, "epoch_steps": 2}}


def settings(kind="ibot", **changes):
    return KINDS[kind][1](**{**SMALL, **LR[kind], **changes})


def made(kind="ibot", **changes):
    return KINDS[kind][0](settings(kind, **changes), create("vit_nano_patch16", seed=1), 3, 2, seed=0)


def crops(kind="ibot", **changes):
    return MaskedCrops(Images(3, 80, 96), settings(kind, **changes))


def batch_of(method, kind="ibot", count=4):
    samples = crops(kind, **{n: getattr(method.settings, n) for n in ("mask_rule", "mask_probability")})
    return method.prepare(default_collate(samples.__getitems__([Item(i, seed=i) for i in range(count)])), CPU)


# -- masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [10, 58, 97.5])
@pytest.mark.parametrize("kind", ["ibot", "dinov2"])
def test_masks_have_about_as_many_patches_as_asked_for_and_never_more(kind, target):
    rule = ibot_rule((14, 14)) if kind == "ibot" else dinov2_rule(224, 16)
    counts = [int(draw_blocks((14, 14), target, rule, Random(seed)).sum()) for seed in range(60)]
    assert max(counts) <= target
    assert np.mean(counts) > (0.9 if kind == "dinov2" or target > 16 else 0.4) * target
    assert not draw_blocks((14, 14), 0, rule, Random(0)).any()


def test_the_largest_block_is_rounded_as_released():
    assert [dinov2_rule(size, patch).largest for size, patch in ((224, 16), (224, 14), (518, 14))] == [98, 128, 666]


def test_blocks_fit_into_rectangles():
    for seed in range(20):
        mask = draw_blocks((12, 8), 40, dinov2_rule(128, 16), Random(seed))
        assert mask.shape == (12, 8)
        assert 0 < mask.sum() <= 40
    assert draw_single((3, 5), 7, Random(0)).sum() == 7


def test_shares_of_views_and_of_a_batch():
    shares = view_shares(2000, 0.5, (0.1, 0.5), Random(0))
    masked = [share for share in shares if share]
    assert len(masked) == pytest.approx(1000, abs=80)
    assert np.mean(masked) == pytest.approx(0.3, abs=0.02)
    dealt = sorted(batch_shares(8, 0.5, (0.1, 0.5), Random(0)))
    assert dealt[:4] == [0] * 4
    assert all(0.1 * (i + 1) <= share <= 0.1 * (i + 2) for i, share in enumerate(dealt[4:]))


def test_masks_depend_on_the_samples_of_the_batch_alone():
    data = crops("dinov2")
    items = [Item(i, seed=10 + i) for i in range(4)]
    loader = DataLoader(data, batch_sampler=[items], num_workers=0)
    (batch,) = loader
    torch.manual_seed(5)
    again = default_collate(data.__getitems__(items))
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert (batch["mask_share"] > 0).sum() == 4, "half of the eight views"
    alone = crops("ibot")[Item(1, seed=3)]
    assert torch.equal(alone["mask_share"], crops("ibot").__getitems__([Item(0, seed=2), Item(1, seed=3)])[1]["mask_share"])


# -- formulas ----------------------------------------------------------------------------------------------------------


def test_patch_loss_equals_the_plain_loop():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(2, 3, 9, generator=generator) < 0.4
    masks[1, 2] = False
    targets = torch.randn(2, 3, 9, 5, dtype=torch.float64, generator=generator).softmax(-1)
    logits = torch.randn(2, 3, 9, 5, dtype=torch.float64, generator=generator)
    total = 0.0
    for view in range(2):
        for b in range(3):
            own = [i for i in range(9) if masks[view, b, i]]
            for i in own:
                exponentials = [math.exp(x / 0.1) for x in logits[view, b, i].tolist()]
                logs = [math.log(e / sum(exponentials)) for e in exponentials]
                total -= sum(t * x for t, x in zip(targets[view, b, i].tolist(), logs, strict=True)) / len(own) / 6
    places, weights = masked_places(masks)
    chosen = [x.flatten(0, 2)[places].float() for x in (targets, logits)]
    assert patch_loss(*chosen, weights, 0.1).item() == pytest.approx(total, rel=1e-5)
    none = masked_places(torch.zeros_like(masks))
    assert patch_loss(chosen[0][:0], chosen[1][:0], none[1], 0.1).item() == 0


@pytest.mark.parametrize("kind", ["ibot", "dinov2"])
def test_a_step_equals_its_definition(kind):
    """Logits of all patches, view by view and pair by pair."""
    method = made(kind, koleo_weight=0.1)
    method.center.normal_(std=0.1)
    method.patch_center.normal_(std=0.1)
    with torch.no_grad():
        method.student.mask_token.normal_()
    batch = batch_of(method, kind)
    loss, logs = method.step(batch, 0, torch.Generator())
    with torch.no_grad():
        teacher = [method.teacher.encode(batch["global"][:, v]) for v in range(2)]
        student = [method.student.encode(batch["global"][:, v], batch["masks"][v]) for v in range(2)]
        answers = [method.student.head(cls) for cls, _ in student] + [
            method.student.head(method.student.backbone.cls(v)) for v in batch["local"].unbind(1)
        ]
        targets = [((method.teacher.head(cls) - method.center) / 0.04).softmax(-1) for cls, _ in teacher]
        pairs = [-(targets[q] * (answers[v] / 0.1).log_softmax(-1)).sum(-1).mean() for q in range(2) for v in range(4) if q != v]
        patches = []
        for v in range(2):
            target = ((method.teacher.head(teacher[v][1]) - method.patch_center) / 0.04).softmax(-1)
            entropies = -(target * (method.student.head(student[v][1]) / 0.1).log_softmax(-1)).sum(-1)
            patches += [entropies[b][batch["masks"][v, b]].sum() / max(1, int(batch["masks"][v, b].sum())) for b in range(4)]
        spread = 0.0
        for cls, _ in student:
            unit = cls / cls.norm(dim=1, keepdim=True)
            spread -= sum(math.log(min(float((unit[i] - unit[j]).norm()) for j in range(4) if j != i)) for i in range(4)) / 4
    expected = float(sum(pairs) / 6 + sum(patches) / 8 + 0.1 * spread)
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert logs["loss_koleo"].item() == pytest.approx(spread, rel=1e-4)
    chosen = [x[1].flatten(0, 1) for x in teacher]
    used = torch.cat(chosen) if kind == "ibot" else torch.cat(chosen)[batch["places"]]
    expected_center = method.patch_center.lerp(method.teacher.head(used).mean(0), 0.1)
    method.update_center()
    torch.testing.assert_close(method.patch_center, expected_center, atol=1e-5, rtol=1e-4)


def test_masked_patches_are_replaced_before_their_positions():
    method = made()
    with torch.no_grad():
        method.student.mask_token.normal_()
    images = torch.randn(2, 3, 64, 64)
    masks = torch.zeros(2, 16, dtype=torch.bool)
    masks[:, 5] = True
    other = images.clone()
    other[:, :, 16:32, 16:32] = 7.0
    assert torch.equal(method.student.encode(images, masks)[1], method.student.encode(other, masks)[1])
    assert not torch.equal(method.student.encode(images)[1], method.student.encode(other)[1])
    x, _ = method.student.backbone.embed(images, (masks, method.student.mask_token))
    torch.testing.assert_close(x[:, 6], (method.student.mask_token + method.student.backbone.positions((4, 4))[0][:, 5]).expand(2, -1))


def test_without_masks_nothing_is_learned_of_patches():
    method = made(mask_probability=0.5)
    batch = batch_of(method)
    batch |= on_device(torch.zeros_like(batch["masks"]), CPU)
    loss, logs = method.step(batch, 0, torch.Generator())
    assert logs["loss_patch"] == 0
    loss.backward()
    assert method.student.mask_token.grad is None or not method.student.mask_token.grad.any()
    method.after_backward(0)
    assert method.patch_center.isfinite().all()


@pytest.mark.parametrize(("head", "names"), [("shared", 0), ("separate", 8), ("shared_mlp", 2)])
def test_heads(head, names):
    method = made("dinov2", head=head, patch_out_dim=24, centering="sinkhorn")
    assert len([n for n in method.student.state_dict() if n.startswith(("patch_head", "patch_layer"))]) == names
    loss, _ = method.step(batch_of(method, "dinov2"), 0, torch.Generator())
    loss.backward()
    assert all(p.grad is not None for p in method.student.parameters() if p.requires_grad)
    assert all(p.grad is None for p in method.teacher.parameters())


# -- optimization ------------------------------------------------------------------------------------------------------


def test_rates_of_layers_and_frozen_prototypes():
    backbone = create("vit_micro_patch16", seed=0)
    method = DinoV2(DinoV2Settings(**{**SMALL, "drop_path": 0.3, "warmup_epochs": 2, "steps": 20}), backbone, 20, 4, seed=0)
    names = {id(p): n for n, p in method.student.named_parameters()}
    found = {names[id(p)]: (g.lr[10] / method.lr[10], g.lr[2], g.weight_decay[0]) for g in method.param_groups() for p in g.params}
    assert method.lr[7] == pytest.approx(4e-3 * math.sqrt(4 / 1024))
    for name, factor in (
        *((f"backbone.vit.blocks.{i}.mlp.fc1.weight", 0.9 ** (4 - i)) for i in range(4)),
        *((f"backbone.vit.{name}", 0.9**5) for name in ("cls_token", "pos_embed")),
        ("mask_token", 0.9**5),
        ("backbone.vit.patch_embed.proj.weight", 0.2 * 0.9**5),
        ("backbone.vit.norm.weight", 1),
        ("head.mlp.0.weight", 1),
    ):
        assert found[name][0] == pytest.approx(factor), name
    assert found["head.last_layer.weight_v"][:2] == (pytest.approx(1), 0)
    assert found["head.mlp.0.weight"][1] > 0
    assert {n for n, (_, _, decay) in found.items() if not decay} == {n for n in found if n.endswith(".bias") or "norm" in n}
    kinds = {type(m) for n, m in method.student.named_modules() if n.endswith(("drop_path1", "drop_path2"))}
    assert kinds == {BatchSubset}
    assert len(set(found)) == len([p for p in method.student.parameters() if p.requires_grad])


def test_clipping_of_whole_networks():
    method = made("dinov2", clip_grad=0.01)
    loss, _ = method.step(batch_of(method, "dinov2"), 0, torch.Generator())
    (100 * loss).backward()
    method.after_backward(0)
    for part in method.student.parts():
        norm = torch.stack([p.grad.norm() for p in part if p.grad is not None]).norm()
        assert norm.item() == pytest.approx(0.01, rel=1e-3)


def test_biases_of_queries_and_values_have_no_weight_decay():
    method = KINDS["dinov2"][0](settings("dinov2"), create("vit_nano_patch16_rope", seed=1), 3, 2, seed=0)
    names = {id(p): name for name, p in method.student.named_parameters()}
    decays = {names[id(p)]: bool(group.weight_decay.any()) for group in method.param_groups() for p in group.params}
    assert not any(decays[name] for name in decays if name.endswith("bias"))
    assert {name.rpartition(".")[2] for name in decays if "attn" in name and not decays[name]} >= {"q_bias", "v_bias"}
    assert decays["backbone.vit.blocks.0.attn.qkv.weight"]


def test_temperatures_by_epoch_and_by_step():
    by_epoch = made("ibot", teacher_temperature_epochs=2, patch_temperature=0.1)
    assert by_epoch.temperatures.tolist() == pytest.approx([0.04, 0.04, 0.07])
    assert by_epoch.patch_temperatures.tolist() == pytest.approx([0.04, 0.04, 0.1])
    assert made("dinov2", teacher_temperature_epochs=1).temperatures.tolist() == pytest.approx([0.04, 0.07, 0.07])
    shorter = [0.04 + 0.03 * i / 59 for i in range(3)]  # than its warm-up of 60 steps
    assert made("dinov2", teacher_temperature_epochs=30).temperatures.tolist() == pytest.approx(shorter)
    assert made("ibot", teacher_temperature_epochs=31).temperatures.tolist() == pytest.approx([0.04, 0.04, 0.041])
    assert DinoV2Settings(epochs=2, epoch_steps=10, batch_size=4).total_steps(100) == (20, 10)
    assert IbotSettings(epochs=2, batch_size=4, warmup_epochs=0).total_steps(100) == (50, 25)


@pytest.mark.parametrize("rate", [0.3, 0.99])
def test_stochastic_depth_of_a_subset_equals_the_plain_loop(rate):
    x, drop = torch.randn(7, 4, 6), BatchSubset(rate)
    torch.manual_seed(3)
    y = residual(x, drop, lambda x: x.tanh())
    torch.manual_seed(3)
    kept = drop.draw(7, CPU).tolist()
    assert len(kept) == max(int(7 * (1 - rate)), 1)
    expected = torch.stack([x[i] + (7 / len(kept) * x[i].tanh() if i in kept else 0) for i in range(7)])
    torch.testing.assert_close(y, expected)
    torch.manual_seed(3)
    torch.testing.assert_close(x + drop(x.tanh()), expected)
    assert torch.equal(residual(x, drop.eval(), lambda x: x.tanh()), x + x.tanh())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_ratio": (0.0, 0.05)}, r"masks none of the 16 patches"),
        ({"mask_probability": 0.0}, r"masks none of the 16 patches"),
        ({"global_size": 70}, "global_size 70 is not a multiple"),
    ],
)
def test_what_cannot_be_learned_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        made(**changes)


def test_obstacles():
    assert "at least two images" in settings("dinov2", batch_size=1).obstacle()
    assert "ends below" in settings(mask_ratio=(0.5, 0.1)).obstacle()
    never = settings("dinov2", koleo_weight=0, batch_size=2, mask_probability=0.2).obstacle()
    assert never.startswith("mask_probability 0.2 of the 4 global views of a process masks none of them; allowed: at least 0.25;")
    shared = settings("dinov2", koleo_weight=0, batch_size=4, mask_probability=0.25)
    assert [shared.obstacle_to_parts(1, n) is None for n in (1, 2, 4)] == [True, True, False]
    assert "2 processes" in settings("dinov2", batch_size=2).obstacle_to_parts(1, 2)
    assert settings().obstacle_to_parts(2) is None
    assert "spreads the images" in settings("dinov2").obstacle_to_parts(2)


@pytest.mark.parametrize("kind", ["ibot", "dinov2"])
def test_work_is_that_which_torch_counts(kind, monkeypatch):
    monkeypatch.setattr(switch, "_enabled", False)
    method = KINDS[kind][0](settings(kind), create("vit_micro_patch16", seed=0), 3, 2, seed=0)
    found, said = step_of(method, batch_of(method, kind))
    assert said == pytest.approx(found, rel=0.1)


# -- what every method promises ----------------------------------------------------------------------------------------


def test_resume_is_bitwise_equal(tmp_path):
    """With stochastic depth, batch-wide masks and two kinds of groups."""
    require_exact_resume(lambda: made("dinov2", drop_path=0.3, **FEW), crops("dinov2", **FEW), tmp_path, batch_size=2)


def test_parts_and_processes_equal_one_batch(tmp_path):
    require_equal_parts(lambda: made(**FEW), crops(**FEW), tmp_path / "parts", 2)
    require_equal_processes(lambda: made(**FEW), crops(**FEW), tmp_path / "processes", 2)


def test_sinkhorn_over_processes_with_other_numbers_of_masked_patches(tmp_path):
    """Each view is masked by itself, so that the batch's masks do not depend on how it is shared."""
    options = {"centering": "sinkhorn", "teacher_temperature_start": 0.1, "teacher_temperature": 0.1, **FEW}
    require_equal_processes(lambda: made(**options), crops(**options), tmp_path, 2)


def test_pictures_show_prototypes(tmp_path):
    method = made().eval()
    with torch.no_grad():
        method.pictures(crops(), tmp_path)
    (file,) = tmp_path.iterdir()
    assert file.stem in IbotSettings.PICTURES
    assert Image.open(file).size == (2 * 64, 8 * 64)
    assert method.export() is method.teacher.backbone


def test_positions_are_resized_once_before_the_first_step():
    table = create("vit_nano_patch16", seed=1).vit.pos_embed  # CLS and 14 x 14 patches
    method = made(global_size=64, resize_positions=True)
    assert method.teacher.backbone.vit.pos_embed.shape[1] == 1 + 4 * 4
    for backbone in (method.student.backbone, method.teacher.backbone):
        learned = backbone.vit.pos_embed
        expected = F.interpolate(table[0, 1:].T.reshape(1, -1, 14, 14), (4, 4), mode="bicubic", antialias=True, align_corners=False)
        torch.testing.assert_close(learned[0, 1:], expected[0].flatten(1).T)
        assert torch.equal(learned[:, 0], table[:, 0])
        assert learned.requires_grad == (backbone is method.student.backbone)
    patches, _ = method.student.backbone.positions((4, 4))
    assert patches.data_ptr() == method.student.backbone.vit.pos_embed[:, 1:].data_ptr(), "no interpolation is left to learn through"
    assert made(global_size=64).student.backbone.vit.pos_embed.shape[1] == 1 + 14 * 14


def test_resized_positions_are_read_back_as_they_were_learned(tmp_path):
    method = made(global_size=64, resize_positions=True)
    export_backbone(method.student.backbone, tmp_path / "net.safetensors", run="r", config_hash="0")
    again = load(tmp_path / "net.safetensors")
    assert (again.arch.image, again.vit.pos_embed.shape[1]) == (64, 17)
    images = torch.rand(1, 3, 96, 80)
    torch.testing.assert_close(again.eval().dense(images), method.student.backbone.eval().dense(images))


def test_resizing_needs_a_table_and_leaves_hashes_of_other_runs_alone():
    with pytest.raises(UserError, match="resize_positions: vit_nano_patch16_rope has rotary positions, for any size"):
        resize_positions(create("vit_nano_patch16_rope", seed=0), 64)
    assert "resize_positions" not in settings("dinov2").model_dump()
    high = DinoV2Settings(preset="high_resolution")
    assert high.total_steps(10_000) == (10_000, 100)
    assert (high.global_size, high.peak_lr) == (518, pytest.approx(7.05e-5 * 2**0.5))
