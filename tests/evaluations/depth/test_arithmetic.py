"""Bins, losses, schedules, masks and metrics of the depth probe: against loops, and against recorded values of the releases."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from densewalk.evaluations.depth import schedules as schedule
from densewalk.evaluations.depth.head import DepthHead, at_image, bin_depths, mix_bins, padding, resize_map, with_cls
from densewalk.evaluations.depth.losses import batch_loss, gradient_loss, sig_loss
from densewalk.evaluations.depth.metrics import box_edges, errors, least_squares, scored_pixels
from densewalk.evaluations.depth.settings import DepthSettings
from densewalk.evaluations.depth.train import make_optimizer, step
from tests.fixtures.helpers import shared

NAMES = {"a1": "d1", "a2": "d2", "a3": "d3", "abs_rel": "AbsRel", "rmse": "RMSE", "log_10": "log10", "rmse_log": "RMSElog"}
NAMES |= {"silog": "SILog", "sq_rel": "SqRel", "mae": "MAE"}


def settings_of(**changes):
    return DepthSettings(**{"root": ".", "dataset": "toy", **changes})


def recorded(name="eval_depth"):
    with np.load(shared(f"parity/{name}.npz")) as file:
        return {key: torch.from_numpy(value) if value.dtype.kind in "fib" else value for key, value in file.items()}


# -- against loops -----------------------------------------------------------------------------------------------------


def test_sig_loss_is_its_formula():
    p, t = 10 * torch.rand(2, 1, 5, 6, dtype=torch.float64) + 0.1, 10 * torch.rand(2, 1, 5, 6, dtype=torch.float64)
    t[t < 2] = 0
    g = [math.log(a + 0.001) - math.log(b + 0.001) for a, b in zip(p.flatten().tolist(), t.flatten().tolist(), strict=True) if b > 0]
    mean = sum(g) / len(g)
    variance = sum((x - mean) ** 2 for x in g) / (len(g) - 1)
    assert sig_loss(p, t, variance=True).item() == pytest.approx(math.sqrt(variance + 0.15 * mean**2), rel=1e-12)
    assert sig_loss(p, t, variance=False).item() == pytest.approx(math.sqrt(0.15) * abs(mean), rel=1e-12)


def test_gradient_loss_is_its_loop():
    p, t = 10 * torch.rand(2, 1, 13, 17, dtype=torch.float64) + 0.1, 10 * torch.rand(2, 1, 13, 17, dtype=torch.float64)
    t[t < 2] = 0
    total = 0.0
    for stride in (1, 2, 4, 6):
        part, known = 0.0, 0
        for a, b in zip(p[:, 0, ::stride, ::stride], t[:, 0, ::stride, ::stride], strict=True):
            rows, columns = a.shape
            d = [[float((a[y, x] + 0.001).log() - (b[y, x] + 0.001).log()) for x in range(columns)] for y in range(rows)]
            known += int((b > 0).sum())
            for y in range(rows):
                for x in range(columns):
                    if y + 2 < rows and b[y, x] > 0 and b[y + 2, x] > 0:
                        part += abs(d[y][x] - d[y + 2][x])
                    if x + 2 < columns and b[y, x] > 0 and b[y, x + 2] > 0:
                        part += abs(d[y][x] - d[y][x + 2])
        total += part / known
    assert gradient_loss(p, t).item() == pytest.approx(total, rel=1e-12)


def test_a_batch_is_the_mean_over_its_groups_and_unknown_groups_count_as_zero():
    p, t = torch.rand(6, 1, 4, 4) + 1, torch.rand(6, 1, 4, 4) + 1
    t[2:4] = 0
    groups = [sig_loss(p[i : i + 2], t[i : i + 2], variance=True) for i in (0, 4)]
    assert batch_loss(p, t, 2, variance=True, gradients=False).item() == pytest.approx(sum(groups).item() / 3)
    more = [0.5 * gradient_loss(p[i : i + 2], t[i : i + 2]) for i in (0, 2, 4)]
    assert batch_loss(p, t, 2, variance=True, gradients=True).item() == pytest.approx((sum(groups) + sum(more)).item() / 3)


def test_metrics_are_their_loop():
    p, t = 5 * torch.rand(6, 7) + 0.5, 5 * torch.rand(6, 7) + 0.5
    mask = torch.rand(6, 7) > 0.4
    pairs = [(float(p[i, j]), float(t[i, j])) for i in range(6) for j in range(7) if mask[i, j]]
    n, e = len(pairs), [math.log(a) - math.log(b) for a, b in pairs]
    expected = {f"d{k}": sum(max(a / b, b / a) < 1.25**k for a, b in pairs) / n for k in (1, 2, 3)}
    expected |= {"AbsRel": sum(abs(a - b) / b for a, b in pairs) / n, "SqRel": sum((a - b) ** 2 / b for a, b in pairs) / n}
    expected |= {"RMSE": math.sqrt(sum((a - b) ** 2 for a, b in pairs) / n), "RMSElog": math.sqrt(sum(x * x for x in e) / n)}
    expected |= {"log10": sum(abs(math.log10(a) - math.log10(b)) for a, b in pairs) / n, "MAE": sum(abs(a - b) for a, b in pairs) / n}
    expected["SILog"] = 100 * math.sqrt(sum(x * x for x in e) / n - (sum(e) / n) ** 2)
    assert errors(p, t, mask) == pytest.approx(expected, rel=1e-6)


def test_scored_pixels_are_strictly_between_and_inside_the_box():
    true = torch.full((480, 640), 5.0)
    true[100, 100], true[101, 100], true[102, 100] = 10.0, 1e-3, 0.0
    mask = scored_pixels(true, 1e-3, 10.0, "eigen")
    assert mask.sum() == (471 - 45) * (601 - 41) - 3
    assert mask[45, 41]
    assert not mask[44, 41]
    assert not mask[471, 41]
    assert box_edges("garg", 352, 1216) == (143, 349, 43, 1172)
    assert box_edges("none", 3, 4) == (0, 3, 0, 4)


def test_mixed_bins_are_the_weighted_mean():
    x = torch.randn(2, 9, 3, 4, dtype=torch.float64)
    depths = bin_depths(settings_of(bins=9)).double()
    for kind, weigh in (("linear", lambda v: v.relu() + 0.1), ("sigmoid", torch.sigmoid), ("softmax", torch.exp)):
        w = weigh(x) / weigh(x).sum(1, keepdim=True)
        torch.testing.assert_close(mix_bins(x, depths, kind), (w * depths[:, None, None]).sum(1, keepdim=True))
    assert bin_depths(settings_of(bins=3, bin_spacing="log", min_depth=0.1)).tolist() == pytest.approx([0.1, 1.0, 10.0])


def test_the_head_interpolates_features_as_published():
    settings = settings_of(bins=8)
    head = DepthHead(settings, 6, 0)
    x = torch.randn(2, 6, 4, 5)
    published = head.linear(F.interpolate(x, scale_factor=4, mode="bilinear"))
    torch.testing.assert_close(head(x), mix_bins(published, head.depths, "linear"))


def test_padding_is_cut_off_or_squeezed():
    """A ramp over the padded image: cut, it begins after the padding; squeezed, at its start."""
    ramp = F.interpolate(torch.arange(10.0).expand(1, 1, 10, 10), (40, 40), mode="bilinear")
    cut = resize_map(ramp, (34, 34), 8, crop_padding=True)
    torch.testing.assert_close(cut, ramp[..., 3:37, 3:37])
    assert resize_map(ramp, (34, 34), 8, crop_padding=False)[0, 0, 0, 0] < cut[0, 0, 0, 0]


@pytest.mark.parametrize("size", [(480, 640), (530, 730), (427, 561), (96, 80)])
def test_the_padding_that_is_cut_off_is_that_of_the_image(size):
    """SUN RGB-D: the network sees 480 x 640, which patches of 14 pad by 5 rows on either side; the depth map has another size."""
    rows = torch.arange(490.0) - 5  # of the padded image
    maps = F.interpolate(rows.view(1, 1, 490, 1).expand(-1, -1, -1, 644), (35, 46), mode="area")
    found = resize_map(maps, size, 14, crop_padding=True, image=(480, 640))[0, 0]
    assert found.shape == size
    expected = (torch.arange(size[0]) + 0.5) * 480 / size[0] - 0.5
    inside = slice(size[0] // 10, -size[0] // 10)  # beyond the centers of the first and last patches nothing is known
    torch.testing.assert_close(found[inside], expected[inside, None].expand(-1, size[1]), atol=0.02, rtol=0)


def test_least_squares_undoes_scale_and_shift():
    true = 5 * torch.rand(8, 9) + 1
    mask = torch.rand(8, 9) > 0.3
    assert least_squares((true - 0.5) / 2, true, mask) == pytest.approx((2.0, 0.5), rel=1e-5)
    assert least_squares(torch.full((8, 9), 3.0), true, mask) == pytest.approx((1.0, true[mask].mean().item() - 3), rel=1e-5)


def test_dinov2_schedules_at_their_turning_points():
    lr, beta1 = schedule.dinov2_lr(38_400, 12_800, 1e-4), schedule.dinov2_beta1(38_400)
    assert lr[0] == pytest.approx(1e-7)
    assert lr[12_800] == pytest.approx(1e-4 * 0.75, rel=1e-6)
    assert lr[6_400] == pytest.approx(1e-4 * (1 + math.cos(math.pi / 6)) / 2 * (1 - 0.5 * 0.999), rel=1e-6)
    assert lr[-1] < 2e-12
    assert beta1[[0, 11_519, 38_399]] == pytest.approx([0.95, 0.85, 0.95])
    assert (np.diff(beta1[:11_520]) < 0).all()
    assert (np.diff(beta1[11_519:]) > 0).all()


def test_short_schedules_are_finite():
    for total in (1, 2, 3):
        for values in (schedule.dinov2_lr(total, 0, 1.0), schedule.dinov2_beta1(total), schedule.dinov3_lr(total, total, 1.0)):
            assert np.isfinite(values).all()
            assert len(values) == total


# -- against recorded values of the releases ---------------------------------------------------------------------------


def test_bins_equal_the_release():
    values = recorded()
    for case in ("256_10", "64_80"):
        x = values[f"bins/{case}/logits"]
        settings = settings_of(bins=x.shape[1], max_depth=float(values[f"bins/{case}/range"][1]))
        for kind in ("linear", "softmax", "sigmoid"):
            torch.testing.assert_close(mix_bins(x, bin_depths(settings), kind), values[f"bins/{case}/{kind}/out"], rtol=1e-5, atol=1e-5)
        depths = bin_depths(settings.model_copy(update={"bin_spacing": "log"}))
        torch.testing.assert_close(mix_bins(x, depths, "linear"), values[f"bins/{case}/log_linear"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["lin1", "lin4"])
def test_dinov2_head_equals_the_release(kind):
    own = {key.split("/")[-1]: value for key, value in recorded().items() if key.startswith(f"dinov2_head/{kind}/")}
    settings = settings_of(bins=len(own["weight"]), compat="released")
    features = torch.cat([with_cls(p, c) for p, c in zip(own["patches"], own["cls"], strict=True)], dim=1)
    torch.testing.assert_close(F.interpolate(features, scale_factor=4, mode="bilinear"), own["upsampled"], rtol=1e-5, atol=1e-5)
    head = DepthHead(settings, features.shape[1], 0)
    load(head, own["weight"], own["bias"])
    with torch.no_grad():
        maps = head(features)
    torch.testing.assert_close(maps, own["depth"], rtol=1e-5, atol=1e-5)
    size = tuple(own["at_image"].shape[-2:])
    torch.testing.assert_close(at_image(settings, maps, None, size, 14), own["at_image"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(at_image(settings, maps, maps.flip(-1), size, 14), own["tta"], rtol=1e-5, atol=1e-5)


def load(head, weight, bias):
    """Weights of the linear layer."""
    head.linear.weight.data.copy_(weight[:, :, None, None])
    head.linear.bias.data.copy_(bias)


def test_dinov3_head_equals_the_release():
    own = {key.split("/")[-1]: value for key, value in recorded().items() if key.startswith("dinov3_head/")}
    head = DepthHead(settings_of(preset="dinov3", bins=16), 8, 0)
    load(head, own["weight"], own["bias"])
    with torch.no_grad():
        torch.testing.assert_close(head.train().linear(head.norm(own["x"])), own["logits_train"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(head.norm.running_mean, own["running_mean"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(head.norm.running_var, own["running_var"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(head.eval().linear(head.norm(own["x"])), own["logits_eval"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(head(own["x"]), own["depth_eval"], rtol=1e-5, atol=1e-5)


def test_padding_equals_the_release():
    for key, value in recorded().items():
        if key.startswith("centre_padding/"):
            patch, height, width = map(int, key.split("/")[1].split("_"))
            assert [*padding(height, patch), *padding(width, patch)] == value.tolist()


@pytest.mark.parametrize("case", ["b2", "b4"])
def test_losses_equal_the_release(case):
    own = {key.split("/")[-1]: value for key, value in recorded().items() if key.startswith(f"loss/{case}/")}
    for loss, name in ((lambda p, t: sig_loss(p, t, variance=True), "sig"), (gradient_loss, "gradlog")):
        p = own["pred"].clone().requires_grad_()
        value = loss(p, own["gt"])
        assert value.item() == pytest.approx(own[name].item(), rel=1e-5)
        torch.testing.assert_close(torch.autograd.grad(value, p)[0], own[f"{name}_grad"], rtol=1e-4, atol=1e-8)
    assert sig_loss(own["pred"], own["gt"], variance=False).item() == pytest.approx(own["sig_warmup"].item(), rel=1e-5)


def test_boxes_and_metrics_equal_the_release():
    values = recorded()
    assert list(box_edges("eigen", 480, 640)) == values["mask/full/box"].tolist()
    assert list(box_edges("eigen", 240, 320)) == values["mask/half/box"].tolist()
    for i in range(3):
        p, t, mask = (values[f"metrics/{i}/{name}"] for name in ("pred", "gt", "mask"))
        found = errors(p.clamp(0.001, 10), t, mask)
        for name, value in zip(values["metrics/names"], values[f"metrics/{i}/dinov3"].tolist(), strict=True):
            assert found[NAMES[str(name)]] == pytest.approx(value, rel=1e-4)
        if i != 1:  # of a constant prediction, it is not defined
            scale, shift = values[f"metrics/{i}/least_squares"].tolist()
            assert least_squares(p.clamp(0.001, 10), t, mask) == pytest.approx((scale, shift), rel=1e-4)


def test_dinov3_schedule_equals_the_release():
    values = recorded()
    total, warmup, peak = values["schedule/small_args"].tolist()
    for own, (t, w, eta), steps in (
        ("schedule/small", (int(total), int(warmup), peak), slice(None)),
        ("schedule/full", (38_400, 12_800, 3e-4), values["schedule/full_steps"].numpy()),
    ):
        lr, beta1 = schedule.dinov3_lr(t, w, eta)[steps], schedule.dinov3_beta1(t, w, 0.0)[steps]
        np.testing.assert_allclose(np.stack([lr, beta1], 1), values[own].numpy(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("preset", ["dinov2", "dinov3"])
def test_training_steps_equal_the_release(preset):
    """Five steps on recorded features: loss, norm of the gradient, schedules, weights and running statistics."""
    values = recorded("eval_depth_train")
    own = {key.removeprefix(f"{preset}/"): value for key, value in values.items() if key.startswith(preset)}
    common = {"bins": 24, "batch_size": 2, "iterations": 6, "loss_warmup": 2, "compat": "released"}
    if preset == "dinov3":
        peak, beta2, decay, norm, total, warmup, loss_warmup = own["settings"].tolist()
        common |= {"learning_rate": peak, "beta2": beta2, "weight_decay": decay, "max_norm": norm, "iterations": int(total)}
        common |= {"warmup": int(warmup), "loss_warmup": int(loss_warmup), "preset": "dinov3"}
    else:
        common |= {"learning_rate": 1e-3, "warmup": 0}
    settings = settings_of(**common).resolved()
    head = DepthHead(settings, own["weight0"].shape[1], 0)
    load(head, own["weight0"], own["bias0"])
    optimizer, rows = make_optimizer(settings, head), own["loss_norm_lr_beta1"].tolist()
    lr, beta1 = schedule.schedules(settings)
    for at, (loss, norm, rate, momentum) in enumerate(rows):
        if preset == "dinov3":
            assert (lr[at], beta1[at]) == pytest.approx((rate, momentum), rel=1e-6, abs=1e-9)
        patches, cls = values["patches"][at], values["cls"][at]
        features = patches if preset == "dinov3" else with_cls(patches, cls)
        found = step(settings, head.train(), optimizer, features, values["gt"][at], 14, at, (rate, momentum))
        assert found == pytest.approx((loss, norm), rel=1e-4)
        torch.testing.assert_close(head.linear.weight[:, :, 0, 0].data, own["weights"][at], rtol=0, atol=1e-5)
        if preset == "dinov3":
            state = torch.stack([head.norm.weight, head.norm.bias, head.norm.running_mean, head.norm.running_var])
            torch.testing.assert_close(state.data, own["batch_norm"][at], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.linear.bias.data, own["bias"], rtol=0, atol=1e-5)
