"""PaKA: kernels and regions against plain loops, crops inside of others, and what every method promises."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate

from densewalk.core.errors import UserError
from densewalk.data.augmentation.crops import resized_crop
from densewalk.methods.dinov2.settings import DinoV2Settings
from densewalk.methods.ibot.augmentation import MaskedCrops
from densewalk.methods.paka.augmentation import PakaCrops, draw_inside, plain_views
from densewalk.methods.paka.losses import cka_loss
from densewalk.methods.paka.method import METHOD as Paka
from densewalk.methods.paka.settings import PakaSettings
from densewalk.models.loading import create
from densewalk.ops.cpu import switch
from densewalk.ops.roi_align import aligned_patches
from densewalk.training.sampler import Item
from tests.fixtures.methods.runs import CPU, Images, require_equal_parts, require_equal_processes, require_exact_resume
from tests.models.test_work import step_of

SMALL = {
    "global_size": 64,
    "local_size": 32,
    "local_crops": 1,
    "batch_size": 2,
    "steps": 3,
    "epoch_steps": 2,
    "out_dim": 64,
    "head_hidden": 32,
    "head_bottleneck": 16,
    "drop_path": 0.0,
    "lr": 0.01,
    "warmup_epochs": 0,
    "aligned_crops": 3,
    "aligned_patches": 3,
    "paka_hidden": 32,
    "paka_out": 16,
}


def settings(**changes):
    return PakaSettings(**{**SMALL, **changes})


def made(arch="vit_nano_patch16", **changes):
    return Paka(settings(**changes), create(arch, seed=1), 3, 2, seed=0)


def crops(**changes):
    return PakaCrops(Images(3, 80, 96), settings(**changes))


def batch_of(method, **changes):
    return method.prepare(default_collate(crops(**changes).__getitems__([Item(i, seed=i) for i in range(2)])), CPU)


def step_without_state(method, batch, seed=0):
    loss, logs = method.step(batch, 0, torch.Generator().manual_seed(seed))
    method.mean_logits.clear()
    method.patch_sums.clear()
    return loss, logs


# -- formulas ----------------------------------------------------------------------------------------------------------


def plain_cka(student, teacher, valid):
    """Of one image, from Python's own numbers."""

    def kernel(x):
        x = [row for row, own in zip(x.tolist(), valid, strict=True) if own]
        means = [math.fsum(column) / len(x) for column in zip(*x, strict=True)]
        x = [[a - m for a, m in zip(row, means, strict=True)] for row in x]
        return [math.fsum(a * b for a, b in zip(one, other, strict=True)) for one in x for other in x]

    def product(one, other):
        return math.fsum(a * b for a, b in zip(one, other, strict=True))

    k, m = kernel(student), kernel(teacher)
    return 1 - product(k, m) / (math.sqrt(max(product(k, k), 1e-6)) * math.sqrt(max(product(m, m), 1e-6)))


def test_loss_equals_the_plain_loop():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 6, 3, dtype=torch.float64, generator=generator)
    valid = torch.rand(4, 6, generator=generator) < 0.7
    valid[1] = torch.arange(6) == 2  # one place has no kernel
    own = [plain_cka(s, t, v) for s, t, v in zip(student, teacher, valid.tolist(), strict=True) if sum(v) >= 2]
    assert len(own) == 3
    assert cka_loss(student, teacher, valid).item() == pytest.approx(sum(own) / 3, abs=1e-6)
    every = [plain_cka(s, t, [True] * 6) for s, t in zip(student, teacher, strict=True)]
    assert cka_loss(student, teacher).item() == pytest.approx(sum(every) / 4, abs=1e-6)
    assert cka_loss(student, teacher, torch.zeros_like(valid)).item() == 0


def test_loss_does_not_see_rotation_scale_and_shift():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 9, 5, generator=generator)
    turned = torch.linalg.qr(torch.randn(5, 5, generator=generator))[0]
    loss = cka_loss(student, teacher)
    assert 0 < loss < 1
    for one, other in ((3 * student @ turned + 2, teacher), (student, 0.1 * teacher @ turned - 1)):
        torch.testing.assert_close(cka_loss(one, other), loss, atol=1e-5, rtol=0)
    assert cka_loss(2 * teacher @ turned + 1, teacher).item() == pytest.approx(0, abs=1e-5)
    assert cka_loss(student[:, :2], teacher[:, :2]).item() == pytest.approx(0, abs=1e-5), "two places have one kernel"


def test_gradient_moves_no_mean_and_stays_finite_where_all_is_the_same():
    student, teacher = torch.randn(2, 2, 9, 5, generator=torch.Generator().manual_seed(0))
    student[1] = 0.5
    (gradient,) = torch.autograd.grad(cka_loss(student.requires_grad_(), teacher), student)
    assert gradient.isfinite().all()
    assert gradient[0].abs().max() > 1e-3
    assert gradient.sum(dim=1).abs().max() < 1e-6


def plain_region(image, box, rows, columns):
    """RoIAlign of one channel [h, w]: means of points, between the four values around each."""
    left, top, right, bottom = box

    def value(y, x):
        y, x = min(max(y, 0.0), image.shape[0] - 1.0), min(max(x, 0.0), image.shape[1] - 1.0)
        i, j = int(y), int(x)
        i2, j2 = min(i + 1, image.shape[0] - 1), min(j + 1, image.shape[1] - 1)
        upper = image[i, j] * (1 - (x - j)) + image[i, j2] * (x - j)
        lower = image[i2, j] * (1 - (x - j)) + image[i2, j2] * (x - j)
        return upper * (1 - (y - i)) + lower * (y - i)

    high, wide = (bottom - top) / rows, (right - left) / columns
    n, m = math.ceil(high), math.ceil(wide)
    return [
        sum(value(top - 0.5 + high * (r + (a + 0.5) / n), left - 0.5 + wide * (c + (b + 0.5) / m)) for a in range(n) for b in range(m))
        / n
        / m
        for r in range(rows)
        for c in range(columns)
    ]


def test_regions_equal_the_plain_loop():
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(2, 2, 6, 5, generator=generator)
    boxes = torch.tensor([[0.3, 1.2, 4.7, 5.9], [0.0, 0.0, 5.0, 6.0], [1.1, 0.2, 2.0, 1.3]])
    numbers = torch.tensor([1, 0, 1])
    found = aligned_patches(maps, numbers, boxes, (2, 3))
    for got, number, box in zip(found, numbers, boxes.tolist(), strict=True):
        expected = np.array([plain_region(maps[number, c].double().numpy(), box, 2, 3) for c in range(2)]).T
        np.testing.assert_allclose(got, expected, atol=1e-5)
    whole = aligned_patches(maps[:1], torch.tensor([0]), torch.tensor([[0.0, 0.0, 5.0, 6.0]]), (6, 5))
    assert torch.equal(whole[0], maps[0].flatten(1).T), "a whole map is itself"


def test_a_step_is_dinov2s_and_the_mean_over_crops():
    method = made(koleo_weight=0.1)
    with torch.no_grad():
        for p in method.teacher.aligned_head.parameters():
            p.add_(0.05 * torch.randn_like(p))
    batch = batch_of(method)
    loss, logs = step_without_state(method, batch)
    base, _ = super(Paka, method).step(batch, 0, torch.Generator())
    expected = []
    for i in range(2):
        for j in range(3):
            sides = []
            for network, images, flips, boxes, own in (
                (method.student, batch["aligned"], batch["aligned_flipped"], batch["in_aligned"], j),
                (method.teacher, batch["plain"], batch["global_flipped"], batch["in_global"], j % 2),
            ):
                patches = network.backbone.tokens(images[i, own][None]).patches[0].T.unflatten(1, (images.shape[-1] // 16,) * 2)
                patches = patches.flip(-1) if flips[i, own] else patches
                region = [plain_region(channel.detach().double().numpy(), (boxes[i, j] / 16).tolist(), 3, 3) for channel in patches]
                sides.append(network.aligned_head(torch.tensor(region, dtype=torch.float32).T))
            expected.append(plain_cka(*sides, [True] * 9))
    assert logs["loss_paka"].item() == pytest.approx(sum(expected) / 6, abs=1e-4)
    assert loss.item() == pytest.approx(base.item() + logs["loss_paka"].item(), abs=1e-5)


# -- crops -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("least", [0.9, 1.0])
def test_crops_to_align_lie_in_their_global_crop(least):
    generator, outer, shares, insides = torch.Generator().manual_seed(0), (10, 20, 60, 50), [], []
    for _ in range(200):
        y, x, h, w = draw_inside(outer, (80, 72), (0.05, 0.4), least, generator)
        assert 0 <= y <= 80 - h
        assert 0 <= x <= 72 - w
        insides.append((min(y + h, 70) - max(y, 10)) * (min(x + w, 70) - max(x, 20)) / (h * w))
        shares.append(h * w / 3000)
    assert min(insides) >= least
    assert (min(insides) < 1) == (least < 1)
    assert 0.03 < min(shares) < max(shares) < 0.45


class Coordinates(Dataset):
    """An image of 80 x 96 px whose values are its coordinates."""

    def __getitem__(self, index):
        y, x = torch.meshgrid(torch.arange(80), torch.arange(96), indexing="ij")
        return torch.stack([2 * y, 2 * x, 0 * x]).byte()


def test_boxes_show_the_same_place_in_both_crops():
    data = PakaCrops(Coordinates(), settings(aligned_crops=4))
    for seed in range(4):
        sample = data[Item(0, seed=seed)]
        for j in range(4):
            pieces = []
            for kind, own, boxes in (("global", j % 2, "in_global"), ("aligned", j, "in_aligned")):
                left, top, right, bottom = sample[boxes][j].round().int().tolist()
                pieces.append(resized_crop(sample[kind][own], (top, left, bottom - top, right - left), 8).float())
            assert (pieces[0] - pieces[1]).abs()[:, 1:-1, 1:-1].max() < 9, "of 255; boxes are rounded to pixels"


def test_dinov2s_crops_and_masks_are_the_same_as_without_alignment():
    ours = crops(batch_size=4).__getitems__([Item(i, seed=i) for i in range(2)])
    names = set(SMALL) - {"aligned_crops", "aligned_patches", "paka_hidden", "paka_out"}
    theirs = MaskedCrops(Images(3, 80, 96), DinoV2Settings(**{name: SMALL[name] for name in names}))
    for one, other in zip(ours, theirs.__getitems__([Item(i, seed=i) for i in range(2)]), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_the_teacher_sees_plain_colors_with_the_same_flip():
    batch = default_collate([crops()[Item(i, seed=i)] for i in range(4)])
    flips = batch["global_distortions"][..., 0]
    assert 0 < flips.sum() < 8
    plain = plain_views(batch, CPU)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for i in range(4):
        for v in range(2):
            image = (batch["global"][i, v].float() / 255 - mean) / std
            torch.testing.assert_close(plain[i, v], image.flip(-1) if flips[i, v] else image)


# -- settings ----------------------------------------------------------------------------------------------------------


def test_more_places_than_asked_for_are_drawn():
    method = made(most_places=4)
    chosen = method.choose_places(torch.Generator().manual_seed(0))
    assert len(set(chosen.tolist())) == 4
    assert max(chosen.tolist()) < 9
    batch = batch_of(method)
    one, other = (step_without_state(method, batch, seed)[1]["loss_paka"] for seed in (0, 1))
    assert one != other


def test_recipes():
    published = PakaSettings(preset="published")
    assert published == PakaSettings().model_copy(update={"preset": "published"})
    assert published.total_steps(118_287) == (5000, 1000)
    assert (published.compat, published.resolved().min_inside, settings(compat="released").resolved().min_inside) == ("paper", 0.9, 1.0)
    assert published.grid_side(14) == 7
    assert PakaSettings(preset="small_video").grid_side(16) == 4


def test_every_head_learns_and_is_clipped_by_itself():
    method = made(clip_grad=0.01)
    groups = method.param_groups()
    assert sum(len(group.params) for group in groups) == len([p for p in method.student.parameters() if p.requires_grad])
    loss, _ = method.step(batch_of(method), 0, torch.Generator())
    (100 * loss).backward()
    method.after_backward(0)
    norms = [torch.stack([p.grad.norm() for p in part]).norm().item() for part in method.student.parts()]
    assert norms == pytest.approx([0.01] * 3, rel=1e-3)
    assert all(p.grad is None for p in method.teacher.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"local_size": 16, "aligned_patches": None},
            "local_size 16 at patch size 16 gives a crop one patch.*set local_size to 32 or more",
        ),
        ({"local_size": 40}, "local_size 40 is not a multiple"),
    ],
)
def test_what_cannot_be_aligned_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        made(**changes)


def test_obstacles():
    assert "at least two images" in settings(batch_size=1).obstacle()
    assert settings(koleo_weight=0).obstacle_to_parts(2) is None
    assert "spreads the images" in settings().obstacle_to_parts(2)


def test_work_is_that_which_torch_counts(monkeypatch):
    monkeypatch.setattr(switch, "_enabled", False)
    method = made("vit_micro_patch16")
    found, said = step_of(method, batch_of(method))
    assert said == pytest.approx(found, rel=0.1)


# -- what every method promises ----------------------------------------------------------------------------------------


def test_resume_is_bitwise_equal(tmp_path):
    """With stochastic depth, drawn places and crops that stick out."""
    require_exact_resume(lambda: made(drop_path=0.3, most_places=5), crops(), tmp_path, batch_size=2)


def test_parts_and_processes_equal_one_batch(tmp_path):
    """Masks that each view has by itself, so that they do not depend on how a batch is shared."""
    options = {"mask_rule": "view", "center_patches": "all", "koleo_weight": 0.0}
    require_equal_parts(lambda: made(**options), crops(**options), tmp_path / "parts", 2)
    require_equal_processes(lambda: made(**options), crops(**options), tmp_path / "processes", 2)


def test_pictures_show_prototypes_and_kernels(tmp_path):
    method = made().eval()
    with torch.no_grad():
        method.pictures(crops(), tmp_path)
    assert {file.stem for file in tmp_path.iterdir()} == set(PakaSettings.PICTURES)
    assert Image.open(tmp_path / "kernels.png").size == (4 * 64, 4 * 64)
    assert method.export() is method.teacher.backbone
