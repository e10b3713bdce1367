"""Linear probes against plain float64 loops; interruption; grids."""

import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from densewalk.core.errors import Interrupted, TrainingError, UserError
from densewalk.core.imagenet import IMAGENET
from densewalk.evaluations.common.base import Job
from densewalk.evaluations.linear import evaluate as linear
from densewalk.evaluations.linear.settings import LinearSettings
from densewalk.models.export import export_backbone
from densewalk.models.loading import create
from densewalk.training.sampler import Item
from tests.fixtures.layouts import write_classes


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    export_backbone(create("vit_nano_patch8", seed=0), path, run="test", config_hash="test")
    return path


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("data"), {"train": {"n01": 5, "n02": 4, "n03": 4}, "val": {"n01": 2, "n02": 2, "n03": 2}})


def small(root, **changes):
    values = {"resize": 18, "size": 16, "batch_size": 4, "epochs": 3, "blocks": [2], "learning_rates": [10.0], **changes}
    return LinearSettings(root=str(root), dataset="colors", **values)


def run(root, backbone, folder, **changes):
    return linear.evaluate(small(root, **changes), backbone, Job(out=folder / "out", state=folder / "state"))


def test_learns_colors_and_reports_best_and_last(root, backbone, tmp_path):
    result = run(root, backbone, tmp_path)
    assert set(result.metrics) == set(LinearSettings.METRICS)
    assert (result.n, result.unit) == (6, "images")
    of_epochs = result.details["best_of_each_epoch"]
    assert len(of_epochs) == 3
    assert result.metrics["top1_best"] == max(of_epochs) == 100.0
    assert result.metrics["top1_last"] == of_epochs[-1]


def test_best_and_last_are_told_apart():
    history = [{"a": 40.0, "b": 30.0}, {"a": 20.0, "b": 60.0}, {"a": 50.0, "b": 10.0}]
    split = linear.ClassifiedImages(["x"], [0], ["n"])
    result = linear.summarize(history, split, split)
    assert result.metrics == {"top1_best": 60.0, "top1_last": 50.0}
    assert result.details["best"] == {"epoch": 2, "classifier": "b"}


def test_an_interrupted_training_gives_what_a_whole_one_gives(root, backbone, tmp_path, monkeypatch):
    grid = {"recipe": "dinov2", "epoch_steps": 2, "blocks": [1, 2], "learning_rates": [0.1, 1.0]}
    whole = run(root, backbone, tmp_path / "whole", **grid)
    plain, count = linear.step, []

    def signalled(*arguments):
        plain(*arguments)
        count.append(1)
        if len(count) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(linear, "step", signalled)
    with pytest.raises(Interrupted, match="after step 3 of 6"):
        run(root, backbone, tmp_path / "cut", **grid)
    assert run(root, backbone, tmp_path / "cut", **grid) == whole
    assert len(count) == 6, "the first three steps were not repeated"
    states = [max((tmp_path / name / "state/training").glob("step-*.pt")) for name in ("whole", "cut")]
    weights = [torch.load(path, weights_only=True)["heads"] for path in states]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert len(weights[0]) == 2 * 2 * 2 * 2


def test_other_settings_do_not_resume_the_state(root, backbone, tmp_path):
    run(root, backbone, tmp_path)
    assert len(run(root, backbone, tmp_path, epochs=2).details["best_of_each_epoch"]) == 2


def test_each_classifier_of_a_grid_trains_as_if_alone():
    """Against SGD with momentum written out in float64; also shows the sum of the losses to be of the batch means."""
    settings = LinearSettings(root=".", dataset="x", recipe="dinov2", blocks=[1, 2], learning_rates=[0.5, 4.0], batch_size=6).resolved()
    heads = linear.Heads(settings, dim=5, classes=3, seed=1).double()
    optimizer = heads.optimizer(settings.momentum)
    rng = torch.Generator().manual_seed(0)
    batches = [(torch.randn(6, 3, 5, generator=rng, dtype=torch.float64), torch.randint(0, 3, (6,), generator=rng)) for _ in range(4)]
    expected = [oracle(heads, number, batches, [1.0, 0.7, 0.4, 0.1]) for number in range(8)]
    for (tokens, targets), rate in zip(batches, [1.0, 0.7, 0.4, 0.1], strict=True):
        linear.step(heads, optimizer, tokens, targets, rate)
    for layer, (weight, bias) in zip(heads.layers, expected, strict=True):
        assert np.allclose(layer.weight.detach().numpy(), weight, rtol=1e-10)
        assert np.allclose(layer.bias.detach().numpy(), bias, rtol=1e-10)


def oracle(heads, number, batches, rates):
    """One classifier's W and b after the batches: softmax gradient, v = 0.9 v + g, w -= lr v."""
    count, pool, rate = list(heads.kinds.values())[number]
    weight, bias = (p.detach().numpy().copy() for p in heads.layers[number].parameters())
    velocity_w, velocity_b = np.zeros_like(weight), np.zeros_like(bias)
    for (tokens, targets), factor in zip(batches, rates, strict=True):
        gradient_w, gradient_b = np.zeros_like(weight), np.zeros_like(bias)
        for token, target in zip(tokens.numpy(), targets.tolist(), strict=True):
            parts = [token[1]] if count == 1 else [token[0], token[1]]
            x = np.concatenate([*parts, *([token[2]] if pool else [])])
            logits = weight @ x + bias
            p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
            p[target] -= 1
            gradient_w += np.outer(p, x) / len(tokens)
            gradient_b += p / len(tokens)
        velocity_w, velocity_b = 0.9 * velocity_w + gradient_w, 0.9 * velocity_b + gradient_b
        weight -= rate * factor * velocity_w
        bias -= rate * factor * velocity_b
    return weight, bias


def test_learning_rates_are_scaled_by_the_batch():
    settings = LinearSettings(root=".", dataset="x").resolved()
    assert [rate for _, _, rate in linear.Heads(settings, 384, 2, 0).kinds.values()] == [0.001 * 1024 / 256]
    grid = linear.Heads(LinearSettings(root=".", dataset="x", recipe="dinov2").resolved(), 8, 2, 0)
    assert len(grid.kinds) == 13 * 2 * 2
    assert {layer.in_features for layer in grid.layers} == {8, 16, 32, 40}


def test_schedules():
    per_epoch, rates = linear.schedule(LinearSettings(root=".", dataset="x", batch_size=4, epochs=4).resolved(), 9)
    assert per_epoch == 2
    assert rates.tolist() == pytest.approx([0.5 * (1 + np.cos(np.pi * e / 4)) for e in (0, 0, 1, 1, 2, 2, 3, 3)])
    settings = LinearSettings(root=".", dataset="x", recipe="dinov2").resolved()
    per_epoch, rates = linear.schedule(settings, 1_281_167)
    assert (settings.batch_size, per_epoch, len(rates)) == (128, 1250, 12_500)
    assert rates[6250] == pytest.approx(0.5)


def test_tokens_are_those_of_the_whole_forward_pass():
    network = create("vit_micro_patch14_reg4", seed=0).eval()
    images = torch.randn(2, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    found = linear.frozen_tokens(network, images, 4)
    with torch.no_grad():
        tokens = network.tokens(images)
        x, grid = network.embed(images)
        early = network.vit.norm(network.run(x, grid, 0, 2))
    assert found.shape == (2, 5, 96)
    assert torch.allclose(found[:, 3], tokens.cls, atol=1e-5)
    assert torch.allclose(found[:, 4], tokens.patches.mean(1), atol=1e-5)
    assert torch.allclose(found[:, 1], early[:, 0], atol=1e-5)
    assert not found.requires_grad


def test_crops_depend_on_the_item_alone(root):
    crops = linear.RandomCrops(linear.list_imagenet(root)[0], small(root).resolved(), IMAGENET)
    one, again, other = crops[Item(2, 7)], crops[Item(2, 7)], crops[Item(2, 8)]
    assert torch.equal(one[0], again[0])
    assert not torch.equal(one[0], other[0])
    assert one[0].shape == (3, 16, 16)
    assert one[1:] == (0, 2)


def test_diverged_classifiers_lose_and_do_not_spoil_the_others():
    heads = linear.Heads(LinearSettings(root=".", dataset="x", blocks=[1], learning_rates=[1.0, 2.0], batch_size=4).resolved(), 4, 2, 0)
    tokens, targets = torch.randn(6, 2, 4), torch.zeros(6, dtype=torch.int64)
    nn.init.constant_(heads.layers[0].weight, torch.nan)
    nn.init.zeros_(heads.layers[1].weight)
    found, right = linear.accuracies(heads, tokens, targets)
    assert list(found.values()) == [0.0, 100.0]
    assert right.tolist() == [[False] * 6, [True] * 6]
    nn.init.constant_(heads.layers[1].weight, torch.nan)
    with pytest.raises(TrainingError, match="all classifiers are not finite"):
        linear.accuracies(heads, tokens, targets)


def test_bad_input_is_named(root, backbone, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"batch_size 14 is larger than the data set \(13 images\)"):
        run(root, backbone, tmp_path, batch_size=14)
    with pytest.raises(UserError, match="blocks 3, but the backbone has 2"):
        run(root, backbone, tmp_path, blocks=[3])
    broken = create("vit_nano_patch8", seed=0)
    nn.init.constant_(broken.vit.norm.weight, torch.nan)
    monkeypatch.setattr("densewalk.evaluations.common.base.load", lambda _: broken)
    with pytest.raises(UserError, match=r"features of .*train/n0.*JPEG are not finite"):
        run(root, backbone, tmp_path)


def test_protocol_names_and_features():
    dino = LinearSettings(root=".", dataset="ImageNet-1k")
    assert dino.published_protocol == "linear probe (DINO)"
    assert (dino.features_for(384), dino.features_for(768)) == ([(4, False)], [(1, True)])
    dinov2 = dino.model_copy(update={"recipe": "dinov2"})
    assert dinov2.published_protocol == "linear probe (DINOv2)"
    assert dinov2.features_for(384) == [(1, False), (1, True), (4, False), (4, True)]
    dora = dino.model_copy(update={"recipe": "dora"})
    assert dora.published_protocol == "linear probe (DoRA)"
    assert len({s.protocol for s in (dino, dinov2, dora)}) == 3
    for change in (
        {"epochs": 10},
        {"learning_rates": [0.01]},
        {"batch_size": 512},
        {"blocks": [1]},
        {"average_pool": [True]},
        {"size": 192},
    ):
        changed = dino.model_copy(update=change)
        assert changed.published_protocol is None, change
        assert changed.protocol != dino.protocol, change
