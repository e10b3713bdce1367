"""MAE against plain loops, its masks, its recipe, and what every method promises."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import default_collate

from densewalk.core.errors import UserError
from densewalk.methods.mae.augmentation import MaeCrops
from densewalk.methods.mae.method import Mae
from densewalk.methods.mae.network import patchify, reconstruction_loss, unpatchify
from densewalk.methods.mae.settings import MaeSettings
from densewalk.models.export import export_backbone
from densewalk.models.loading import create, load
from densewalk.ops.collapse import feature_rank
from densewalk.ops.cpu import switch
from densewalk.ops.positions import sincos_positions
from densewalk.training.optimizer import make_optimizer, set_schedules
from densewalk.training.sampler import Item
from tests.fixtures.methods.runs import CPU, Images, require_equal_parts, require_equal_processes, require_exact_resume
from tests.models.test_work import step_of

SMALL = {"size": 64, "decoder_dim": 24, "decoder_depth": 1, "decoder_heads": 4, "warmup_epochs": 0, "batch_size": 4}


def settings(**changes):
    return MaeSettings(**{**SMALL, "steps": 3, "lr": 0.05, **changes})


def mae(total=3, **changes):
    return Mae(settings(**changes), create("vit_nano_patch16", seed=1), total, 2, seed=0)


def crops(**changes):
    return MaeCrops(Images(3, 80, 96), settings(**changes))


def batch_of(method, count=4):
    data = MaeCrops(Images(3, 80, 96), method.settings)
    return method.prepare(default_collate([data[Item(i, seed=i)] for i in range(count)]), CPU)


# -- formulas --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_pix", [True, False])
def test_loss_equals_the_plain_loop(norm_pix):
    generator = torch.Generator().manual_seed(0)
    predicted, target = (torch.randn(2, 3, 12, dtype=torch.float64, generator=generator) for _ in range(2))
    total = 0.0
    for b in range(2):
        for n in range(3):
            pixels = target[b, n].tolist()
            if norm_pix:
                mean = sum(pixels) / 12
                variance = sum((x - mean) ** 2 for x in pixels) / 11
                pixels = [(x - mean) / math.sqrt(variance + 1e-6) for x in pixels]
            total += sum((p - x) ** 2 for p, x in zip(predicted[b, n].tolist(), pixels, strict=True)) / 12 / 6
    loss = reconstruction_loss(predicted.float(), target.float(), norm_pix=norm_pix)
    assert loss.item() == pytest.approx(total, rel=1e-6)


def test_normalized_pixels_have_unit_variance_and_constant_patches_none():
    target = torch.cat([torch.randn(1, 4, 768), torch.full((1, 4, 768), 0.3)], dim=1)
    nothing = torch.zeros(1, 8, 768)
    assert reconstruction_loss(nothing, target, norm_pix=True).item() == pytest.approx(767 / 768 / 2, rel=1e-4)


@pytest.mark.parametrize("first", ["column", "row"])
def test_positions_equal_the_plain_loop(first):
    table = sincos_positions(12, (2, 3), first=first)
    for row in range(2):
        for column in range(3):
            a, b = (column, row) if first == "column" else (row, column)
            expected = [f(c * 10000 ** (-j / 3)) for c in (a, b) for f in (math.sin, math.cos) for j in range(3)]
            np.testing.assert_allclose(table[row * 3 + column], expected, atol=1e-7)


def test_patches_are_put_back():
    images = torch.randn(2, 3, 32, 48)
    patches = patchify(images, 16)
    assert torch.equal(unpatchify(patches, (2, 3), 16), images)
    assert patches[1, 4, (5 * 16 + 7) * 3 + 2] == images[1, 2, 16 + 5, 16 + 7]


def test_rank_of_features_equals_its_definition():
    x = torch.randn(20, 7, generator=torch.Generator().manual_seed(0)) + 1
    values = np.linalg.svd(x.double().numpy(), compute_uv=False)
    p = values / values.sum()
    assert feature_rank(x).item() == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-5)
    assert feature_rank(torch.ones(20, 7)).item() == pytest.approx(1, abs=1e-3)
    assert feature_rank(torch.zeros(20, 7)).isfinite()


# -- the method ------------------------------------------------------------------------------------------------------


def test_the_encoder_sees_nothing_of_removed_patches():
    method = mae().eval()
    batch = batch_of(method)
    kept = method.settings.visible(method.patches)
    removed = batch["order"][:, kept:, None].expand(-1, -1, 768)
    patches = patchify(batch["images"], 16)
    other = unpatchify(patches.scatter(1, removed, 5.0), method.grid, 16)
    assert torch.equal(method.encode(batch["images"], batch["order"]), method.encode(other, batch["order"]))
    visible = batch["images"].clone().requires_grad_()
    with torch.no_grad():
        latent = method.encode(batch["images"], batch["order"])
    predicted = method.decoder(latent, batch["order"])
    loss = reconstruction_loss(predicted, patchify(visible, 16).gather(1, removed), norm_pix=True)
    (gradient,) = torch.autograd.grad(loss, visible)
    shares = patchify(gradient, 16).abs().sum(-1) > 0
    assert torch.equal(shares, torch.zeros(4, 16, dtype=torch.bool).scatter(1, batch["order"][:, kept:], True))


def test_a_step_equals_its_definition():
    """The decoder's prediction of all patches, and a mask by name of the patch."""
    method = mae().eval()
    batch = batch_of(method)
    loss, logs = method.step(batch, 0, torch.Generator())
    total = 0.0
    for image, order in zip(batch["images"], batch["order"], strict=True):
        latent = method.encode(image[None], order[None])
        pixels = method.decoder.predict(method.decoder.norm(method.decoder.run(latent, order[None])[:, 1:]))[0]
        for n in order[4:].tolist():
            target = image[:, n // 4 * 16 : n // 4 * 16 + 16, n % 4 * 16 : n % 4 * 16 + 16].permute(1, 2, 0).flatten()
            target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
            total += float((pixels[n] - target).detach().square().mean()) / 48
    assert loss.item() == pytest.approx(total, rel=1e-5)
    assert 1 <= logs["feature_rank"] <= 4


def test_each_image_has_a_mask_of_its_own_from_its_seed():
    method = mae()
    batch = batch_of(method)
    assert len({tuple(order[:4].sort().values.tolist()) for order in batch["order"]}) == 4
    assert torch.equal(batch["order"], batch_of(method)["order"])
    first, again, other = (crops()[Item(1, seed=seed)] for seed in (5, 5, 6))
    assert torch.equal(first["crop"], again["crop"])
    assert first["mask_seed"] == again["mask_seed"] != other["mask_seed"]


def test_learns_one_batch():
    method = mae(total=25, lr=0.3, norm_pix_loss=False)
    optimizer, batch, losses = make_optimizer(method), batch_of(method), []
    for at in range(25):
        set_schedules(optimizer, at)
        optimizer.zero_grad()
        loss, _ = method.step(batch, at, torch.Generator())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]


def test_recipe():
    published = MaeSettings(size=64, decoder_dim=24, decoder_depth=1, decoder_heads=4)
    method = Mae(published, create("vit_nano_patch16", seed=0), 1000, 10, seed=0)
    decayed, plain = method.param_groups()
    assert (decayed.lr[0], decayed.lr[200]) == (0, pytest.approx(1.5e-4 * 16 / 2))
    assert decayed.lr[400] == pytest.approx(1.5e-4 * 16)
    assert (decayed.weight_decay[0], plain.weight_decay[0], decayed.extra["betas"]) == (0.05, 0, (0.9, 0.95))
    assert not method.backbone.vit.pos_embed.requires_grad
    assert torch.equal(method.backbone.vit.pos_embed[0, 1:], sincos_positions(48, (4, 4))), "of 64 px"
    assert not method.backbone.vit.pos_embed[0, 0].any()
    with pytest.raises(UserError, match="warmup_epochs 40 are 400 steps, the training has 100"):
        Mae(published, create("vit_nano_patch16", seed=0), 100, 10, seed=0).param_groups()


@pytest.mark.parametrize(
    ("changes", "arch", "message"),
    [
        ({"mask_ratio": 0.99}, "vit_nano_patch16", "mask_ratio 0.99 leaves 0 of the 16 patches"),
        ({"mask_ratio": 0.01, "size": 16}, "vit_nano_patch16", "leaves 0 of the 1 patches"),
        ({"size": 70}, "vit_nano_patch16", "size 70 is not a multiple of the patch size 16"),
        ({}, "vit_nano_patch16_rope", "rotary positions"),
        ({"positions": "kept"}, "vit_nano_patch16_rope", "rotary positions"),
    ],
)
def test_what_cannot_be_learned_is_refused(changes, arch, message):
    with pytest.raises(UserError, match=message):
        Mae(settings(**changes), create(arch, seed=0), 3, 2, seed=0)
    with pytest.raises(ValueError, match="decoder_dim 26 is no multiple of"):
        settings(decoder_dim=26)


@pytest.mark.parametrize("size", [32, 64, 224, 256])
def test_positions_are_sines_and_cosines_of_the_grid_that_is_trained(size, tmp_path):
    trained = Mae(settings(size=size), create("vit_nano_patch16", seed=0), 3, 2, seed=0)
    side = size // 16
    assert torch.equal(trained.backbone.positions((side, side))[0][0], sincos_positions(48, (side, side)))
    export_backbone(trained.export(), tmp_path / "backbone.safetensors", run="r", config_hash="h")
    start = load(tmp_path / "backbone.safetensors")
    assert torch.equal(start.positions((side, side))[0][0], sincos_positions(48, (side, side)))
    again = Mae(settings(size=128), start, 3, 2, seed=0)  # such positions are no loss: they are made for another grid
    assert torch.equal(again.backbone.positions((8, 8))[0][0], sincos_positions(48, (8, 8)))


def test_learned_positions_are_not_lost_unseen(tmp_path):
    export_backbone(create("vit_nano_patch16", seed=0), tmp_path / "backbone.safetensors", run="r", config_hash="h")
    start = load(tmp_path / "backbone.safetensors")
    with pytest.raises(UserError, match=r"would replace the learned positions.*set positions: kept"):
        Mae(settings(), start, 3, 2, seed=0)
    assert Mae(settings(positions="kept"), start, 3, 2, seed=0).backbone.vit.pos_embed.requires_grad


def test_work_is_that_which_torch_counts(monkeypatch):
    monkeypatch.setattr(switch, "_enabled", False)
    method = Mae(settings(), create("vit_micro_patch16", seed=0), 3, 2, seed=0)
    method.student = method  # the helper's name for what holds the backbone
    found, said = step_of(method, batch_of(method))
    assert said == pytest.approx(found, rel=0.05)


# -- what every method promises ----------------------------------------------------------------------------------------


def test_resume_is_bitwise_equal(tmp_path):
    require_exact_resume(mae, crops(), tmp_path)


def test_parts_and_processes_equal_one_batch(tmp_path):
    require_equal_parts(mae, crops(), tmp_path / "parts")
    require_equal_processes(mae, crops(), tmp_path / "processes")


def test_pictures_show_the_reconstructions(tmp_path: Path):
    method = mae().eval()
    for folder in (tmp_path / "one", tmp_path / "two"):
        with torch.no_grad():
            method.pictures(crops(), folder)
    files = [next(folder.iterdir()) for folder in (tmp_path / "one", tmp_path / "two")]
    assert {file.stem for file in files} == MaeSettings.PICTURES.keys()
    assert files[0].read_bytes() == files[1].read_bytes()
    assert Image.open(files[0]).size == (4 * 64, 3 * 64)
    assert method.export() is method.backbone
